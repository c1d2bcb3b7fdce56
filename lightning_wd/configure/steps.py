"""How many optimizer steps a run takes, where that can be known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning_wd.errors import ConfigError, explain

__all__ = ["Budget"]


class Budget:
    """The optimizer steps of a run and of an epoch, at the global batch, read from the trainer when first needed.

    World size, gradient accumulation, ``limit_train_batches`` and ``max_steps`` count, through
    ``trainer.estimated_stepping_batches``. What the caller gives wins.

    Args:
        module: the module that is configured; its trainer is asked where it has one.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one epoch.
    """

    def __init__(self, module: Any, total_steps: int | None = None, steps_per_epoch: float | None = None) -> None:
        self._module = module
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch

    def total_steps(self, needed_by: str) -> int:
        """Return the optimizer steps of the run, or raise a ConfigError that says why they are unknown."""
        if self._total_steps is None:
            trainer = self._trainer(needed_by)
            steps = _count(trainer, lambda: trainer.estimated_stepping_batches)
            if not math.isfinite(steps) or steps <= 0:
                limit = "max_time" if _has_timer(trainer) else "no limit, or data whose length is unknown"
                raise self._unknown(needed_by, f"the run is bounded by {limit}", "trainer.max_steps")
            self._total_steps = int(steps)
        return self._total_steps

    def steps_per_epoch(self, needed_by: str) -> float:
        """Return the optimizer steps of one epoch, or raise a ConfigError that says why they are unknown."""
        if self._steps_per_epoch is None:
            trainer = self._trainer(needed_by)
            batches = _count(trainer, lambda: _batches(trainer))
            if not math.isfinite(batches) or batches <= 0:
                why = "the length of an epoch is unknown (iterable data)"
                raise self._unknown(needed_by, why, "trainer.limit_train_batches to a whole number")
            self._steps_per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        return self._steps_per_epoch

    def _trainer(self, needed_by: str) -> Any:
        """Return the trainer, if it can tell the number of optimizer steps."""
        trainer = getattr(self._module, "_trainer", None)
        if trainer is None:
            raise self._unknown(needed_by, "the module is not attached to a Trainer")
        if not self._module.automatic_optimization:
            raise self._unknown(needed_by, "the module steps its optimizers itself (manual optimization)")
        if any(getattr(callback, "scheduling", {0: 0}).keys() != {0} for callback in trainer.callbacks):
            raise self._unknown(needed_by, "gradient accumulation changes during the run")
        return trainer

    @staticmethod
    def _unknown(needed_by: str, why: str, setting: str | None = None) -> ConfigError:
        return ConfigError(
            explain(
                f"{needed_by} needs the number of optimizer steps, which is not known here.",
                found=why,
                fix=(f"set {setting}, or " if setting else "")
                + "pass them: configure_optimizers(self, ..., total_steps=<optimizer steps of the run>, "
                "steps_per_epoch=<optimizer steps of an epoch>)",
            )
        )


def _count(trainer: Any, ask: Callable[[], float]) -> float:
    """Return what ``ask`` reads off the training data, which it may load."""
    early = trainer.train_dataloader is None
    number = ask()
    resumes = trainer.ckpt_path or trainer.strategy.restore_checkpoint_after_setup
    if early and resumes:
        # Lightning restores a loader's position only as it makes the loader, which is to be after the checkpoint's
        # loops are read: this one, made too early for that, was only to be counted.
        trainer.fit_loop._combined_loader = None
    return number


def _batches(trainer: Any) -> float:
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    return float(trainer.num_training_batches)


def _has_timer(trainer: Any) -> bool:
    return any(type(callback).__name__ == "Timer" for callback in trainer.callbacks)
