r"""Shapes of learning-rate schedules: pure functions from a step to the multiplier ``eta_t`` of the peak rate.

``lr_t = lr0 * eta_t``; ``t`` counts completed optimizer steps, so the first step runs at ``t = 0`` and the last of a
run of T steps at ``t = T - 1``. A warm-up of W steps is linear, ``eta_t = (t + 1) / (W + 1)`` for ``t < W``: the first
step already moves, and ``t = W`` is the first at the peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

__all__ = [
    "FALLS",
    "constant",
    "cosine_restarts",
    "restart_cycle",
    "warmup_cosine",
    "warmup_linear",
    "warmup_one_minus_sqrt",
    "wsd",
]

# How a value falls from 1 to 0, by the part p of its way, in [0, 1]: rates and amounts of decay alike.
FALLS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda p: 1.0 - p,
    "one_minus_sqrt": lambda p: 1.0 - math.sqrt(p),
    "cosine": lambda p: 0.5 * (1.0 + math.cos(math.pi * p)),
}


def constant(t: float, *, warmup_steps: int = 0) -> float:
    """Return 1 after a linear warm-up.

    >>> [constant(t, warmup_steps=3) for t in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return (t + 1) / (warmup_steps + 1) if t < warmup_steps else 1.0


def warmup_cosine(t: float, *, total_steps: int, warmup_steps: int = 0, min_lr_factor: float = 0.0) -> float:
    r"""Return a linear warm-up to 1, then half a cosine to ``min_lr_factor`` at ``total_steps``.

    ``eta_t = min_lr_factor + (1 - min_lr_factor) / 2 * (1 + cos(pi * (t - W) / (T - W)))``

    >>> [round(warmup_cosine(t, total_steps=6, warmup_steps=2), 3) for t in range(7)]
    [0.333, 0.667, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return _warmup_then("cosine", t, total_steps, total_steps - warmup_steps, warmup_steps, min_lr_factor)


def warmup_linear(t: float, *, total_steps: int, warmup_steps: int = 0, min_lr_factor: float = 0.0) -> float:
    r"""Return a linear warm-up to 1, then a line to ``min_lr_factor`` at ``total_steps``.

    ``eta_t = min_lr_factor + (1 - min_lr_factor) * (1 - (t - W) / (T - W))``

    >>> [round(warmup_linear(t, total_steps=6, warmup_steps=2), 3) for t in range(7)]
    [0.333, 0.667, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return _warmup_then("linear", t, total_steps, total_steps - warmup_steps, warmup_steps, min_lr_factor)


def warmup_one_minus_sqrt(t: float, *, total_steps: int, warmup_steps: int = 0, min_lr_factor: float = 0.0) -> float:
    r"""Return a linear warm-up to 1, then ``1 - sqrt`` to ``min_lr_factor`` at ``total_steps`` (2405.18392).

    ``eta_t = min_lr_factor + (1 - min_lr_factor) * (1 - sqrt((t - W) / (T - W)))``

    >>> [round(warmup_one_minus_sqrt(t, total_steps=6, warmup_steps=2), 3) for t in range(7)]
    [0.333, 0.667, 1.0, 0.5, 0.293, 0.134, 0.0]
    """
    return _warmup_then("one_minus_sqrt", t, total_steps, total_steps - warmup_steps, warmup_steps, min_lr_factor)


def restart_cycle(t: float, *, first_cycle_steps: int, cycle_mult: float = 2) -> tuple[int, float, float]:
    """Return the index, first step and length of the cycle that holds step ``t``: ``T_i = T_0 * T_mult^i``.

    >>> [restart_cycle(t, first_cycle_steps=100) for t in (0, 99, 100, 300)]
    [(0, 0, 100), (0, 0, 100), (1, 100, 200), (2, 300, 400)]
    """
    if cycle_mult == 1:
        index = int(t // first_cycle_steps)
        return index, index * first_cycle_steps, first_cycle_steps
    index, start, length = 0, 0.0, float(first_cycle_steps)
    while t >= start + length:
        start, length, index = start + length, length * cycle_mult, index + 1
    as_int = [int(x) if x.is_integer() else x for x in (start, length)]
    return index, as_int[0], as_int[1]


def cosine_restarts(t: float, *, first_cycle_steps: int, cycle_mult: float = 2, min_lr_factor: float = 0.0) -> float:
    r"""Return cosine annealing with warm restarts (1711.05101, App. B.2; 1608.03983).

    ``eta_t = min_lr_factor + (1 - min_lr_factor) / 2 * (1 + cos(pi * T_cur / T_i))``, back to 1 at each restart.

    >>> [round(cosine_restarts(t, first_cycle_steps=2), 3) for t in range(7)]
    [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]
    """
    _, start, length = restart_cycle(t, first_cycle_steps=first_cycle_steps, cycle_mult=cycle_mult)
    return min_lr_factor + (1.0 - min_lr_factor) * FALLS["cosine"]((t - start) / length)


def wsd(
    t: float,
    *,
    total_steps: int,
    decay_steps: int,
    warmup_steps: int = 0,
    decay_shape: str = "linear",
    min_lr_factor: float = 0.0,
) -> float:
    r"""Return warm-up, stable, decay: 1, then over the last D = ``decay_steps`` down to ``min_lr_factor`` (2404.06395).

    ``eta_t = min_lr_factor + (1 - min_lr_factor) * f((t - (T - D)) / D)``, where f(p) is ``1 - p`` (``linear``),
    ``1 - sqrt(p)`` (``one_minus_sqrt``, 2405.18392) or ``(1 + cos(pi * p)) / 2`` (``cosine``).

    >>> [round(wsd(t, total_steps=6, decay_steps=2, warmup_steps=1), 3) for t in range(7)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]
    >>> [round(wsd(t, total_steps=6, decay_steps=2, decay_shape="one_minus_sqrt"), 3) for t in range(7)]
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.293, 0.0]
    """
    return _warmup_then(decay_shape, t, total_steps, decay_steps, warmup_steps, min_lr_factor)


def _warmup_then(
    fall: str, t: float, total_steps: int, decay_steps: int, warmup_steps: int, min_lr_factor: float
) -> float:
    """Return the warm-up, then 1, then a fall over the last ``decay_steps``."""
    if t < warmup_steps:
        return constant(t, warmup_steps=warmup_steps)
    left = max(0.0, total_steps - t) / max(1, decay_steps)
    return min_lr_factor + (1.0 - min_lr_factor) * FALLS[fall](1.0 - min(1.0, left))
