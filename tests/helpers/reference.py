"""Readable float64 twins of the optimizers, in NumPy: the definitions of the decay styles, and nothing else.

No torch.optim: each step is written from its equation, on one array, with every style spelled out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray


def fraction(style: str, lam: float, lr: float, base_lr: float) -> float:
    """``d_t``, the fraction of the old weights that a step removes."""
    eta = lr / base_lr if base_lr else 0.0
    return {
        "l2": 0.0,
        "none": 0.0,
        "hyperball": 0.0,
        "decoupled": lr * lam,
        "independent": eta * lam,
        "constant": lam,
        "corrected": eta * lr * lam,
    }[style]


def decayed(w: Array, u: Array, lr: float, d: float, cautious: bool, anchor: Array | float = 0.0) -> Array:
    """``w - lr * u - d * (w_old - w*)``, the last term only where ``u * (w_old - w*) >= 0`` if cautious."""
    away = w - anchor
    keep = np.sign(u) * np.sign(away) >= 0 if cautious else np.ones_like(w, dtype=bool)
    return w - lr * u - d * np.where(keep, away, 0.0)


def turned(w: Array, u: Array, lr: float, radius: float) -> Array:
    """``R * N(W - lr * R * N(u))``; W where u is 0."""
    length = np.linalg.norm(u)
    if not length:
        return w
    moved = w - lr * radius * u / length
    return radius * moved / np.linalg.norm(moved)


def moved(twin: Adam | SGD | Muon, u: Array, lr: float) -> Array:
    """The weights after a step along u, with decay or on their hyperball."""
    if twin.style == "hyperball":
        return turned(twin.w, u, lr, twin.radius)
    return decayed(twin.w, u, lr, fraction(twin.style, twin.lam, lr, twin.base_lr), twin.cautious, twin.anchor)


@dataclass
class Adam:
    w: Array
    base_lr: float
    lam: float
    style: str = "decoupled"
    cautious: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False
    maximize: bool = False
    anchor: Array | float = 0.0
    t: int = 0
    m: Array = field(default_factory=lambda: np.zeros(()))
    v: Array = field(default_factory=lambda: np.zeros(()))
    v_max: Array = field(default_factory=lambda: np.zeros(()))
    radius: float = 0.0

    def __post_init__(self) -> None:
        self.radius = float(np.linalg.norm(self.w))

    def step(self, g: Array, lr: float) -> None:
        b1, b2 = self.betas
        g = -g if self.maximize else g
        g = g + self.lam * (self.w - self.anchor) if self.style == "l2" else g
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g * g
        self.v_max = np.maximum(self.v_max, self.v)
        m_hat = self.m / (1 - b1**self.t)
        v_hat = (self.v_max if self.amsgrad else self.v) / (1 - b2**self.t)
        u = m_hat / (np.sqrt(v_hat) + self.eps)
        self.w = moved(self, u, lr)


@dataclass
class SGD:
    w: Array
    base_lr: float
    lam: float
    style: str = "decoupled"
    cautious: bool = False
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    anchor: Array | float = 0.0
    m: Array | None = None
    radius: float = 0.0

    def __post_init__(self) -> None:
        self.radius = float(np.linalg.norm(self.w))

    def step(self, g: Array, lr: float) -> None:
        g = -g if self.maximize else g
        g = g + self.lam * (self.w - self.anchor) if self.style == "l2" else g
        u = g
        if self.momentum:
            self.m = g if self.m is None else self.momentum * self.m + (1 - self.dampening) * g
            u = g + self.momentum * self.m if self.nesterov else self.m
        self.w = moved(self, u, lr)


def orthogonal(u: Array, steps: int = 5) -> Array:
    """The quintic Newton-Schulz iteration on a matrix."""
    x = u / max(np.linalg.norm(u), 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x


@dataclass
class Muon:
    w: Array  # of any shape; its first dimension is that of the matrix, or of `split` stacked matrices
    base_lr: float
    lam: float
    style: str = "decoupled"
    cautious: bool = False
    momentum: float = 0.95
    nesterov: bool = True
    original: bool = False
    split: int = 1
    anchor: Array | float = 0.0
    m: Array | float = 0.0
    radius: float = 0.0

    def __post_init__(self) -> None:
        self.radius = float(np.linalg.norm(self.w))

    def step(self, g: Array, lr: float) -> None:
        self.m = self.momentum * self.m + (1 - self.momentum) * g
        u = self.momentum * self.m + (1 - self.momentum) * g if self.nesterov else self.m
        parts = [part.reshape(len(part), -1) for part in np.split(u, self.split)]
        rows, columns = parts[0].shape
        c = math.sqrt(max(1, rows / columns)) if self.original else 0.2 * math.sqrt(max(rows, columns))
        o = np.concatenate([orthogonal(part) for part in parts]).reshape(self.w.shape)
        self.w = moved(self, c * o, lr)
