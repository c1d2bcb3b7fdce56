"""The cycles of warm restarts, as callbacks read them off a run."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch.optim import Optimizer

from lightning_wd.configure.budget import run_steps
from lightning_wd.configure.lr_schedule import LRSchedule
from lightning_wd.errors import ConfigError, as_typed
from lightning_wd.optimizers.param_groups import as_float, group_names

__all__ = ["cycle_steps", "resolved_steps", "restarts_of"]


def restarts_of(trainer: L.Trainer, needed_by: str, optimizer: Optimizer | None = None) -> Any:
    """Return Lightning's entry of the run's ``cosine_restarts`` schedule, that of ``optimizer`` where one is given."""
    entries = trainer.lr_scheduler_configs
    for entry in entries:
        schedule = entry.scheduler
        restarts = isinstance(schedule, LRSchedule) and schedule.shape == "cosine_restarts"
        if restarts and optimizer in (None, schedule.optimizer):
            return entry
    raise ConfigError(
        f"{needed_by} follows the cycles of lr_scheduler=cosine_restarts, which is missing.",
        found=", ".join(type(entry.scheduler).__name__ for entry in entries) or "no lr_scheduler",
        fix="write lr_scheduler=cosine_restarts, or leave out the callback",
    )


def resolved_steps(optimizer: Optimizer) -> int:
    """Return the optimizer steps that the normalized amount was resolved for; the module may have set them."""
    config = getattr(optimizer, "decay_config", None)
    if config is None or config.decay.normalized is None:
        with as_typed(getattr(optimizer, "typed", {})):
            raise ConfigError(
                "DecaySchedule shape 'restarts' needs a normalized amount, which it computes for each cycle.",
                found=f"{type(optimizer).__name__}, groups {', '.join(group_names([optimizer])[0])}",
                fix="write optimizer/decay=normalized (optimizer.decay.normalized=0.05)",
            )
    resolved = as_float(optimizer.defaults["weight_decay"])
    return round((config.decay.coefficient(as_float(optimizer.defaults["lr"]), 1) / resolved) ** 2) if resolved else 1


def cycle_steps(trainer: L.Trainer, optimizer: Optimizer, *, first: bool = False) -> float:
    """Return the optimizer steps of the current cycle of warm restarts, or of the first."""
    entry = restarts_of(trainer, "DecaySchedule shape 'restarts'", optimizer)
    _, _, length = entry.scheduler.cycle(0 if first else entry.scheduler.last_epoch)
    per_epoch = run_steps(trainer)[1] if entry.interval == "epoch" else 1
    return float(length * entry.frequency * (per_epoch or 1))
