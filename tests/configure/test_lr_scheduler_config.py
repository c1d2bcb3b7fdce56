"""Settings of schedules that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.lit import ADAMW, Lit
from torch.optim import lr_scheduler as torch_schedulers

import lightning_wd as wd
from lightning_wd.configure import configure_optimizers


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("warmup_cosin", ["lr_scheduler 'warmup_cosin'", "nearest: 'warmup_cosine'"]),
        ("StepL", ["nearest: 'torch.optim.lr_scheduler.StepLR'"]),
        ("os.system", ["lr_scheduler 'os.system' is not a schedule of this package"]),
        ({"name": "wsd", "warmup": 3}, ["lr_scheduler 'wsd' has no key 'warmup'", "nearest: 'warmup_steps'"]),
        ({"name": "wsd", "warmup_steps": 3.5}, ["a whole number of steps, or a fraction of the run below 1"]),
        ({"name": "wsd", "min_lr_factor": 2}, ["lr_scheduler.min_lr_factor must be a number >= 0 and <= 1 but got 2"]),
        (
            {"name": "wsd", "decay_shape": "one_minus_sqr"},
            ["decay_shape 'one_minus_sqr'", "lr_scheduler.decay_shape=one_m"],
        ),
        ({"name": "warmup_linear", "decay_shape": "cosine"}, ["lr_scheduler 'warmup_linear' has no key 'decay_shape'"]),
        ({"name": "StepLR", "step": 3}, ["lr_scheduler StepLR has no key 'step'", "nearest: 'step_size'"]),
        ({"name": "StepLR"}, ["lr_scheduler StepLR cannot be built", "fix: write lr_scheduler.step_size=<value>"]),
        ({"name": "wsd", "interval": "steps"}, ["lr_scheduler.interval 'steps' is unknown", "nearest: 'step'"]),
        ({"name": ["wsd"]}, ["lr_scheduler ['wsd'] is not a schedule"]),
        ({"name": "wsd", "strict": "no"}, ["lr_scheduler.strict must be true or false but got 'no'"]),
        ({"name": "wsd", "monitor": 5}, ["lr_scheduler.monitor must be a metric's name but got 5"]),
        (
            {"scheduler": lambda optimizer: None, "inteval": "step"},
            ["lr_scheduler has no key 'inteval'", "nearest: 'interval'"],
        ),
        ({"name": "OneCycleLR", "max_lr": []}, ["lr_scheduler.max_lr is an empty list"]),
        ({"name": "StepLR", "step_size": "abc"}, ["lr_scheduler.step_size must be a number > 0 but got 'abc'"]),
        ({"name": "StepLR", "step_size": 0}, ["lr_scheduler.step_size must be a number > 0 but got 0"]),
        (
            lambda optimizer: torch_schedulers.OneCycleLR(optimizer, max_lr=0.5, total_steps=10),
            ["sets its own peak learning rate", "functools.partial(OneCycleLR, max_lr=...)"],
        ),
        ({"name": "wsd", "frequency": 0}, ["lr_scheduler.frequency must be a whole number >= 1 but got 0"]),
    ],
)
def test_schedule_settings_refused(config: Any, words: list[str]) -> None:
    with pytest.raises(wd.ConfigError) as caught:
        configure_optimizers(Lit(), ADAMW, config, total_steps=10)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_momentum_that_no_schedule_can_drive_is_to_be_left_alone() -> None:
    with pytest.raises(wd.ConfigError, match=r"cannot be built: optimizer must(?s:.*)fix: write lr_scheduler\.cycle_m"):
        configure_optimizers(Lit(), {"name": "adagradw"}, {"name": "OneCycleLR", "max_lr": 0.1}, total_steps=10)
