"""A stranger's Hydra app with its own LightningModule, run outside the repository."""

from __future__ import annotations

import json
import warnings

import hydra
import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import lightning_wd as wd

warnings.filterwarnings("ignore", module="lightning")


class Lit(L.LightningModule):
    def __init__(self, optimizer=None, lr_scheduler=None):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return wd.configure_optimizers(self, self.hparams.optimizer, self.hparams.lr_scheduler)  # type: ignore[attr-defined]


@hydra.main(version_base="1.3", config_path="conf", config_name="app")
def main(cfg: DictConfig) -> None:
    node = cfg.model.optimizer if "model" in cfg else cfg.optimizer
    model = Lit(hydra.utils.instantiate(node))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(32, 4)), batch_size=8)
    trainer = L.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(model, data)
    optimizer = trainer.optimizers[0]
    group = {key: optimizer.param_groups[0].get(key) for key in ("name", "style", "lr", "weight_decay", "own")}
    mask = {"base": node.mask.base, "rules": OmegaConf.to_container(node.mask.rules)}
    folder = OmegaConf.create({"is": "${lightning_wd.run_dir:}"})["is"] == HydraConfig.get().runtime.output_dir
    print(
        "RESULT "
        + json.dumps({"class": type(optimizer).__name__, **group, "file": wd.__file__, **mask, "folder": folder})
    )


if __name__ == "__main__":
    main()
