"""How many optimizer steps a run and an epoch take, where that can be known: the one place that asks the trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch.callbacks import Timer

from lightning_wd._private import attached_trainer, forget_loader
from lightning_wd.errors import ConfigError, number

__all__ = ["Budget", "run_steps"]


class Budget:
    """The optimizer steps of a run and of an epoch, at the global batch: the caller's, else the trainer's.

    The trainer is asked when they are first needed. World size, gradient accumulation, ``limit_train_batches`` and
    ``max_steps`` count, through ``trainer.estimated_stepping_batches``. Errors say ``where_to_pass`` the steps instead.
    """

    def __init__(
        self,
        module: Any,
        total_steps: int | None = None,
        steps_per_epoch: float | None = None,
        *,
        where_to_pass: str = "configure_optimizers(self, ..., total_steps=<optimizer steps of the run>, "
        "steps_per_epoch=<optimizer steps of an epoch>)",
    ) -> None:
        self._module, self._where_to_pass = module, where_to_pass
        self._total = None if total_steps is None else int(number("total_steps", total_steps, minimum=1, whole=True))
        self._per_epoch = (
            None if steps_per_epoch is None else number("steps_per_epoch", steps_per_epoch, exclusive=True)
        )

    def total_steps(self, needed_by: str) -> int:
        """Return the optimizer steps of the run, or raise a ConfigError that says why they are unknown."""
        if self._total is None:
            trainer = self._trainer(needed_by)
            self._total = _total(trainer)
            if self._total is None:
                timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)
                limit = "max_time" if timed else "no limit, or data whose length is unknown"
                raise self._unknown(needed_by, f"the run is bounded by {limit}", "set trainer.max_steps, or ")
        return self._total

    def steps_per_epoch(self, needed_by: str) -> float:
        """Return the optimizer steps of one epoch, or raise a ConfigError that says why they are unknown."""
        if self._per_epoch is None:
            self._per_epoch = _per_epoch(self._trainer(needed_by))
            if self._per_epoch is None:
                why = "the length of an epoch is unknown (iterable data)"
                raise self._unknown(needed_by, why, "set trainer.limit_train_batches to a whole number, or ")
        return self._per_epoch

    def _trainer(self, needed_by: str) -> Any:
        if why := _why_unknown(self._module):
            raise self._unknown(needed_by, why)
        return attached_trainer(self._module)

    def _unknown(self, needed_by: str, why: str, otherwise: str = "") -> ConfigError:
        return ConfigError(
            f"{needed_by} needs the number of optimizer steps, which is not known here.",
            found=why,
            fix=f"{otherwise}pass them: {self._where_to_pass}",
        )


def run_steps(trainer: Any) -> tuple[int | None, int | None]:
    """Return the optimizer steps of the whole run and of an epoch; None where a fitting trainer does not know them."""
    if _why_unknown(trainer.lightning_module):
        return None, None
    return _total(trainer), _per_epoch(trainer)


def _why_unknown(module: Any) -> str:
    """Return why no trainer can tell how many steps this module will take; '' where one can."""
    trainer = attached_trainer(module)
    if trainer is None:
        return "the module is not attached to a Trainer"
    if not module.automatic_optimization:
        return "the module steps its optimizers itself (manual optimization)"
    if any(getattr(callback, "scheduling", {0: 0}).keys() != {0} for callback in trainer.callbacks):
        return "gradient accumulation changes during the run"
    return ""


def _total(trainer: Any) -> int | None:
    steps = _count(trainer, lambda: trainer.estimated_stepping_batches)
    return int(steps) if math.isfinite(steps) and steps > 0 else None


def _per_epoch(trainer: Any) -> int | None:
    def batches() -> float:
        if trainer.train_dataloader is None:
            trainer.fit_loop.setup_data()
        return float(trainer.num_training_batches)

    count = _count(trainer, batches)
    return math.ceil(count / trainer.accumulate_grad_batches) if math.isfinite(count) and count > 0 else None


def _count(trainer: Any, ask: Callable[[], float]) -> float:
    """Return what ``ask`` reads off the training data, which it may load."""
    early = trainer.train_dataloader is None
    steps = ask()
    if early and (trainer.ckpt_path or trainer.strategy.restore_checkpoint_after_setup):
        # Lightning restores a loader's position when it makes the loader, after it has read the checkpoint's loops.
        # This loader was made before that, only to be counted.
        forget_loader(trainer)
    return steps
