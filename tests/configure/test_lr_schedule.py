"""What a resumed schedule restores."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.lit import ADAMW, Lit, fit, lrs

import lightning_wd as wd
from lightning_wd.configure import configure_optimizers


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
