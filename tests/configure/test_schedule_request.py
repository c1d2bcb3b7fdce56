"""Every form a user may give of a schedule, and the steps it counts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.lit import ADAMW, Lit, fit, lrs
from torch.optim import lr_scheduler as torch_schedulers

import lightning_wd as wd
from lightning_wd.configure import configure_optimizers
from lightning_wd.configure.lr_schedule import LRSchedule


def test_warmup_cosine_steps_each_optimizer_step(tmp_path: Path) -> None:
    module = Lit(ADAMW, {"name": "warmup_cosine", "warmup_steps": 4, "min_lr_factor": 0.5})
    seen: list[float] = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            seen.append(optimizer.param_groups[0]["lr"])

    made = fit(module, tmp_path, callbacks=[Watch()])
    config = made.lr_scheduler_configs[0]
    assert (config.interval, config.frequency) == ("step", 1)
    from lightning_wd.schedules import warmup_cosine

    expected = [0.01 * warmup_cosine(t, total_steps=16, warmup_steps=4, min_lr_factor=0.5) for t in range(16)]
    assert seen == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("none", None),
        (None, None),
        ({}, None),
        ("constant", [1] * 6),
        ({"name": "constant", "warmup_steps": 0.2}, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ({"name": "wsd", "warmup_steps": 0, "decay_steps": 0.4}, [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        (
            {"name": "wsd", "warmup_steps": 0, "decay_steps": 4, "decay_shape": "one_minus_sqrt"},
            [1, 1, 1, 1, 1, 1, 1, 0.5, 0.2928932, 0.1339746],
        ),
        ({"name": "warmup_linear", "warmup_steps": 0.2, "min_lr_factor": 0.5}, [1 / 3, 2 / 3, 1, 0.9375, 0.875]),
        ({"name": "warmup_one_minus_sqrt", "warmup_steps": 2}, [1 / 3, 2 / 3, 1, 0.6464466, 0.5]),
        ({"name": "cosine_restarts", "first_cycle_epochs": 1}, [1, 0.5, 1, 0.853553, 0.5, 0.146447, 1]),
        ({"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2, "gamma": 0.5}, [1, 1, 0.5, 0.5, 0.25]),
        ({"name": "StepLR", "step_size": 2, "gamma": 0.5, "interval": "epoch"}, [1, 1, 0.5, 0.5, 0.25]),
        (functools.partial(torch_schedulers.StepLR, step_size=2, gamma=0.5), [1, 1, 0.5, 0.5, 0.25]),
        (lambda optimizer: torch_schedulers.ExponentialLR(optimizer, 0.5), [1, 0.5, 0.25]),
        ({"scheduler": functools.partial(torch_schedulers.StepLR, step_size=1, gamma=0.5)}, [1, 0.5, 0.25]),
    ],
)
def test_every_form_of_schedule(config: Any, expected: list[float] | None) -> None:
    built = configure_optimizers(Lit(), ADAMW, config, total_steps=10, steps_per_epoch=2)
    if expected is None:
        assert set(built) == {"optimizer"}
        return
    assert lrs(built, len(expected)) == pytest.approx([0.01 * eta for eta in expected], rel=1e-5)
    told = config["interval"] if isinstance(config, dict) and "interval" in config else "step"
    assert built["lr_scheduler"]["interval"] == told


def test_a_schedule_per_epoch_counts_epochs() -> None:
    config = {"name": "warmup_cosine", "warmup_steps": 0, "interval": "epoch"}
    built = configure_optimizers(Lit(), ADAMW, config, total_steps=40, steps_per_epoch=10)
    assert built["lr_scheduler"]["scheduler"].settings["total_steps"] == 4


def test_plateau_watches_a_metric(tmp_path: Path) -> None:
    config = {"name": "ReduceLROnPlateau", "patience": 0, "monitor": "train/loss", "threshold": 10.0, "mode": "max"}
    made = fit(Lit(ADAMW, config), tmp_path, max_epochs=3)
    assert made.lr_scheduler_configs[0].reduce_on_plateau
    assert made.lr_scheduler_configs[0].interval == "epoch"
    assert made.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.1**2)
    with pytest.raises(wd.ConfigError, match="needs the metric to watch"):
        configure_optimizers(Lit(), ADAMW, "ReduceLROnPlateau")


@pytest.mark.parametrize("scheduler", ["OneCycleLR", "CyclicLR"])
def test_a_schedule_with_its_own_peak_redefines_lr0(scheduler: str) -> None:
    """OneCycleLR writes max_lr/25 into lr and initial_lr: reckoned from that, decay would be 25 times too strong."""
    keywords: dict[str, Any] = {"max_lr": 0.5}
    if scheduler == "CyclicLR":
        keywords |= {"base_lr": 0.05, "step_size_up": 5}
    config = {
        "name": "adamw",
        "lr": 123.0,
        "decay": {"style": "independent"},
        "weight_decay": 0.25,
        "mask": {"rules": [{"name": "2.*", "lr_mult": 0.1}]},
    }

    def built() -> dict[str, Any]:
        return configure_optimizers(Lit().net, config, {"name": scheduler, **keywords}, total_steps=10)

    assert {g["name"]: g["base_lr"] for g in built()["optimizer"].param_groups} == {
        "decay": 0.5,
        "no_decay": 0.5,
        "decay_lr_x0.1": 0.05,
        "no_decay_lr_x0.1": 0.05,
    }
    peaks = [max(lrs(built(), 10, group)) for group in range(4)]
    assert peaks == pytest.approx([0.5, 0.5, 0.05, 0.05])


def test_a_list_of_peaks_is_one_for_each_group() -> None:
    build = functools.partial(configure_optimizers, Lit(), ADAMW, total_steps=10)
    built = build({"name": "OneCycleLR", "max_lr": [0.5, 0.25]})
    assert [g["base_lr"] for g in built["optimizer"].param_groups] == [0.5, 0.25]
    with pytest.raises(wd.ConfigError, match=r"max_lr has 3 entries for 2 parameter groups"):
        build({"name": "OneCycleLR", "max_lr": [1, 2, 3]})


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"name": "warmup_cosine", "frequency": 2}, 20),
        ({"name": "warmup_cosine", "interval": "epoch"}, 4),
        ({"name": "OneCycleLR", "max_lr": 1.0, "frequency": 2}, 20),
        ({"name": "OneCycleLR", "max_lr": 1.0, "interval": "epoch"}, 4),
    ],
)
def test_a_schedule_ends_with_the_run_whatever_its_clock(config: dict[str, Any], length: int) -> None:
    built = configure_optimizers(Lit(), ADAMW, config, total_steps=40, steps_per_epoch=10)
    scheduler = built["lr_scheduler"]["scheduler"]
    ours = isinstance(scheduler, LRSchedule)
    assert (scheduler.settings["total_steps"] if ours else scheduler.total_steps) == length


def test_normalized_under_restarts_says_how_to_follow_the_cycles() -> None:
    config = {"name": "adamw", "decay": {"style": "independent", "normalized": 0.05}}
    with pytest.warns(UserWarning, match=r"computed for the whole run[\s\S]*callbacks=decay_restarts"):
        configure_optimizers(Lit(), config, "cosine_restarts", total_steps=40, steps_per_epoch=10)


def sequential(optimizer: torch.optim.Optimizer) -> Any:
    warmup = torch_schedulers.LinearLR(optimizer, 0.1, total_iters=100)
    return torch_schedulers.SequentialLR(optimizer, [warmup, torch_schedulers.CosineAnnealingLR(optimizer, 5)], [100])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "warmup_cosine", "warmup_steps": 100}, "lr_scheduler 'warmup_cosine' warms up for 100 steps"),
        (
            {"name": "wsd", "warmup_steps": 5, "decay_steps": 6},
            "lr_scheduler 'wsd' warms up and decays for 11 steps.*write it as a fraction of the run",
        ),
        ({"name": "LinearLR", "total_iters": 20}, r"LinearLR warms up for 20 steps.*\n  fix: shorten its total_iters"),
        (sequential, "LinearLR warms up for 100 steps"),
        ({"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 100}, "OneCycleLR warms up for 30 steps.*leave out its"),
        (functools.partial(torch_schedulers.CyclicLR, base_lr=0.01, max_lr=0.1), "CyclicLR warms up for 2000 steps"),
        (
            {"name": "LinearLR", "total_iters": 3, "interval": "epoch"},
            "LinearLR warms up for 3 steps, but the run has 2",
        ),
        ({"name": "constant", "warmup_steps": 3, "interval": "epoch"}, "warms up for 3 steps, but the run has 2"),
    ],
)
def test_a_warm_up_longer_than_the_run_warns(config: Any, words: str) -> None:
    with pytest.warns(UserWarning, match=f"(?s){words}") as caught:
        configure_optimizers(Lit(), ADAMW, config, total_steps=10, steps_per_epoch=5)
    (message,) = [str(warning.message) for warning in caught]
    assert "the peak learning rate is never reached" in message


@pytest.mark.parametrize(
    "config",
    [
        {"name": "LinearLR", "total_iters": 9},
        {"name": "LinearLR", "start_factor": 1.0, "end_factor": 0.1, "total_iters": 99},  # no warm-up: it decays
        {"name": "OneCycleLR", "max_lr": 0.1, "pct_start": 1.0},
    ],
)
def test_a_warm_up_within_the_run_does_not_warn(config: Any) -> None:
    configure_optimizers(Lit(), ADAMW, config, total_steps=10, steps_per_epoch=5)  # warnings are errors here


def test_a_warm_up_is_no_reason_to_refuse_epochs_of_unknown_length() -> None:
    config = {"name": "LinearLR", "total_iters": 3, "interval": "epoch"}
    assert configure_optimizers(Lit(), ADAMW, config, total_steps=10)["lr_scheduler"]["interval"] == "epoch"


def test_a_built_scheduler_is_refused() -> None:
    other = torch.optim.SGD(Lit().parameters(), lr=1)
    with pytest.raises(wd.ConfigError, match="already built on another optimizer"):
        configure_optimizers(Lit(), ADAMW, torch_schedulers.ConstantLR(other))
    assert issubclass(LRSchedule, torch_schedulers.LRScheduler)
