"""Saving an optimizer that has not stepped yet changed the weights.

https://github.com/pytorch/pytorch/pull/125708 (pytorch#125708)

There: ``get_optimizer_state_dict`` steps an empty optimizer once, with zero gradients, to create its state. AdamW
decayed the weights in that step. torch now sets lr to 0 for it, which stops only a decay that lr multiplies.
Here: no optimizer of the pack moves a weight in that step, in any style.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import lightning_wd as wd
from lightning_wd.optimizers.by_name import OPTIMIZERS

STYLES = ("decoupled", "independent", "constant", "corrected")
L2 = ("adam_l2", "sgd_l2")
CASES = [
    *((name, style) for name in sorted(OPTIMIZERS) if name not in L2 for style in STYLES),
    *((n, "l2") for n in L2),
]


def build_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))


def moved_by_saving(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the parameters that asking for the optimizer's state changes."""
    before = copy.deepcopy(dict(model.named_parameters()))
    assert get_optimizer_state_dict(model, optimizer)["state"]
    return [name for name, param in model.named_parameters() if not torch.equal(param, before[name])]


@pytest.mark.parametrize(("name", "style"), CASES)
def test_saving_before_the_first_step_moves_no_weight(name: str, style: str) -> None:
    model = build_model()
    config = {"name": name, "lr": 0.1, "weight_decay": 0.1, "decay": {"style": style}}
    optimizer = wd.configure_optimizers(model, config)["optimizer"]
    assert moved_by_saving(model, optimizer) == []
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}


class NaiveSGDW(torch.optim.SGD):
    """Constant decay without our care for the step at lr 0."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                param.mul_(1 - 0.1)
        return super().step(closure)


def test_the_case_is_real() -> None:
    model = build_model()
    assert "0.weight" in moved_by_saving(model, NaiveSGDW(model.parameters(), lr=0.1, momentum=0.9))
