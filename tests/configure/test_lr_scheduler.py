"""Schedules: every form a user may give, the steps they count, and what a resumed one restores."""

from __future__ import annotations

import copy
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
from lightning_wd.configure.lr_scheduler import LRSchedule


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


def test_a_schedule_longer_than_the_run_warns() -> None:
    with pytest.warns(UserWarning, match="warms up and decays for 100 steps, but the run has 10"):
        configure_optimizers(Lit(), ADAMW, {"name": "warmup_cosine", "warmup_steps": 100}, total_steps=10)


# --- resume ---


def test_on_resume_of_the_schedule() -> None:
    def built(total: int, lr: float, on_resume: str = "checkpoint") -> dict[str, Any]:
        config = {**ADAMW, "lr": lr, "on_resume": on_resume}
        return configure_optimizers(Lit(), config, {"name": "warmup_cosine", "warmup_steps": 0}, total_steps=total)

    first = built(10, 0.01)
    lrs(first, 5)
    saved = [first["optimizer"].state_dict(), first["lr_scheduler"]["scheduler"].state_dict()]

    def resumed(*args: Any) -> float:
        again = built(*args)
        again["optimizer"].load_state_dict(copy.deepcopy(saved[0]))
        again["lr_scheduler"]["scheduler"].load_state_dict(copy.deepcopy(saved[1]))
        return float(again["optimizer"].param_groups[0]["lr"])

    assert resumed(10, 0.01) == pytest.approx(0.005)
    with pytest.warns(UserWarning, match="learning-rate schedule is carried on: it ends where this run ends"):
        assert resumed(20, 0.01) == pytest.approx(0.01 * 0.853553, rel=1e-5)
    with (
        pytest.warns(UserWarning, match="the settings of AdamW: the checkpoint and the configuration differ"),
        pytest.warns(UserWarning, match="learning-rate schedule is carried on"),
    ):
        assert resumed(20, 0.02, "config") == pytest.approx(0.02 * 0.853553, rel=1e-5)
    with pytest.raises(wd.CheckpointMismatchError, match="schedule of the checkpoint ends elsewhere than this run"):
        resumed(20, 0.01, "error")


COSINE = {"name": "warmup_cosine", "warmup_steps": 4}
STEP = {"name": "StepLR", "step_size": 2, "gamma": 0.5}
PLATEAU = {"name": "ReduceLROnPlateau", "patience": 0, "monitor": "x"}


def resume(built: dict[str, Any], saved: dict[str, Any]) -> None:
    """Load one pair's states into another as Lightning does: the optimizer's, then the schedule's by position."""
    built["optimizer"].load_state_dict(copy.deepcopy(saved["optimizer"].state_dict()))
    if "lr_scheduler" in built and "lr_scheduler" in saved:
        state = copy.deepcopy(saved["lr_scheduler"]["scheduler"].state_dict())
        built["lr_scheduler"]["scheduler"].load_state_dict(state)


OURS, TORCHS = (
    "warmup_cosine {'warmup_steps': 4, 'min_lr_factor': 0.0, 'total_steps': 40}",
    "StepLR(gamma=0.5, step_size=2)",
)


@pytest.mark.parametrize(
    ("saved", "configured", "found", "config_lrs"),
    [
        (COSINE, None, "an lr_scheduler in the checkpoint, no lr_scheduler in the configuration", [0.01, 0.01]),
        (
            None,
            COSINE,
            "no lr_scheduler in the checkpoint, an lr_scheduler in the configuration",
            [0.002, 0.004],
        ),  # from its start
        (STEP, COSINE, f"{TORCHS} in the checkpoint, {OURS} configured", [0.008, 0.01]),
        (COSINE, STEP, f"{OURS} in the checkpoint, {TORCHS} configured", None),  # StepLR brings its rates back
        (PLATEAU, COSINE, f"ReduceLROnPlateau(patience=0) in the checkpoint, {OURS} configured", [0.008, 0.01]),
        (COSINE, PLATEAU, f"{OURS} in the checkpoint, ReduceLROnPlateau(patience=0) configured", None),
        (PLATEAU, None, "an lr_scheduler in the checkpoint, no lr_scheduler in the configuration", [0.01, 0.01]),
    ],
    ids=["removed", "added", "to ours", "to torch's", "from plateau", "to plateau", "plateau removed"],
)
def test_another_kind_of_schedule_is_refused_or_taken(
    saved: Any, configured: Any, found: str, config_lrs: list[float] | None
) -> None:
    """Lightning restores schedules by position: a removed one left its mid-run rate, a new one started over."""

    def built(schedule: Any, on_resume: str = "checkpoint") -> dict[str, Any]:
        return configure_optimizers(Lit(), {**ADAMW, "lr": 0.01, "on_resume": on_resume}, schedule, total_steps=40)

    first = built(saved)
    first["optimizer"].step()
    if saved is PLATEAU:
        for _ in range(3):
            first["lr_scheduler"]["scheduler"].step(1.0)
    elif saved:
        lrs(first, 3)
    for on_resume in ("checkpoint", "error"):
        with pytest.raises(wd.CheckpointMismatchError) as caught:
            resume(built(configured, on_resume), first)
        assert f"\n  found: {found}\n" in str(caught.value)
        assert "write lr_scheduler as it was" in str(caught.value) or on_resume == "error"
    second = built(configured, "config")
    if config_lrs is None:
        with pytest.raises(wd.CheckpointMismatchError, match="cannot replace the learning rates"):
            resume(second, first)
        return
    with pytest.warns(UserWarning, match="the configured values are used") as caught_warnings:
        resume(second, first)
    assert len(caught_warnings) == 1
    if configured:
        assert not {"gamma", "step_size", "patience"} & vars(second["lr_scheduler"]["scheduler"]).keys()
    group = second["optimizer"].param_groups[0]
    seen = [group["lr"]]
    if configured:
        second["optimizer"].step()
        second["lr_scheduler"]["scheduler"].step()
    assert [*seen, group["lr"]] == pytest.approx(config_lrs)


def test_settings_of_torchs_schedules_are_compared() -> None:
    """torch restores the checkpoint's in silence."""
    first, changed = configure_optimizers(Lit(), ADAMW, STEP), {**STEP, "gamma": 0.9}
    words = r"StepLR\(gamma=0.5, step_size=2\) in the checkpoint, StepLR\(gamma=0.9, step_size=2\) configured"
    second = configure_optimizers(Lit(), ADAMW, changed)
    with pytest.warns(UserWarning, match=words):
        resume(second, first)
    assert second["lr_scheduler"]["scheduler"].gamma == 0.5
    with pytest.raises(wd.CheckpointMismatchError, match=words):
        resume(configure_optimizers(Lit(), {**ADAMW, "on_resume": "error"}, changed), first)


def test_a_plain_state_of_torchs_schedule_loads() -> None:
    """A checkpoint of plain torch or Lightning says nothing of the class."""
    plain = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], lr=1.0), 2, 0.5)
    ours = configure_optimizers(Lit(), ADAMW, STEP)["lr_scheduler"]["scheduler"]
    state = plain.state_dict()
    ours.load_state_dict({**state, "last_epoch": 3})
    assert ours.last_epoch == 3
    assert isinstance(ours, torch.optim.lr_scheduler.StepLR)
    plain.load_state_dict(ours.state_dict())  # and the other way round


def test_the_state_of_another_class_of_schedule_is_refused() -> None:
    """Also that of a schedule nobody here has built."""
    step = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], lr=1.0), 2).state_dict()
    ours = configure_optimizers(Lit(), ADAMW, COSINE, total_steps=40)["lr_scheduler"]["scheduler"]
    with pytest.raises(wd.CheckpointMismatchError, match=r"found: a state with step_size, gamma.*(?s:.*)as it was"):
        ours.load_state_dict(step)


def test_on_resume_config_refuses_learning_rates_that_the_schedule_brings_back() -> None:
    step = {"name": "StepLR", "step_size": 2}
    saved = configure_optimizers(Lit(), {**ADAMW, "lr": 0.02}, step)

    def load(schedule: Any, **changed: Any) -> Any:
        built = configure_optimizers(Lit(), {**ADAMW, "lr": 0.02, "on_resume": "config", **changed}, schedule)
        resume(built, saved)
        return built["optimizer"].param_groups[0]

    words = (
        r"on_resume=config cannot replace the learning rates that this schedule restores.\n"
        r"  found: base_lrs \[0.02, 0.02\] in the checkpoint, \[0.01, 0.01\] configured"
    )
    with pytest.warns(UserWarning, match="lr .* is 0.02"), pytest.raises(wd.CheckpointMismatchError, match=words):
        load(step, lr=0.01)
    with pytest.raises(wd.CheckpointMismatchError, match="cannot replace the learning rates"):
        load({"name": "ExponentialLR", "gamma": 0.9})
    with pytest.warns(UserWarning, match="weight_decay is .* in the checkpoint, 0.5 in the configuration"):
        assert load(step, weight_decay=0.5)["weight_decay"] == 0.5
    with pytest.warns(UserWarning, match="style 'decoupled'"):
        assert load(step, name="adam_l2")["style"] == "l2"


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    config = {"name": "sgdw", "lr": 0.1, "decay": {"style": "independent"}, "weight_decay": 0.01}
    schedule = {"name": "warmup_cosine", "warmup_steps": 3}
    torch.manual_seed(0)
    start = copy.deepcopy(Lit(config, schedule, batches=4).state_dict())
    whole = Lit(config, schedule, batches=4)
    whole.load_state_dict(start)
    fit(whole, tmp_path, max_epochs=4)

    half = Lit(config, schedule, batches=4, total_steps=16)
    half.load_state_dict(start)
    fit(half, tmp_path, max_epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    resumed = Lit(config, schedule, batches=4)
    fit(resumed, tmp_path, max_epochs=4, ckpt_path=str(tmp_path / "half.ckpt"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("warmup_cosin", ["lr_scheduler 'warmup_cosin'", "nearest: 'warmup_cosine'"]),
        ("StepL", ["nearest: 'torch.optim.lr_scheduler.StepLR'"]),
        ("os.system", ["lr_scheduler 'os.system' is not a schedule of this package"]),
        ({"name": "wsd", "warmup": 3}, ["lr_scheduler 'wsd' has no key 'warmup'", "nearest: 'warmup_steps'"]),
        ({"name": "wsd", "warmup_steps": 3.5}, ["a whole number of steps, or a fraction of the run below 1"]),
        ({"name": "wsd", "min_lr_factor": 2}, ["lr_scheduler.min_lr_factor must be a number >= 0 and <= 1 but got 2"]),
        ({"name": "StepLR", "step": 3}, ["lr_scheduler StepLR has no key 'step'", "nearest: 'step_size'"]),
        ({"name": "StepLR"}, ["lr_scheduler StepLR cannot be built", "step_size"]),
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


def test_a_built_scheduler_is_refused() -> None:
    other = torch.optim.SGD(Lit().parameters(), lr=1)
    with pytest.raises(wd.ConfigError, match="already built on another optimizer"):
        configure_optimizers(Lit(), ADAMW, torch_schedulers.ConstantLR(other))
    assert issubclass(LRSchedule, torch_schedulers.LRScheduler)
