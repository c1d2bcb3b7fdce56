"""Readable float64 twins of the optimizers, in NumPy: the definitions of the decay styles, and nothing else.

No torch.optim: each step is written from its equation, on one array, with every style spelled out.
"""

from __future__ import annotations

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
        if self.style == "hyperball":
            self.w = turned(self.w, u, lr, self.radius)
        else:
            d = fraction(self.style, self.lam, lr, self.base_lr)
            self.w = decayed(self.w, u, lr, d, self.cautious, self.anchor)


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
        if self.style == "hyperball":
            self.w = turned(self.w, u, lr, self.radius)
        else:
            d = fraction(self.style, self.lam, lr, self.base_lr)
            self.w = decayed(self.w, u, lr, d, self.cautious, self.anchor)
