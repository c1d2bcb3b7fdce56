"""What ``weight_decay`` means cannot be read off its name: Lion's is decoupled.

https://github.com/lucidrains/lion-pytorch/issues/39 (lion-pytorch#39)
https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1992 (bitsandbytes#1992)

There: users take an optimizer's ``weight_decay`` for another kind than it is.
Here: ``wd.identify(cls)`` finds out by stepping the class, and ``wd.decoupled(cls)`` asks it: the decay happens once,
and style ``l2`` is refused where the class has no L2 penalty.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lightning_wd as wd


class Lion(torch.optim.Optimizer):
    """Sign of the gradient; its own decay is decoupled."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * p.grad.sign())


def stepped(**settings: Any) -> list[float]:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    weight.grad = torch.zeros(2)
    wd.decoupled(Lion)([weight], lr=0.1, weight_decay=0.5, **settings).step()
    return weight.tolist()


def test_l2_is_refused() -> None:
    with pytest.raises(wd.ConfigError) as caught:
        stepped(style="l2")
    problem, found, *others = str(caught.value).splitlines()
    assert problem == "LionW cannot do style 'l2' of group 0: the weight_decay of Lion is no L2 penalty."
    assert found.startswith(
        "  found: identify(Lion) says 'decoupled'. A step removes the same fraction d of all old weights: p95/p5 = 1. "
        "d = lr_t * weight_decay: 0.000122 at lr_t=0.015625, "
    )
    assert others == [
        "  valid: decoupled, independent, constant, corrected, none",
        "  fix: write style='decoupled', or add the penalty lam/2 * ||w||^2 to the loss",
    ]


def test_a_state_of_the_class_itself_is_decoupled() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = wd.decoupled(Lion)([weight], lr=0.1, weight_decay=0.5)
    optimizer.load_state_dict(Lion([weight], lr=0.1, weight_decay=0.5).state_dict())
    assert [(group["style"], group["weight_decay"]) for group in optimizer.param_groups] == [("decoupled", 0.5)]


def test_the_decoupled_styles_decay_once() -> None:
    assert stepped() == pytest.approx([0.95, -1.9])
    assert stepped(style="independent") == pytest.approx([0.5, -1.0])
    assert stepped(style="none") == pytest.approx([1.0, -2.0])
