"""The separability figure on known valleys."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_wd.runs.separability import near_rows, row_optima, separability


@settings(max_examples=30, deadline=None)
@given(st.floats(-1.5, 1.5), st.floats(0.05, 2), st.integers(0, 3))
def test_the_slope_of_any_valley_is_found(slope: float, depth: float, shift: int) -> None:
    x, y = np.arange(-3, 4.0), np.arange(-8, 9.0)
    errors = 10 + depth * (y[None, :] - slope * x[:, None]) ** 2
    result = separability(errors[None], 2.0 ** (x - shift), 2.0**y)
    assert result.drift == pytest.approx(slope, abs=1e-6)
    assert result.figure == abs(result.drift)
    assert result.low - 1e-9 <= slope <= result.high + 1e-9
    assert (result.at_edge, result.resampled) == (0, "rows")


def test_the_interval_over_seeds_covers_the_truth_and_shrinks_with_less_noise() -> None:
    x, y = np.arange(6.0), np.arange(-8, 9.0)
    valley = 10 + 0.2 * (y[None, :] + x[:, None] - 2.5) ** 2
    widths = []
    for noise in (0.5, 0.05):
        seeds = valley + np.random.default_rng(1).normal(scale=noise, size=(5, *valley.shape))
        result = separability(seeds, 2.0**x, 2.0**y)
        assert result.resampled == "seeds"
        assert result.low < -1 < result.high
        widths.append(result.high - result.low)
    assert widths[1] < 0.3 * widths[0]


def test_an_interval_around_zero_starts_at_zero() -> None:
    x = np.arange(6.0)
    errors = 10 + np.random.default_rng(0).normal(scale=1, size=(4, 6, 6))
    result = separability(errors, 2.0**x, 2.0**x)
    assert result.low < 0 < result.high
    assert result.interval == (0.0, max(-result.low, result.high))


def test_rows_far_from_the_best_do_not_count() -> None:
    x = np.arange(6.0)
    errors = 10 + (x[None, :] - 2.0) ** 2 + np.zeros((6, 1))
    errors[4:] = 90 + np.random.default_rng(0).normal(size=(2, 6))  # diverged: where they are lowest is noise
    result = separability(errors[None], 2.0**x, 2.0**x)
    assert (result.rows, result.drift) == (4, 0.0)
    assert math.isnan(separability(errors[None, 3:], 2.0 ** x[3:], 2.0**x).drift)


def test_rows_without_a_cell_within_5_percent_of_the_best_do_not_count() -> None:
    x = np.arange(4.0)
    errors = np.array([10.0, 10.49, 10.51, 10.0])[:, None] + (x[None, :] - np.array([1, 1, 2, 1])[:, None]) ** 2
    assert near_rows(errors).tolist() == [0, 1, 3]
    assert (separability(errors[None], 2.0**x, 2.0**x).rows, separability(errors[None], 2.0**x, 2.0**x).drift) == (3, 0)


def test_the_best_of_a_row_lies_between_cells() -> None:
    y = np.array([0.0, 1.0, 3.0])  # unevenly spaced
    errors = np.array([(y - 1.25) ** 2, (y - 0.0) ** 2, [3.0, np.nan, 2.0]])
    optima, edge = row_optima(errors, y)
    assert optima == pytest.approx([1.25, 0.0, 3.0])
    assert edge.tolist() == [False, True, True]


def test_of_cells_that_tie_the_best_is_the_middle() -> None:
    """Not the first, nor what the last digit of a mean says: the middle row is AdamW's at lr 2^-9 in the studies."""
    study = [20.11000117, 20.11666697, 20.10999917, 20.1099992, 22.7666656, 54.7000001]
    errors = np.array([[3.0, 1.0, 1.0, 2.0, 2.0, 2.0], study, [1.0] * 6])
    optima, edge = row_optima(errors, np.arange(-14.0, -2, 2))
    assert optima == pytest.approx([-11.0, (-14 - 10 - 8) / 3, -9.0])
    assert edge.tolist() == [False, True, True]
