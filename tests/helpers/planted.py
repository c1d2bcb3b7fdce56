"""Optimizers with a decay of their own, whose meaning is planted."""

from __future__ import annotations

from typing import Any

import torch


class Planted(torch.optim.Optimizer):
    """The sign of a momentum, with a decay that is planted: ``decay(lam, lr, lr0)`` is the fraction of the weights."""

    decay: Any = staticmethod(lambda lam, lr, lr0: lr * lam)

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})
        self.lr0, self.amount = lr, weight_decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                old = p.clone()
                m.lerp_(self.gradient(p, group), 1 - group["beta"])
                p.sub_(group["lr"] * m.sign() + self.fraction(group) * old)

    def fraction(self, group: dict[str, Any]) -> float:
        return float(type(self).decay(group["weight_decay"], group["lr"], self.lr0))

    def gradient(self, p: Any, group: dict[str, Any]) -> torch.Tensor:
        return p.grad.clone()


class Constant(Planted):
    decay = staticmethod(lambda lam, lr, lr0: lam)


class AtConstruction(Planted):
    """It keeps its constructor's amount, whatever the group says later."""

    def fraction(self, group: dict[str, Any]) -> float:
        return float(group["lr"] * self.amount)


class Projected(Planted):
    """Ten times the decay while there is a gradient, as AdamP and SGDP."""

    def fraction(self, group: dict[str, Any]) -> float:
        moving = any(p.grad.any() for p in group["params"])
        return super().fraction(group) * (10 if moving else 1)


class TrustRatio(Planted):
    """LAMB's: the decay is part of an update whose norm is that of the weights."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                with torch.no_grad():
                    update = p.grad.sign() + group["weight_decay"] * p
                    p.sub_(group["lr"] * update * p.norm() / update.norm())
