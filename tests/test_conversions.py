"""Conversions between units: the equivalences, and the words of the errors."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_wd.conversions import UNITS, all_units, convert
from lightning_wd.errors import ConfigError
from lightning_wd.styles import step_fraction

positive = st.floats(1e-6, 1e3)


@given(
    value=positive,
    from_=st.sampled_from(UNITS),
    to=st.sampled_from(UNITS),
    lr=positive,
    momentum=st.floats(0, 0.99),
    total_steps=st.integers(1, 10**6),
    steps_per_epoch=st.integers(1, 10**4),
)
def test_conversions_are_inverse(
    value: float, from_: str, to: str, lr: float, momentum: float, total_steps: int, steps_per_epoch: int
) -> None:
    context: dict[str, Any] = {"lr": lr, "momentum": momentum}
    context |= {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
    there = convert(value, from_=from_, to=to, **context)
    assert convert(there, from_=to, to=from_, **context) == pytest.approx(value, rel=1e-9)


def test_one_fraction_in_every_unit() -> None:
    """d = lr0 * lam_decoupled = lam_independent = lam_norm / sqrt(steps) = 1 / tau_steps, at d = 1e-4."""
    context: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "total_steps": 10_000, "steps_per_epoch": 100}
    in_units = {unit: convert(1e-4, from_="independent", to=unit, **context) for unit in UNITS}
    assert in_units == pytest.approx(
        {
            "decoupled": 0.1,
            "independent": 1e-4,
            "normalized": 0.01,
            "timescale_epochs": 100.0,
            "timescale_runs": 1.0,
            "sgd_l2": 0.01,
        }
    )
    assert all_units("decoupled", 0.1, lr=1e-3, total_steps=10_000, steps_per_epoch=100) == pytest.approx(
        {
            "decoupled": 0.1,
            "independent": 1e-4,
            "normalized": 0.01,
            "timescale_steps": 1e4,
            "timescale_epochs": 100.0,
            "timescale_runs": 1.0,
        }
    )


def test_sgd_l2_with_momentum_is_ten_times_stronger() -> None:
    """Zero gradient, mu = .9, lr = .1, 2,000 steps: L2 5e-4 and decoupled 5e-3 both leave 0.3678 of the weight."""
    weight, buffer = 1.0, 0.0
    for _ in range(2_000):
        buffer = 0.9 * buffer + 5e-4 * weight
        weight -= 0.1 * buffer
    decoupled = convert(5e-4, from_="sgd_l2", to="decoupled", lr=0.1, momentum=0.9)
    assert weight == pytest.approx(0.3678, abs=1e-3)
    assert (1 - 0.1 * decoupled) ** 2_000 == pytest.approx(weight, abs=5e-4)
    same_number = 5e-4  # as a decoupled coefficient
    assert (1 - 0.1 * same_number) ** 2_000 == pytest.approx(0.9048, abs=1e-4)


def test_no_decay_is_an_infinite_timescale() -> None:
    context: dict[str, Any] = {"lr": 0.1, "steps_per_epoch": 10}
    assert convert(0.0, from_="decoupled", to="timescale_epochs", **context) == math.inf
    assert convert(math.inf, from_="timescale_epochs", to="decoupled", **context) == 0.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: convert(1, from_="decopled", to="independent", lr=1), ["from_ 'decopled'", "nearest: 'decoupled'"]),
        (lambda: convert(1, from_="decoupled", to="normalised", lr=1), ["to 'normalised'", "nearest: 'normalized'"]),
        (lambda: convert(1, from_="normalized", to="decoupled", lr=1), ["'normalized' needs total_steps"]),
        (lambda: convert(1, from_="decoupled", to="timescale_epochs", lr=1), ["needs steps_per_epoch"]),
        (lambda: convert(1, from_="independent", to="decoupled", lr=0), ["lr is 0"]),
        (
            lambda: convert(1, from_="sgd_l2", to="decoupled", lr=1, momentum=1),
            ["momentum must be a number >= 0 and < 1 but got 1"],
        ),
        (
            lambda: convert(1, from_="sgd_l2", to="decoupled", lr=1),
            ["'sgd_l2' needs momentum", "fix: pass momentum=<the optimizer's momentum, 0 for plain SGD>"],
        ),
        *(
            (lambda unit=unit: convert(0.1, from_=unit, to="decoupled", lr=1), [f"from_ {unit!r} is unknown", fix])
            for unit, fix in {
                "palm": "fix: PaLM's lam is lam * lr in unit 'decoupled'",
                "constant": "fix: at the peak that lam is unit 'independent'",
                "corrected": "fix: at the peak that lam is unit 'decoupled'",
                "l2": "fix: SGD's penalty is unit 'sgd_l2'",
            }.items()
        ),
        (lambda: convert(0.1, from_="decoupled", to="independent", lr=1, total_steps=-1), ["total_steps must be"]),
    ],
)
def test_conversions_refuse(call: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        call()  # type: ignore[operator]
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("style", ["constant", "corrected"])
def test_the_unit_that_an_error_names_for_a_style_decays_as_much_at_the_peak(style: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(0.1, from_=style, to="normalized", lr=0.01)
    (unit,) = re.findall(r"unit '(\w+)'", str(caught.value))
    assert convert(0.1, from_=unit, to="independent", lr=0.01) == step_fraction(
        style, weight_decay=0.1, lr=0.01, base_lr=0.01
    )
