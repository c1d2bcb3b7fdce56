"""Learning-rate shapes: values at the points that define them."""

from __future__ import annotations

import math

import pytest

from lightning_wd.schedules import constant, cosine_restarts, restart_cycle, warmup_cosine, wsd


def test_warm_up_reaches_the_peak_exactly_once_it_is_over() -> None:
    for shape in (
        lambda t: constant(t, warmup_steps=4),
        lambda t: warmup_cosine(t, total_steps=20, warmup_steps=4),
        lambda t: wsd(t, total_steps=20, warmup_steps=4, decay_steps=4),
    ):
        assert [shape(t) for t in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_warmup_cosine_follows_the_cosine_and_stays_at_its_end() -> None:
    values = [warmup_cosine(t, total_steps=110, warmup_steps=10, min_lr_factor=0.1) for t in (10, 35, 60, 110, 500)]
    expected = [0.1 + 0.45 * (1 + math.cos(math.pi * p)) for p in (0, 0.25, 0.5, 1, 1)]
    assert values == pytest.approx(expected)


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
