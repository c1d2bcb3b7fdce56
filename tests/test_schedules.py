"""Learning-rate shapes: values at the points that define them."""

from __future__ import annotations

import math

import pytest

from lightning_wd.schedules import (
    FALLS,
    constant,
    cosine_restarts,
    restart_cycle,
    warmup_cosine,
    warmup_linear,
    warmup_one_minus_sqrt,
    wsd,
)


def test_warm_up_reaches_the_peak_exactly_once_it_is_over() -> None:
    for shape in (
        lambda t: constant(t, warmup_steps=4),
        lambda t: warmup_cosine(t, total_steps=20, warmup_steps=4),
        lambda t: warmup_linear(t, total_steps=20, warmup_steps=4),
        lambda t: warmup_one_minus_sqrt(t, total_steps=20, warmup_steps=4),
        lambda t: wsd(t, total_steps=20, warmup_steps=4, decay_steps=4),
    ):
        assert [shape(t) for t in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_warmup_cosine_follows_the_cosine_and_stays_at_its_end() -> None:
    values = [warmup_cosine(t, total_steps=110, warmup_steps=10, min_lr_factor=0.1) for t in (10, 35, 60, 110, 500)]
    expected = [0.1 + 0.45 * (1 + math.cos(math.pi * p)) for p in (0, 0.25, 0.5, 1, 1)]
    assert values == pytest.approx(expected)


def test_warmup_linear_by_hand() -> None:
    values = [warmup_linear(t, total_steps=10, warmup_steps=2, min_lr_factor=0.2) for t in (0, 1, 2, 3, 6, 9, 10, 99)]
    assert values == pytest.approx([1 / 3, 2 / 3, 1, 0.9, 0.6, 0.3, 0.2, 0.2], rel=1e-12)


def test_warmup_one_minus_sqrt_by_hand() -> None:
    """p = 0, 1/8, 1/4, 7/8, 1 at t = 2, 3, 4, 9, 10: sqrt(1/8) = 0.3535533906, sqrt(7/8) = 0.9354143467."""
    times = (0, 1, 2, 3, 4, 9, 10, 99)
    values = [warmup_one_minus_sqrt(t, total_steps=10, warmup_steps=2, min_lr_factor=0.2) for t in times]
    by_hand = [1 / 3, 2 / 3, 1, 1 - 0.8 * 0.3535533906, 0.6, 1 - 0.8 * 0.9354143467, 0.2, 0.2]
    assert values == pytest.approx(by_hand, rel=1e-9)


def test_a_run_without_steps_after_its_warm_up_ends_at_the_foot() -> None:
    assert warmup_linear(4, total_steps=4, warmup_steps=4, min_lr_factor=0.2) == 0.2
    assert warmup_one_minus_sqrt(0, total_steps=1) == 1.0


def test_restarts_end_runs_at_100_300_700_1500_epochs() -> None:
    """T_0 = 100, T_mult = 2 (1711.05101, App. B.2), at one step an epoch."""
    starts = [t for t in range(1501) if t and cosine_restarts(t, first_cycle_steps=100) == 1.0]
    assert starts == [100, 300, 700, 1500]
    assert restart_cycle(1499, first_cycle_steps=100) == (3, 700, 800)


def test_restarts_of_equal_cycles() -> None:
    assert [restart_cycle(t, first_cycle_steps=3, cycle_mult=1) for t in (0, 2, 3, 8)] == [
        (0, 0, 3),
        (0, 0, 3),
        (1, 3, 3),
        (2, 6, 3),
    ]


def test_restart_multiplier_is_fractional_within_an_epoch() -> None:
    value = cosine_restarts(25, first_cycle_steps=100, min_lr_factor=0.2)
    assert value == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 4)))


def test_wsd_is_flat_then_linear() -> None:
    values = [
        wsd(t, total_steps=100, warmup_steps=10, decay_steps=20, min_lr_factor=0.1) for t in (10, 79, 80, 90, 100, 101)
    ]
    assert values == pytest.approx([1, 1, 1, 0.55, 0.1, 0.1])


@pytest.mark.parametrize(
    ("decay_shape", "by_hand"),
    [
        ("linear", [0.8, 0.6, 0.4]),
        ("one_minus_sqrt", [0.6, 1 - 0.8 * 0.7071067812, 1 - 0.8 * 0.8660254038]),
        ("cosine", [0.2 + 0.4 * 1.7071067812, 0.6, 0.2 + 0.4 * 0.2928932188]),
    ],
)
def test_wsd_decays_by_its_shape(decay_shape: str, by_hand: list[float]) -> None:
    """p = 0, 1/4, 1/2, 3/4, 1 at t = 6, 7, 8, 9, 10."""
    settings = {"total_steps": 10, "decay_steps": 4, "warmup_steps": 2, "min_lr_factor": 0.2}
    values = [wsd(t, decay_shape=decay_shape, **settings) for t in range(11)]  # type: ignore[arg-type]
    assert values == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, *by_hand, 0.2], rel=1e-9)


def test_every_fall_goes_from_1_to_0() -> None:
    assert [(fall(0.0), fall(1.0)) for fall in FALLS.values()] == [(1.0, 0.0)] * 3
