"""What the module and the callbacks of others do to the optimizer: noticed, without a false alarm."""

from __future__ import annotations

import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_run import Net, TwoOptimizers, fit
from torch import nn

import lightning_wd as wd
from lightning_wd.configure.neighbours import check_neighbours, watch


def step(module: nn.Module, optimizer: torch.optim.Optimizer, inputs: int = 2) -> None:
    module(torch.ones(1, inputs)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_plain_module_is_watched_too() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    optimizer = wd.configure_optimizers(model, "adamw")["optimizer"]
    for _ in range(99):
        step(model, optimizer)
    model[0].requires_grad_(True)
    step(model, optimizer)
    with pytest.warns(UserWarning, match=r"Sequential has .*\n  found: 0\.weight, 0\.bias\n"):
        step(model, optimizer)
    for _ in range(101):
        step(model, optimizer)  # once


def test_one_watch_an_optimizer() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    watch(optimizer, model)
    watch(optimizer, model[1])  # the later one stands
    step(model, optimizer)


def test_an_optimizer_of_copies_is_no_cause_to_warn() -> None:
    """DeepSpeed's optimizers train copies in float32."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD([p.detach().clone() for p in model.parameters()], lr=0.1)
    watch(optimizer, model)
    step(model, optimizer)


def test_each_of_two_optimizers_knows_the_other(tmp_path: Path) -> None:
    fit(TwoOptimizers(), tmp_path, wd.DecayMonitor(), wd.DecayPlanSummary())  # warnings are errors here


def test_methods_that_lightning_does_not_call_are_no_cause_to_warn() -> None:
    class Own(Net):
        def optimizer_step(self, *args: Any, **keywords: Any) -> None:
            raise NotImplementedError

    module = Own()
    module.automatic_optimization = False
    check_neighbours(module, scheduled=True)
    module.automatic_optimization = True
    with pytest.warns(UserWarning, match=r"^Own\.optimizer_step replaces"):
        check_neighbours(module, scheduled=True)


@pytest.mark.parametrize("package", ["lightning.pytorch.core.module", "pytorch_lightning.core.module"])
def test_both_packages_of_lightning_have_steps_of_their_own(package: str) -> None:
    base = type("LightningModule", (nn.Module,), {"automatic_optimization": True})

    def optimizer_step(self: Any) -> None:
        """As in the package."""

    optimizer_step.__module__ = package
    base.optimizer_step = optimizer_step  # type: ignore[attr-defined]
    module = base()
    module._trainer = types.SimpleNamespace(callbacks=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_neighbours(module, scheduled=True)
