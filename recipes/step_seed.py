"""Per-step seeding, so that a resumed run draws the same random numbers as one that was never interrupted.

A checkpoint holds no generator states, so the dropout and augmentation of a resumed run would differ from those of the
unbroken run; and processes with the same seed would all draw the same noise. So each step's noise is seeded from (the
run's seed, the batches seen so far, the rank).
"""

from __future__ import annotations

import os
from typing import Any

import lightning as L
import numpy as np
import torch


def mix(*numbers: int) -> int:
    """Return 32 well-mixed bits of some non-negative integers.

    >>> mix(0, 1) == mix(0, 1), mix(0, 1) == mix(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def run_seed() -> int:
    """Return the seed given to ``lightning.seed_everything``, or 0; Lightning's own samplers read it here too."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


class StepSeed(L.Callback):
    """Seed torch's global generators at the start of each training batch: for dropout and shake-shake."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed = mix(run_seed(), trainer.fit_loop.total_batch_idx, trainer.global_rank)
        # not torch.manual_seed: it formats a stack trace for each absent accelerator, half a millisecond
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(seed)
