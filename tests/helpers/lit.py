"""A small LightningModule with its data, built by `configure_optimizers`, for the tests of what that builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_wd.configure import configure_optimizers

ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}


class Lit(L.LightningModule):
    """Linear, LayerNorm, Linear on random data; 8 batches an epoch unless `batches` says otherwise."""

    def __init__(self, optimizer: Any = None, lr_scheduler: Any = None, batches: int = 8, **steps: Any) -> None:
        super().__init__()
        self.save_hyperparameters("optimizer", "lr_scheduler", "batches")
        self.steps = steps
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.net(batch).square().mean()
        self.log("train/loss", loss, on_epoch=True)
        return loss

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        data: Any = torch.randn(4 * self.hparams["batches"], 4, generator=generator)
        return torch.utils.data.DataLoader(data, batch_size=4)

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self, self.hparams["optimizer"], self.hparams["lr_scheduler"], **self.steps)


class Endless(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        while True:
            yield torch.zeros(4)


def trainer(tmp_path: Path, **keywords: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 2, "enable_checkpointing": False, "accelerator": "cpu", "default_root_dir": tmp_path}
    return L.Trainer(**{**quiet, **defaults, **keywords})


def fit(module: Lit, tmp_path: Path, ckpt_path: str | None = None, **keywords: Any) -> L.Trainer:
    made = trainer(tmp_path, **keywords)
    made.fit(module, ckpt_path=ckpt_path)
    return made


def groups_of(optimizer: torch.optim.Optimizer) -> dict[str, list[str]]:
    return {group["name"]: list(group["param_names"]) for group in optimizer.param_groups}


def lrs(built: dict[str, Any], steps: int, group: int = 0) -> list[float]:
    """Return the learning rate of each step."""
    values = []
    for _ in range(steps):
        values.append(built["optimizer"].param_groups[group]["lr"])
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step()
    return values
