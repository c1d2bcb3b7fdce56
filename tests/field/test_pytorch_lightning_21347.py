"""SWA raises ``max_epochs`` for an epoch in which no weight is trained.

https://github.com/Lightning-AI/pytorch-lightning/issues/21347 (pytorch-lightning#21347)

There: with batch norm, StochasticWeightAveraging adds an epoch that only collects statistics, and whatever counts steps
by ``max_epochs`` counts it. Here: schedules end at the last step that trains.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.lit import Lit, fit
from helpers.small_run import DecaysUsed
from lightning.pytorch.callbacks import StochasticWeightAveraging

import lightning_wd as wd


def test_the_decay_ends_at_the_last_step_that_trains(tmp_path: Path) -> None:
    module = Lit({"lr": 1e-3, "weight_decay": 1e-4, "decay": {"style": "independent"}})
    module.net = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    decays, swa = DecaysUsed(), StochasticWeightAveraging(1e-3, swa_epoch_start=1)
    fit(module, tmp_path, callbacks=[swa, wd.DecaySchedule("linear", end=0.0), decays])
    used = [row[0] for row in decays.seen]
    assert used[:16] == pytest.approx([1e-4 * (1 - t / 16) for t in range(16)])
