"""What an optimizer's own ``weight_decay`` does, found by stepping it on a few numbers."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["decays_by_itself"]

_AMOUNT, _LR = 0.25, 0.125
_WEIGHTS = (1.0, -2.0, 0.5, 3.0)
_GRADIENTS = ((0.3, 0.1, -0.2, 0.4), (-0.1, 0.5, 0.3, 0.2), (0.2, -0.3, 0.4, -0.5))


def decays_by_itself(
    cls: type[Optimizer], step: Callable[..., Any], given: Mapping[str, Any], device: torch.device
) -> bool:
    r"""Whether an optimizer's weight decay is decoupled and no L2 penalty.

    It is decoupled where each step with ``weight_decay`` differs from one without, from the same weights and gradients,
    by one fraction of all weights. It is an L2 penalty where steps with ``weight_decay`` equal those without on the
    gradients ``g + lam * w``. SGD without momentum is both. The random state is left as it was.

    Args:
        cls: the optimizer's class; one that cannot be stepped on four numbers is taken to have a penalty.
        step: its step, without hooks.
        given: the arguments of its constructor besides the parameters.
        device: where to step it.
    """
    try:
        with warnings.catch_warnings(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            warnings.simplefilter("ignore")
            probe = _Probe(cls, step, given, device)
            return probe.is_decoupled() and not probe.is_penalty()
    except Exception:  # anyone's optimizer: it may want other shapes, dtypes or a closure
        return False


class _Probe:
    """Steps of an optimizer on four numbers."""

    def __init__(self, cls: Any, step: Callable[..., Any], given: Mapping[str, Any], device: torch.device) -> None:
        self._cls, self._step, self._device = cls, step, device
        self._signature = inspect.signature(cls)
        self._given = {key: value for key, value in given.items() if key not in ("fused", "capturable")}
        if "lr" in self._signature.parameters:
            self._given["lr"] = _LR

    def is_decoupled(self) -> bool:
        w, with_decay = self._make(_AMOUNT)
        v, without = self._make(0.0)
        for gradient in _GRADIENTS:
            old = w.detach().clone()
            v.data.copy_(old)
            self._move(w, with_decay, self._tensor(gradient))
            self._move(v, without, self._tensor(gradient))
            removed = (v - w).detach() / old
            if not removed.mean() > 1e-4 or not torch.allclose(removed, removed.mean(), rtol=1e-3):
                return False
        return True

    def is_penalty(self) -> bool:
        w, with_decay = self._make(_AMOUNT)
        v, without = self._make(0.0)
        for gradient in _GRADIENTS:
            self._move(w, with_decay, self._tensor(gradient))
            self._move(v, without, self._tensor(gradient) + _AMOUNT * v.detach())
        return torch.allclose(w, v, rtol=1e-4)

    def _tensor(self, values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)

    def _make(self, weight_decay: float) -> tuple[Tensor, Optimizer]:
        w = torch.nn.Parameter(self._tensor(_WEIGHTS))
        first = next(iter(self._signature.parameters))
        arguments = {**self._given, first: [w], "weight_decay": weight_decay}
        bound = inspect.BoundArguments(self._signature, arguments)
        return w, self._cls(*bound.args, **bound.kwargs)

    def _move(self, w: Tensor, optimizer: Optimizer, gradient: Tensor) -> None:
        w.grad = gradient
        torch.manual_seed(0)  # the same noise on both sides, where there is any
        self._step(optimizer)
