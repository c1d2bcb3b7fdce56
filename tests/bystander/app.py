"""A Hydra app that has groups and options of our names, wherever Hydra finds options, and never asks for ours."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf


@dataclass
class Callbacks:
    own: str = "dataclass"


store = ConfigStore.instance()
store.store(group="optimizer", name="sgdw", node={"own": "dict"})
store.store(group="callbacks", name="default", node=Callbacks)


@hydra.main(version_base="1.3", config_path="conf", config_name="app")
def main(cfg: DictConfig) -> None:
    print("JOB " + json.dumps([OmegaConf.to_container(cfg, resolve=True), "lightning_wd" in sys.modules]))


if __name__ == "__main__":
    main()
