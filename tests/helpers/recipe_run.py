"""Small runs with a LastCheckpoint, for the tests of what interrupts a run, and what they leave behind."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
import torch
from checkpoints import LastCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Eventful(BoringModel):
    """Does something at one training batch, or at the validation of one epoch."""

    def __init__(self, at_batch: int = -1, at_validation: int = -1, event: Any = None) -> None:
        super().__init__()
        self.at_batch, self.at_validation, self.event = at_batch, at_validation, event

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.fit_loop.total_batch_idx == self.at_batch:
            self.event()
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == self.at_validation:
            self.event()
        return super().validation_step(batch, batch_idx)


def fit(model: BoringModel, folder: Path) -> L.Trainer:
    """Train for two epochs of four steps with a LastCheckpoint in a folder."""
    last = LastCheckpoint(folder)
    trainer = L.Trainer(max_epochs=2, limit_train_batches=4, limit_val_batches=1, callbacks=[last], **QUIET)
    trainer.fit(model)
    return trainer


def rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a folder's metrics.csv."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def steps_saved(folder: Path, name: str = "last") -> int:
    """Return the number of optimizer steps of a folder's checkpoint."""
    return int(torch.load(folder / f"{name}.ckpt", weights_only=True)["global_step"])
