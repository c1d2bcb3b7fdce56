"""``RestartSnapshot``: the weights at the end of each cycle of warm restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from lightning_wd._lightning import Checkpoint
from lightning_wd.callbacks.restarts import restarts_of
from lightning_wd.errors import checked_keywords

__all__ = ["RestartSnapshot"]


@checked_keywords()
class RestartSnapshot(Checkpoint):
    """Save ``cycle_<i>.ckpt`` as cycle i of ``lr_scheduler=cosine_restarts`` ends, before the restart.

    The learning rate is lowest at the end of a cycle. AdamWR and SGDWR (1711.05101, App. B.2; 1608.03983) take the
    newest of these snapshots as the best so far. No metric is compared, because validation runs after the restart: for
    the best by a metric use Lightning's ``ModelCheckpoint`` (``best.ckpt`` in the recipe). A cycle that the run does
    not finish has no snapshot.

    Args:
        dirpath: the folder; None is ``checkpoints`` in the trainer's ``default_root_dir``.

    Raises:
        ConfigError: when training starts, without ``lr_scheduler=cosine_restarts``.
    """

    def __init__(self, dirpath: str | Path | None = None) -> None:
        super().__init__()
        self.dirpath = None if dirpath is None else Path(dirpath)
        self._cycle = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._cycle = self._next(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        cycle = self._next(trainer)
        if cycle > self._cycle:
            folder = self.dirpath or Path(trainer.default_root_dir) / "checkpoints"
            trainer.save_checkpoint(folder / f"cycle_{self._cycle}.ckpt")
            self._cycle = cycle

    @staticmethod
    def _next(trainer: L.Trainer) -> int:
        """Return the cycle of the next step: after a batch the schedule has stepped already."""
        schedule = restarts_of(trainer, "RestartSnapshot").scheduler
        return int(schedule.cycle(schedule.last_epoch)[0])
