"""A second ``fit`` on one trainer has only the steps that are left.

https://github.com/Lightning-AI/pytorch-lightning/issues/9636 (pytorch-lightning#9636; also #11425)

There: after ``trainer.fit_loop.max_epochs`` is raised, a schedule made for the whole run ends half way. Here: schedule
and decay count the steps of this fit, and end together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from helpers.lit import Lit, trainer
from helpers.small_run import DecaysUsed

import lightning_wd as wd


@pytest.mark.parametrize("lr_scheduler", ["warmup_cosine", "wsd", {"name": "OneCycleLR", "max_lr": 1e-3}])
def test_schedule_and_decay_end_together(lr_scheduler: Any, tmp_path: Path) -> None:
    module = Lit({"lr": 1e-3, "weight_decay": 1e-4}, lr_scheduler)
    decays = DecaysUsed()
    made = trainer(tmp_path, callbacks=[wd.DecaySchedule("linear", end=0.0), decays])
    made.fit(module)
    first = [row[0] for row in decays.seen]
    made.fit_loop.max_epochs = 4
    made.fit(module)
    second = [row[0] for row in decays.seen[len(first) :]]
    assert first == pytest.approx([1e-4 * (1 - t / 16) for t in range(16)])
    assert second == first
    group, scheduler = made.optimizers[0].param_groups[0], cast("Any", made.lr_scheduler_configs[0].scheduler)
    assert scheduler.last_epoch == 16
    assert group["lr"] == pytest.approx(0.0 if isinstance(lr_scheduler, str) else scheduler.get_last_lr()[0])
    assert getattr(scheduler, "total_steps", None) or scheduler.settings["total_steps"] == 16


def test_an_amount_by_the_run_is_that_of_this_fit(tmp_path: Path) -> None:
    module = Lit({"lr": 1e-3, "decay": {"timescale_runs": 2}})
    made = trainer(tmp_path)
    made.fit(module)
    made.fit_loop.max_epochs = 3
    made.fit(module)
    assert made.optimizers[0].param_groups[0]["weight_decay"] == pytest.approx(1 / (1e-3 * 2 * 8))
