"""Decay: its amounts, and the words of its errors."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from lightning_wd.decay import Decay
from lightning_wd.errors import ConfigError


@pytest.mark.parametrize(
    ("style", "amount", "expected"),
    [
        ("decoupled", {"weight_decay": 0.1}, 0.1),
        ("independent", {"normalized": 0.05}, 0.05 / 100),
        ("constant", {"normalized": 0.05}, 0.05 / 100),
        ("decoupled", {"normalized": 0.05}, 0.05 / 100 / 1e-3),
        ("corrected", {"normalized": 0.05}, 0.05 / 100 / 1e-3),
        ("decoupled", {"timescale_epochs": 20}, 1 / (1e-3 * 20 * 50)),
        ("independent", {"timescale_epochs": 20}, 1 / (20 * 50)),
        ("decoupled", {"timescale_runs": 0.5}, 1 / (1e-3 * 0.5 * 10_000)),
        ("independent", {"timescale_runs": 0.5}, 1 / (0.5 * 10_000)),
        ("none", {"weight_decay": 0.3}, 0.0),
        ("none", {}, 0.0),
        ("l2", {"weight_decay": 0.1}, 0.1),
    ],
)
def test_coefficient(style: str, amount: dict[str, Any], expected: float) -> None:
    decay = Decay(style, **amount)
    assert decay.coefficient(1e-3, total_steps=10_000, steps_per_epoch=50) == pytest.approx(expected, rel=1e-12)


def test_decay_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Decay(weight_decay=0.1).style = "l2"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({}, ["decay style 'decoupled' has no amount", "weight_decay, normalized, timescale_epochs"]),
        (
            {"weight_decay": 0.1, "normalized": 0.05},
            ["more than one amount", "weight_decay=0.1, normalized=0.05", "weight_decay=null"],
        ),
        (
            {"style": "decopled", "weight_decay": 0.1},
            ["style 'decopled' is unknown", "nearest: 'decoupled'", "fix: write style=decoupled"],
        ),
        (
            {"style": "l2", "normalized": 0.05},
            ["style 'l2' cannot be given by normalized=0.05", "optimizer/decay=independent"],
        ),
        ({"style": "l2", "timescale_epochs": 5}, ["style 'l2' cannot be given by timescale_epochs=5"]),
        ({"style": "l2", "weight_decay": 0.1, "cautious": True}, ["cautious has no meaning with style 'l2'"]),
        ({"weight_decay": 0.1, "cautious": 1}, ["cautious must be true or false but got 1"]),
        ({"weight_decay": -1}, ["weight_decay must be a number >= 0 but got -1", "found: int"]),
        ({"weight_decay": float("nan")}, ["weight_decay must be a number >= 0 but got nan"]),
        ({"weight_decay": float("inf")}, ["weight_decay must be a number >= 0 but got inf", "a finite number"]),
        ({"weight_decay": True}, ["weight_decay must be a number >= 0 but got True", "found: bool"]),
        ({"weight_decay": "1e-4"}, ["weight_decay must be a number >= 0 but got '1e-4'", "write 1.0e-4"]),
        ({"style": "l2", "timescale_runs": 1}, ["style 'l2' cannot be given by timescale_runs=1"]),
        ({"timescale_runs": 0}, ["timescale_runs must be a number > 0 but got 0"]),
        ({"timescale_epochs": 0}, ["timescale_epochs must be a number > 0 but got 0"]),
        *(
            ({"style": style, "weight_decay": 1}, [f"style {style!r} is unknown", f"optimizer/decay={way}"])
            for style, way in {
                "normalized": "normalized",
                "timescale": "timescale",
                "timescale_runs": "timescale",
            }.items()
        ),
    ],
)
def test_decay_refuses(keywords: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Decay(**keywords)  # type: ignore[arg-type]
    assert [word for word in words if word not in str(caught.value)] == []


def test_an_amount_that_needs_steps_says_so() -> None:
    words = "'{}' needs total_steps, which is not known here.\n  fix: pass total_steps=<optimizer steps>, or give the "
    for unit, decay in (("normalized", Decay(normalized=1)), ("timescale_runs", Decay(timescale_runs=1))):
        with pytest.raises(ConfigError, match=re.escape(words.format(unit))):
            decay.coefficient(1e-3)


def test_errors_name_what_the_user_typed() -> None:
    names = {"weight_decay": "optimizer.weight_decay", "normalized": "optimizer.decay.normalized"}
    assert Decay(normalized=0.05, typed=names) == Decay(normalized=0.05)
    with pytest.raises(ConfigError) as error:
        Decay("decopuled", weight_decay=0.1, typed={"style": "optimizer.decay.style"})
    assert str(error.value) == (
        "optimizer.decay.style 'decopuled' is unknown.\n"
        "  valid: l2, decoupled, independent, constant, corrected, hyperball, none\n"
        "  nearest: 'decoupled'\n  fix: write optimizer.decay.style=decoupled"
    )
    with pytest.raises(ConfigError, match=r"optimizer\.weight_decay must be a number >= 0 but got -1"):
        Decay(weight_decay=-1, typed=names)
    with pytest.raises(ConfigError, match=r"found: optimizer\.weight_decay=1, optimizer\.decay\.normalized=2"):
        Decay(weight_decay=1, normalized=2, typed=names)
