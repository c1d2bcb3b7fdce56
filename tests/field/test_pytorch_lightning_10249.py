"""A module's own ``lr_scheduler_step`` steps a schedule that it was not written for.

https://github.com/Lightning-AI/pytorch-lightning/issues/10249 (pytorch-lightning#10249)
https://github.com/Lightning-AI/pytorch-lightning/issues/5555 (the same for ``optimizer_step``)

There: hooks that were written for one schedule step another one wrongly.
Here: with OptimizerOverride and with ``wd.configure_optimizers`` a warning names the method.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_run import Net, fit

import lightning_wd as wd

SCHEDULE = {"name": "warmup_cosine", "warmup_steps": 3}


class OwnScheduleStep(Net):
    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step by the epoch, as schedules of timm want it."""
        scheduler.last_epoch = self.current_epoch


class OwnOptimizerStep(Net):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Warm up by hand."""
        for group in optimizer.param_groups:
            group["lr"] = 1e-6
        optimizer.step(closure=optimizer_closure)


class Foreign(OwnScheduleStep):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters())


def warned(module: Net, tmp_path: Path, *callbacks: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, tmp_path, *callbacks, max_epochs=1)
    return [str(one.message) for one in caught if "replaces Lightning's" in str(one.message)]


@pytest.mark.parametrize("override", [False, True])
def test_a_step_of_the_schedule(override: bool, tmp_path: Path) -> None:
    module = Foreign() if override else OwnScheduleStep("adamw", SCHEDULE)
    callbacks = [wd.OptimizerOverride("adamw", SCHEDULE)] if override else []
    assert warned(module, tmp_path, *callbacks) == [
        f"{type(module).__name__}.lr_scheduler_step replaces Lightning's, and may step lr_scheduler otherwise than "
        "configured.\n"
        "  fix: remove it where it does what Lightning's own does: scheduler.step(), or scheduler.step(metric) for "
        "ReduceLROnPlateau"
    ]


def test_a_step_of_the_optimizer(tmp_path: Path) -> None:
    assert warned(OwnOptimizerStep("adamw"), tmp_path) == [
        "OwnOptimizerStep.optimizer_step replaces Lightning's, and may skip steps or set a learning rate of its own.\n"
        "  fix: remove it where it only calls optimizer.step(closure=optimizer_closure), and leave learning rates to "
        "lr_scheduler"
    ]


def test_without_a_schedule_its_step_is_no_cause_to_warn(tmp_path: Path) -> None:
    assert warned(OwnScheduleStep("adamw"), tmp_path) == []
    assert warned(Net("adamw", SCHEDULE), tmp_path) == []
