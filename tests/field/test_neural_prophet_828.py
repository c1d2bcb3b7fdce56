"""A finished run is resumed with more epochs, and its schedule has no steps left.

https://github.com/ourownstory/neural_prophet/issues/828 (neural-prophet#828)

There: OneCycleLR raised "Tried to step 11 times" in the middle of the resumed run. Here: a schedule of the pack is
carried on to the new end, with a warning; OneCycleLR, which cannot be, is refused before the first step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.lit import Lit, fit
from helpers.small_run import DecaysUsed

import lightning_wd as wd


def finished(lr_scheduler: Any, tmp_path: Path, *callbacks: Any) -> str:
    """Return the checkpoint of a run that is over after two epochs of eight steps."""
    path = str(tmp_path / "finished.ckpt")
    fit(Lit({"lr": 1e-3, "weight_decay": 1e-2}, lr_scheduler), tmp_path, callbacks=[*callbacks]).save_checkpoint(path)
    return path


def test_onecycle_is_refused_before_it_steps(tmp_path: Path) -> None:
    lr_scheduler = {"name": "OneCycleLR", "max_lr": 1e-3}
    path = finished(lr_scheduler, tmp_path)
    module = Lit({"lr": 1e-3, "weight_decay": 1e-2}, lr_scheduler)
    decays = DecaysUsed()
    with (
        pytest.warns(UserWarning, match="total_steps=16.* in the checkpoint, .*total_steps=32"),
        pytest.raises(wd.ConfigError) as caught,
    ):
        fit(module, tmp_path, path, max_epochs=4, callbacks=[decays])
    assert decays.seen == []
    assert str(caught.value) == (
        "OneCycleLR ends after 16 steps, before the run does.\n"
        "  found: 16 steps done, 16 more to come\n"
        "  fix: resume with the max_epochs or max_steps that the run had, use a schedule of this package "
        "(lr_scheduler=warmup_cosine), which is carried on, or start a new run from the weights"
    )


@pytest.mark.parametrize("lr_scheduler", ["warmup_cosine", "wsd"])
def test_a_schedule_of_the_pack_is_carried_on(lr_scheduler: str, tmp_path: Path) -> None:
    path = finished(lr_scheduler, tmp_path, wd.DecaySchedule("linear", end=0.0))
    module = Lit({"lr": 1e-3, "weight_decay": 1e-2}, lr_scheduler)
    decays = DecaysUsed()
    with pytest.warns(UserWarning, match="is carried on") as warned:
        made = fit(module, tmp_path, path, max_epochs=4, callbacks=[wd.DecaySchedule("linear", end=0.0), decays])
    texts = [str(one.message) for one in warned if "total_steps" in str(one.message)]
    assert len(texts) == 2
    assert all("total_steps is 16 in the checkpoint, 32 in this run" in text for text in texts)
    scheduler: Any = made.lr_scheduler_configs[0].scheduler
    assert (scheduler.settings["total_steps"], scheduler.last_epoch) == (32, 32)
    assert [row[0] for row in decays.seen] == pytest.approx([1e-2 * (1 - t / 32) for t in range(16, 32)])
    assert made.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)


def test_error_refuses_another_length(tmp_path: Path) -> None:
    path = finished("warmup_cosine", tmp_path)
    module = Lit({"lr": 1e-3, "weight_decay": 1e-2, "on_resume": "error"}, "warmup_cosine")
    with pytest.raises(wd.CheckpointMismatchError, match="total_steps is 16 in the checkpoint, 32 in this run"):
        fit(module, tmp_path, path, max_epochs=4)
