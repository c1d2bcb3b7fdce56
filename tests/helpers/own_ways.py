"""Optimizers that keep what they are given in ways of their own, as some of other libraries do."""

from __future__ import annotations

from typing import Any

import torch


class BetasApart(torch.optim.Optimizer):
    """As torch-optimi: ``m <- b1*m + (1-b1)*g; w <- w - lr*m``, with ``betas`` kept as ``beta1`` and ``beta2``."""

    def __init__(self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "beta1": betas[0], "beta2": betas[1]})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 1 - group["beta1"])
                    p.sub_(momentum, alpha=group["lr"])


class OwnLoad(BetasApart):
    """As bitsandbytes: it loads its state itself."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)


class Needs(BetasApart):
    """With a keyword that has no default."""

    def __init__(self, params: Any, lr: float = 1e-3, *, rank: int) -> None:
        super().__init__(params, lr)
        self.rank = rank
