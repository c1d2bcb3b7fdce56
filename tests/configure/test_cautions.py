"""Amounts that can hardly be meant are warned of once, with numbers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from helpers.lit import Lit, fit

import lightning_wd as wd


def said(config: dict[str, Any], folder: Path, *callbacks: Any, epochs: int = 25) -> list[str]:
    """Return our warnings in a run of 8 steps an epoch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Lit(config), folder, callbacks=[*callbacks], max_epochs=epochs)
    return [str(one.message) for one in caught if "group" in str(one.message)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"lr": 1e-3}, []),  # nobody chose the typical amount
        ({"lr": 1e-3, "weight_decay": 5.0}, []),
        ({"name": "adam_l2", "weight_decay": 1e-4}, []),
        ({"decay": {"style": "none"}, "weight_decay": 0.0}, []),
        (
            {"lr": 1e-3, "weight_decay": 0.1},
            [
                "group 'decay': the timescale is 50 times the run: decay hardly acts (it removes 0.02 of a weight): "
                "raise weight_decay, or write optimizer/decay=none if it is meant"
            ],
        ),
        (
            {"lr": 1e-2, "weight_decay": 30.0},
            ["group 'decay': the timescale is 3.33 steps, 0.017 of the run: weights forget what came before"],
        ),
        (
            {"lr": 1e-3, "weight_decay": 0.2, "decay": {"style": "independent"}},
            [
                "group 'decay': the timescale is 5 steps, 0.025 of the run: weights forget what came before; 0.2 is a "
                "number for style 'decoupled', which multiplies it by lr: that is 0.0002 here"
            ],
        ),
        (
            {"lr": 1e-3, "weight_decay": 0.0},
            [
                "group 'decay' has weight_decay 0, so nothing decays: write optimizer/decay=none if it is meant",
            ],
        ),
    ],
)
def test_what_is_said(config: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    assert said(config, tmp_path) == expected


def test_the_summary_says_it_in_place_of_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said({"lr": 1e-3, "weight_decay": 0.0}, tmp_path, wd.DecayPlanSummary()) == []
    assert "warning: group 'decay' has weight_decay 0" in capsys.readouterr().out


def test_under_a_schedule_the_largest_amount_counts(tmp_path: Path) -> None:
    schedule = wd.DecaySchedule("linear", start=0.0, end=1000.0)
    (line,) = said({"lr": 1e-3, "weight_decay": 0.4}, tmp_path, schedule)
    assert line.startswith("group 'decay' at its largest weight_decay 398: the timescale is 2.51 steps")


def test_a_rule_that_excludes_is_meant(tmp_path: Path) -> None:
    mask = {"rules": [{"name": "net.0.weight", "weight_decay": 0.0}]}
    assert said({"lr": 1e-3, "weight_decay": 5.0, "mask": mask}, tmp_path) == []


def test_a_warm_up_longer_than_the_run(tmp_path: Path) -> None:
    module = Lit({"lr": 1e-3}, {"name": "constant", "warmup_steps": 100})
    with pytest.warns(UserWarning, match=r"'constant' warms up for 100 steps, but the run has 16"):
        fit(module, tmp_path)
