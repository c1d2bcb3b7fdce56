"""Hydra search-path plugin: the config groups of this package in every Hydra app of the environment.

The app's own search path comes first, so an ``optimizer/sgdw.yaml`` of the app shadows ours.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

__all__ = ["SEED_AT_START", "LightningWDSearchPathPlugin", "conf_dir"]

# `seed_everything` writes these; when a distributed job ends, they go back to what they were before any job.
SEED_AT_START = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}


def conf_dir() -> Path:
    """Return the folder of the pack: inside the package in a wheel, beside it in an editable install."""
    package = Path(__file__).resolve().parent
    wheel = package / "conf"
    return wheel if wheel.is_dir() else package.parent / "conf"


def _run_dir() -> str:
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().runtime.output_dir) if HydraConfig.initialized() else "."


# `${hydra:runtime.output_dir}` fails where a group is composed outside a Hydra app; this takes the working directory.
OmegaConf.register_new_resolver("lightning_wd.run_dir", _run_dir, replace=True)


def _octaves(exponents: Any) -> str:
    from lightning_wd.runs.sweep import octaves

    return octaves(exponents)


# `${lightning_wd.octaves:[-3,-1]}` is `0.125,0.25,0.5`, the choices of a sweep on a log scale
OmegaConf.register_new_resolver("lightning_wd.octaves", _octaves, replace=True)


class LightningWDSearchPathPlugin(SearchPathPlugin):
    """Append the pack's folder to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append ``file://<folder of the pack>`` with provider ``lightning_wd``."""
        search_path.append(provider="lightning_wd", path=f"file://{conf_dir().as_posix()}")
