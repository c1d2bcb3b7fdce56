r"""How far the best weight decay moves when the learning rate moves: one number for a grid of runs.

For each learning rate the best amount is where its row of the grid is lowest: between two cells by the parabola through
the lowest cell and its neighbours, in ``log2 lam``, and in the middle of cells that tie. The drift is the least-squares
slope of ``log2 lam_best`` against ``log2 lr``, over the rows with an error at most 5 % above the grid's lowest: nobody
tunes the amount where every cell is worse. The separability figure is the drift's size: 0 where lr and lam can be tuned
one at a time, 1 on the diagonal ``lr * lam = constant``.

The interval is a bootstrap: it resamples each cell's seeds, or the rows where there is one seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["NEAR", "Separability", "mean_over_seeds", "near_rows", "row_optima", "separability"]

NEAR = 1.05  # cells that are good, and rows that count: at most this many times the grid's lowest error
_TIE = 1e-5  # in shares: accuracies are of single precision
_DRAWS = 2000


@dataclass(frozen=True)
class Separability:
    """The drift of the best amount, in octaves for each octave of lr."""

    drift: float  # signed slope; nan where fewer than three rows count
    low: float  # lower end of the drift's 95 % interval
    high: float  # its upper end
    rows: int  # rows that count
    at_edge: int  # how many of them are best at an edge of the grid, so that the true best may lie outside
    resampled: str  # what the bootstrap resamples, "seeds" or "rows"

    @property
    def figure(self) -> float:
        """The size of the drift: 0 is separable, 1 the diagonal."""
        return abs(self.drift)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the figure."""
        ends = sorted((abs(self.low), abs(self.high)))
        return (0.0 if self.low <= 0 <= self.high else ends[0]), ends[1]

    def __str__(self) -> str:
        """Return ``figure [low, high]``."""
        if np.isnan(self.drift):
            return "unknown, too few rows"
        return f"{self.figure:.2f} [{self.interval[0]:.2f}, {self.interval[1]:.2f}]"


def mean_over_seeds(errors: Any, otherwise: Any = np.nan) -> Any:
    """Return the mean of the errors that are not nan along the first axis, ``otherwise`` where there is none."""
    there = ~np.isnan(errors)
    with np.errstate(invalid="ignore"):
        total = np.where(there, errors, 0.0).sum(axis=0)
        return np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), otherwise)


def near_rows(mean: Any) -> Any:
    """Return the indices of the rows whose lowest error is at most :data:`NEAR` times the grid's; nan is no cell."""
    lowest = np.where(np.isnan(mean), np.inf, mean).min(axis=1)
    return np.flatnonzero(lowest <= NEAR * lowest.min()) if np.isfinite(lowest).any() else np.empty(0, dtype=int)


def row_optima(errors: Any, log_amount: Any) -> tuple[Any, Any]:
    """Return the best ``log2 lam`` of each row, and whether it, or a cell that ties with it, is at an edge of the grid.

    ``errors`` has shape (rows, amounts), nan for a missing cell and a cell in each row; ``log_amount`` ascends.
    """
    filled = np.where(np.isnan(errors), np.inf, errors)
    lowest = filled.min(axis=1, keepdims=True)
    tied = filled <= lowest + _TIE * abs(lowest)
    edge = tied[:, 0] | tied[:, -1]
    optima = tied @ np.asarray(log_amount, dtype=float) / tied.sum(axis=1)
    for row, i in enumerate(filled.argmin(axis=1)):
        if edge[row] or tied[row].sum() > 1 or not np.isfinite(filled[row, i - 1 : i + 2]).all():
            continue
        (x0, x1, x2), (e0, e1, e2) = log_amount[i - 1 : i + 2], filled[row, i - 1 : i + 2]
        left, right = (x1 - x0) * (e2 - e1), (x2 - x1) * (e1 - e0)
        optima[row] = x1 - 0.5 * ((x1 - x0) * left + (x2 - x1) * right) / (left - right)
    return optima, edge


def separability(errors: Any, lr: Any, amount: Any, *, seed: int = 0) -> Separability:
    """Measure how far the best amount moves for each octave of the learning rate.

    Args:
        errors: shape (seeds, learning rates, amounts), lower is better; nan for a missing cell.
        lr: learning rates > 0, ascending.
        amount: amounts of decay > 0, ascending.
        seed: of the bootstrap.

    >>> x = np.arange(6)
    >>> valley = 10 + (x[None, :] + x[:, None] - 5.0) ** 2  # lowest where lr * lam is constant
    >>> result = separability(valley[None], lr=2.0**x, amount=2.0**x)
    >>> round(result.drift, 6), round(result.figure, 6)
    (-1.0, 1.0)
    """
    errors = np.asarray(errors, dtype=float)
    x, y = np.log2(lr), np.log2(amount)
    whole = mean_over_seeds(errors)
    rows = near_rows(whole)
    resampled = "seeds" if len(errors) > 1 else "rows"
    if len(rows) < 3:
        return Separability(np.nan, np.nan, np.nan, len(rows), 0, resampled)
    x, errors = x[rows], errors[:, rows]
    optima, edge = row_optima(whole[rows], y)
    rng = np.random.default_rng(seed)
    drifts = []
    for _ in range(_DRAWS):
        if resampled == "seeds":
            draw = rng.integers(len(errors), size=errors.shape)
            drawn = mean_over_seeds(np.take_along_axis(errors, draw, axis=0), whole[rows])
            drifts.append(_slope(x, row_optima(drawn, y)[0]))
        else:
            draw = rng.integers(len(rows), size=len(rows))
            if len(set(draw)) > 1:
                drifts.append(_slope(x[draw], optima[draw]))
    low, high = np.quantile(drifts, [0.025, 0.975])
    return Separability(float(_slope(x, optima)), float(low), float(high), len(rows), int(edge.sum()), resampled)


def _slope(x: Any, y: Any) -> float:
    centred = x - x.mean()
    return float((centred * (y - y.mean())).sum() / (centred * centred).sum())
