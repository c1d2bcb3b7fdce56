"""Which optimizers have a decoupled decay of their own, found by stepping them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn

import lightning_wd as wd
from lightning_wd.optimizers.probe import decays_by_itself

CPU = torch.device("cpu")


class Switched(torch.optim.SGD):
    """SGD with momentum whose decay is a penalty or decoupled, as an attribute says, and noise."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0, weight_decouple: bool = True) -> None:
        super().__init__(params, lr=lr, momentum=0.9, weight_decay=weight_decay)
        self.weight_decouple = weight_decouple

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            amount = group["weight_decay"]
            for p in group["params"]:
                if self.weight_decouple:
                    p.mul_(1 - group["lr"] * amount)
                p.add_(torch.randn_like(p), alpha=1e-3)
            group["weight_decay"] = 0.0 if self.weight_decouple else amount
            super().step()
            group["weight_decay"] = amount


class Fails(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        raise RuntimeError("on an accelerator only")


@pytest.mark.parametrize(
    ("cls", "given", "itself"),
    [
        (torch.optim.AdamW, {}, True),
        (torch.optim.AdamW, {"lr": 0.0, "amsgrad": True}, True),
        (torch.optim.Adam, {}, False),
        (torch.optim.SGD, {}, False),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, False),
        (torch.optim.NAdam, {}, False),
        (torch.optim.NAdam, {"decoupled_weight_decay": True}, True),
        (torch.optim.RAdam, {}, False),
        (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}, False),
        (torch.optim.Adagrad, {}, False),
        (torch.optim.Adamax, {}, False),
        (torch.optim.Adadelta, {}, False),
        (torch.optim.ASGD, {}, False),
        (Switched, {}, True),
        (Switched, {"weight_decouple": False}, False),
        (Fails, {}, False),
    ],
)
def test_what_its_own_decay_is(cls: Any, given: dict[str, Any], itself: bool) -> None:
    assert decays_by_itself(cls, cls.step, given, CPU) is itself


def test_the_random_state_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    assert decays_by_itself(Switched, Switched.step, {}, CPU)
    assert torch.equal(before, torch.get_rng_state())


def test_the_users_settings_are_probed_and_survive_a_pickle() -> None:
    layer = nn.Linear(2, 2)
    optimizer = wd.decoupled(Switched)([layer.weight], style="l2", weight_decouple=False)
    copied = pickle.loads(pickle.dumps(optimizer))
    copied.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert [group["style"] for group in copied.param_groups] == ["l2", "l2"]
    other = wd.decoupled(Switched)([layer.weight])
    with pytest.raises(wd.ConfigError, match=r"SwitchedW cannot do style 'l2' of group 1"):
        other.add_param_group({"params": [layer.bias], "style": "l2"})
