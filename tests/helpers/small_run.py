"""A small module, its data and its trainer, for the tests of callbacks: 5 batches an epoch, dropout, restorable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from data.loader import Tensors, train_loader
from step_seed import StepSeed
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_wd as wd

BATCHES = 5


class Data(L.LightningDataModule):
    """40 rows of noise to regress on, 8 in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.hparams.update(batch_size=8, num_workers=0)
        generator = torch.Generator().manual_seed(0)
        self.rows = Tensors(torch.randn(40, 6, generator=generator), torch.randn(40, 3, generator=generator))

    def train_dataloader(self) -> DataLoader[Any]:
        return train_loader(self, self.rows)


class Net(L.LightningModule):
    """A backbone (Linear, LayerNorm, ReLU, Dropout) and a head."""

    def __init__(self, optimizer: Any = None, lr_scheduler: Any = None) -> None:
        super().__init__()
        self.wanted = optimizer, lr_scheduler
        torch.manual_seed(1)
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.head(self.backbone(x)), y)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, *self.wanted)


class TwoOptimizers(L.LightningModule):
    """Two Linears under manual optimization, an optimizer each, which steps `repeats` times a batch."""

    repeats = (1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.nets = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for times, net, optimizer in zip(self.repeats, self.nets, self.optimizers(), strict=True):
            for _ in range(times):
                optimizer.zero_grad()
                self.manual_backward(net(batch[0]).square().mean())
                optimizer.step()

    def configure_optimizers(self) -> Any:
        return [wd.configure_optimizers(net, "adamw")["optimizer"] for net in self.nets]


class DecaysUsed(L.Callback):
    """The weight_decay of every group at the moment each step reads it."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(
                lambda stepped, args, kwargs: self.seen.append([g["weight_decay"] for g in stepped.param_groups])
            )


class CrashError(Exception):
    """The crash of a run."""


class CrashAfter(L.Callback):
    """Save a checkpoint when a number of optimizer steps is done, and crash as the next one begins."""

    def __init__(self, steps: int, path: Path) -> None:
        self.steps, self.path = steps, path

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.steps and not self.path.exists():
            trainer.save_checkpoint(self.path)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if self.path.exists():
            raise CrashError


def make_trainer(folder: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    """Return a quiet trainer on the CPU whose folder is ``folder``."""
    defaults = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(callbacks=[*callbacks, StepSeed()], default_root_dir=folder, **{**defaults, **settings})


def fit(module: L.LightningModule, folder: Path, *callbacks: L.Callback, ckpt_path: Any = None, **kw: Any) -> L.Trainer:
    """Fit a module on :class:`Data`; return its trainer."""
    L.seed_everything(7, verbose=False)
    trainer = make_trainer(folder, *callbacks, **kw)
    trainer.fit(module, Data(), ckpt_path=ckpt_path)
    return trainer
