"""Decay and convert: the definitions and equivalences, and the words of the errors."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_wd.decay import ALIASES, STYLES, Decay, all_units, convert, kernel_coefficient, step_fraction
from lightning_wd.errors import ConfigError, number

UNITS = ("decoupled", "independent", "normalized", "timescale_epochs", "timescale_runs", "sgd_l2")
positive = st.floats(1e-6, 1e3)


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("l2", 0.0),
        ("decoupled", 0.005 * 0.1),
        ("independent", 0.5 * 0.1),
        ("constant", 0.1),
        ("corrected", 0.005**2 / 0.01 * 0.1),
        ("none", 0.0),
    ],
)
def test_fraction_of_each_style(style: str, expected: float) -> None:
    """The table of decay.py at lr0 = .01, lr_t = .005, lam = .1."""
    assert step_fraction(style, weight_decay=0.1, lr=0.005, base_lr=0.01) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("style", STYLES)
def test_a_learning_rate_of_zero_is_finite(style: str) -> None:
    at_start = step_fraction(style, weight_decay=0.1, lr=0.0, base_lr=0.01)
    without_peak = step_fraction(style, weight_decay=0.1, lr=0.0, base_lr=0.0)
    assert at_start == without_peak == (0.1 if style == "constant" else 0.0)


@given(lr0=positive, lam=positive, eta=st.floats(0, 1))
def test_kernel_coefficient_times_lr_is_the_fraction(lr0: float, lam: float, eta: float) -> None:
    lr = lr0 * eta
    for style in ("decoupled", "independent", "corrected"):
        coefficient = kernel_coefficient(style, weight_decay=lam, lr=lr, base_lr=lr0)
        assert lr * coefficient == pytest.approx(step_fraction(style, weight_decay=lam, lr=lr, base_lr=lr0))
    independent = step_fraction("independent", weight_decay=lam, lr=lr, base_lr=lr0)
    assert independent == pytest.approx(step_fraction("decoupled", weight_decay=lam / lr0, lr=lr, base_lr=lr0))


def test_constant_has_no_kernel_coefficient() -> None:
    with pytest.raises(ConfigError, match="style 'constant' has no coefficient"):
        kernel_coefficient("constant", weight_decay=0.1, lr=0.0, base_lr=0.1)


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
    ],
)
def test_decay_refuses(keywords: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Decay(**keywords)  # type: ignore[arg-type]
    assert [word for word in words if word not in str(caught.value)] == []


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
        *(
            (
                lambda style=style: Decay(style, weight_decay=1),
                [f"style {style!r} is unknown", f"optimizer/decay={way}"],
            )
            for style, way in {
                "normalized": "normalized",
                "timescale": "timescale",
                "timescale_runs": "timescale",
            }.items()
        ),
        (lambda: Decay(timescale_runs=1).coefficient(1e-3), ["'timescale_runs' needs total_steps"]),
        (lambda: Decay(normalized=0.05).coefficient(1e-3), ["'normalized' needs total_steps", "fix: pass total_steps"]),
    ],
)
def test_conversions_refuse(call: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        call()  # type: ignore[operator]
    assert [word for word in words if word not in str(caught.value)] == []


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


def test_other_libraries_names_are_on_the_page_and_their_errors_say_the_style() -> None:
    """docs/names.md: the table of names that are errors, a row an alias."""
    page = (Path(__file__).parents[1] / "docs" / "names.md").read_text()
    table = page.partition("Typed as a style")[2].partition("Other libraries")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert [row[0].strip("|` ") for row in rows] == list(ALIASES)
    for alias, row in zip(ALIASES, rows, strict=True):
        with pytest.raises(ConfigError) as caught:
            Decay(alias, weight_decay=0.1)
        assert f"style '{alias}' is unknown" in str(caught.value)
        assert f"fix: {ALIASES[alias]}" in str(caught.value)
        style = re.findall(r"style '(\w+)'", ALIASES[alias])[0]
        assert style in STYLES
        assert f"style `{style}`" in row[2]


def test_check_number_returns_floats() -> None:
    assert number("x", 3) == 3.0
    assert isinstance(number("x", 3), float)
    with pytest.raises(ConfigError, match="x must be a number > 0 but got 0"):
        number("x", 0, exclusive=True)


@pytest.mark.parametrize("style", ["constant", "corrected"])
def test_the_unit_that_an_error_names_for_a_style_decays_as_much_at_the_peak(style: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(0.1, from_=style, to="normalized", lr=0.01)
    (unit,) = re.findall(r"unit '(\w+)'", str(caught.value))
    assert convert(0.1, from_=unit, to="independent", lr=0.01) == step_fraction(
        style, weight_decay=0.1, lr=0.01, base_lr=0.01
    )
