"""A Hydra app that asks for the groups; hydra_app.yaml is its primary config.

python docs/examples/hydra_app.py optimizer=sgdw optimizer.lr=0.05
python docs/examples/hydra_app.py -m optimizer=adamw,sgdw,adam_l2
"""

from __future__ import annotations

from typing import Any

import hydra
import lightning as L
from lightning.pytorch.demos.boring_classes import BoringModel
from omegaconf import DictConfig

import lightning_wd as wd


class Lit(BoringModel):
    def __init__(self, optimizer: Any = None, lr_scheduler: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, self.hparams["optimizer"], self.hparams["lr_scheduler"])


@hydra.main(config_path=".", config_name="hydra_app", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Train for a few steps, and print the groups."""
    model = Lit(hydra.utils.instantiate(cfg.optimizer), hydra.utils.instantiate(cfg.lr_scheduler))
    trainer = L.Trainer(max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(model)
    for group in trainer.optimizers[0].param_groups:
        print(type(trainer.optimizers[0]).__name__, group["name"], group["style"], group["weight_decay"])


if __name__ == "__main__":
    main()
