"""A batch-size finder changes how many steps an epoch takes, after the optimizer was configured.

https://github.com/Lightning-AI/pytorch-lightning/issues/18394 (pytorch-lightning#18394)

There: ``estimated_stepping_batches`` was read for the schedule at the batch size that the finder starts from. Here: the
steps are read again at the first step, so schedule, amount and DecaySchedule end where the run ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.lit import Lit, fit
from helpers.small_run import DecaysUsed
from lightning.pytorch.callbacks import BatchSizeFinder

import lightning_wd as wd


class Growing(Lit):
    def __init__(self, optimizer: Any, lr_scheduler: Any) -> None:
        super().__init__(optimizer, lr_scheduler)
        self.batch_size = 1

    def train_dataloader(self) -> Any:
        rows: Any = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader(rows, self.batch_size)


def test_the_schedule_and_the_amount_are_those_of_the_found_batch(tmp_path: Path) -> None:
    module = Growing({"lr": 1e-3, "decay": {"timescale_epochs": 2}}, "warmup_cosine")
    finder, decays = BatchSizeFinder(init_val=1, steps_per_trial=1, max_trials=4), DecaysUsed()
    trainer = fit(module, tmp_path, callbacks=[finder, wd.DecaySchedule("linear", end=0.0), decays], max_epochs=4)
    assert (module.batch_size, trainer.global_step) == (8, 40)
    schedule: Any = trainer.lr_scheduler_configs[0].scheduler
    assert schedule.settings == {"total_steps": 40, "warmup_steps": 2, "min_lr_factor": 0.0}
    assert schedule.last_epoch == 40
    group = trainer.optimizers[0].param_groups[0]
    assert group["base_weight_decay"] == pytest.approx(50.0)
    assert group["lr"] == pytest.approx(0.0)
    assert [row[0] for row in decays.seen] == pytest.approx([50 * (1 - t / 40) for t in range(40)])
