"""``RestartSnapshot``: the weights at the end of each cycle of warm restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from lightning_wd.configure.lr_scheduler import LRSchedule
from lightning_wd.errors import ConfigError, explain
from lightning_wd.schedules import restart_cycle

__all__ = ["RestartSnapshot"]


class RestartSnapshot(Checkpoint):
    """Save ``cycle_<i>.ckpt`` as cycle i of ``lr_scheduler=cosine_restarts`` ends, before the restart.

    At the end of a cycle the learning rate is at its lowest: these are the solutions that AdamWR and SGDWR offer at any
    time (1711.05101, App. B.2; 1608.03983), and the papers take the newest as the best so far. No metric is looked at:
    validation comes after the restart. Lightning's ``ModelCheckpoint`` with a ``monitor`` keeps the best by a metric
    (``best.ckpt`` in the recipe). A cycle that the run does not finish has no snapshot.

    Args:
        dirpath: the folder; None for ``checkpoints`` in the trainer's ``default_root_dir``.

    Raises:
        ConfigError: when training starts, without ``lr_scheduler=cosine_restarts``.
    """

    def __init__(self, dirpath: str | Path | None = None) -> None:
        super().__init__()
        self.dirpath = None if dirpath is None else Path(dirpath)
        self._cycle = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._cycle = _cycle(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        cycle = _cycle(trainer)  # of the next step: the schedule has stepped already
        if cycle > self._cycle:
            folder = self.dirpath or Path(trainer.default_root_dir) / "checkpoints"
            trainer.save_checkpoint(folder / f"cycle_{self._cycle}.ckpt")
            self._cycle = cycle


def _cycle(trainer: L.Trainer) -> int:
    for entry in trainer.lr_scheduler_configs:
        schedule = entry.scheduler
        if isinstance(schedule, LRSchedule) and schedule.shape == "cosine_restarts":
            first, mult = int(schedule.settings["first_cycle_steps"]), schedule.settings["cycle_mult"]
            return restart_cycle(schedule.last_epoch, first_cycle_steps=first, cycle_mult=mult)[0]
    raise ConfigError(
        explain(
            "RestartSnapshot saves the ends of cycles, and this run has none.",
            found=", ".join(type(entry.scheduler).__name__ for entry in trainer.lr_scheduler_configs) or "no schedule",
            fix="write lr_scheduler=cosine_restarts, or remove the callback",
        )
    )
