"""How many optimizer steps a run takes, as far as its trainer knows."""

from __future__ import annotations

import math

import lightning as L

__all__ = ["run_steps"]


def run_steps(trainer: L.Trainer) -> tuple[int | None, int | None]:
    """Return the optimizer steps of the whole run and of an epoch; None where the trainer does not know them.

    It does not in manual optimization, with a schedule of gradient accumulation, without a limit in steps, or where
    the length of an epoch is unknown.
    """
    scheduled = any(getattr(callback, "scheduling", {0: 0}).keys() != {0} for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if scheduled or not trainer.lightning_module.automatic_optimization:
        return None, None
    total, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) and batches else None
    return (int(total) if math.isfinite(total) and total > 0 else None), per_epoch
