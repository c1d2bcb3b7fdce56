"""Parameters that a module unfreezes in a later epoch have gradients and never train.

https://github.com/Lightning-AI/pytorch-lightning/issues/8720 (pytorch-lightning#8720)

There: the optimizer was built without the frozen backbone, and nothing says that it still lacks it once it is unfrozen.
Here: a warning names such parameters once, whoever built the optimizer; one that stays frozen is no cause to warn.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.small_run import Net, fit, make_trainer
from torch.utils.data import DataLoader, TensorDataset

import lightning_wd as wd

LOST = (
    "has parameters with gradients that no optimizer trains.\n"
    "  found: backbone.0.weight, backbone.0.bias, backbone.1.weight, and 3 more\n"
    "  fix: to unfreeze them in a later epoch, let MaskedFinetuning(freeze=[...], unfreeze={epoch: [...]}) do it, or "
    "call optimizer.add_param_group({'params': [...]}); to leave them as they are, freeze them with "
    "requires_grad_(False)"
)


class Unfreezes(Net):
    """Freezes its backbone, and unfreezes it at an epoch or at a step."""

    def __init__(self, *, epoch: int | None = None, step: int | None = None, torchs: bool = False) -> None:
        super().__init__("adamw")
        self.when, self.torchs = (epoch, step), torchs
        self.backbone.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        if self.torchs:
            return torch.optim.AdamW(self.head.parameters())
        return super().configure_optimizers()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        epoch, step = self.when
        if epoch == self.current_epoch or step == self.global_step:
            self.backbone.requires_grad_(True)


def warned(module: L.LightningModule, tmp_path: Path, *callbacks: L.Callback, **keywords: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, tmp_path, *callbacks, **keywords)
    return [str(one.message) for one in caught if "no optimizer trains" in str(one.message)]


def test_our_optimizer_names_them_once(tmp_path: Path) -> None:
    module = Unfreezes(epoch=1)
    before = module.get_parameter("backbone.0.weight").detach().clone()
    assert warned(module, tmp_path) == [f"Unfreezes {LOST}"]
    assert torch.equal(before, module.get_parameter("backbone.0.weight"))  # the case is real


@pytest.mark.parametrize(
    "callback", [wd.DecayMonitor(), wd.DecayPlanSummary(), wd.DecaySchedule(), wd.OptimizerOverride("adamw")]
)
def test_our_callbacks_name_them_beside_any_optimizer(callback: L.Callback, tmp_path: Path) -> None:
    assert warned(Unfreezes(epoch=1, torchs=True), tmp_path, callback) == [f"Unfreezes {LOST}"]


def test_within_a_long_epoch(tmp_path: Path) -> None:
    module = Unfreezes(step=3)
    rows = TensorDataset(torch.randn(101, 6), torch.zeros(101, 3))
    with pytest.warns(UserWarning, match="no optimizer trains"):
        make_trainer(tmp_path, max_epochs=1).fit(module, DataLoader(rows))


def test_a_backbone_that_stays_frozen_is_no_cause_to_warn(tmp_path: Path) -> None:
    assert warned(Unfreezes(), tmp_path, wd.DecayMonitor(), wd.DecayPlanSummary()) == []


def test_masked_finetuning_trains_them(tmp_path: Path) -> None:
    finetuning = wd.MaskedFinetuning(freeze=["backbone.*"], unfreeze={1: ["backbone.*"]})
    assert warned(Net("adamw"), tmp_path, finetuning) == []
