"""BackboneFinetuning adds a group beside what the run has configured.

https://github.com/Lightning-AI/pytorch-lightning/issues/12141 (pytorch-lightning#12141)

There: the group is added as it comes, with one weight decay for biases and norm layers too; and the callback writes the
learning rate of the last group only.
Here: BackboneFinetuning is refused at the start of fit; a BaseFinetuning of the user's works, split by the mask.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.small_run import Net, fit
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning

import lightning_wd as wd

ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}


class Torchs(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(filter(lambda p: p.requires_grad, self.parameters()))


@pytest.mark.parametrize("override", [False, True])
def test_backbone_finetuning_is_refused_before_training(override: bool, tmp_path: Path) -> None:
    module = Torchs() if override else Net(ADAMW)
    callbacks: list[L.Callback] = [BackboneFinetuning(1)]
    with pytest.raises(wd.ConfigError) as caught:
        fit(module, tmp_path, *callbacks, *([wd.OptimizerOverride(ADAMW)] if override else []))
    assert str(caught.value) == (
        "BackboneFinetuning adds the backbone as one group and then writes the learning rate of the last group only, "
        "but the mask splits the backbone into groups that decay and groups that do not.\n"
        "  fix: write MaskedFinetuning(freeze=['backbone.*'], unfreeze={<epoch>: ['backbone.*']}) in its place"
    )


def test_the_way_out_has_the_names_of_the_backbones_parameters(tmp_path: Path) -> None:
    """A backbone may be a property, as of a module that wraps the user's net."""

    class Wraps(Net):
        def __init__(self) -> None:
            super().__init__(ADAMW)
            self.net = torch.nn.ModuleDict({"features": self._modules.pop("backbone")})  # type: ignore[dict-item]

        @property
        def backbone(self) -> Any:  # type: ignore[override]
            return self.net["features"]

    callbacks: list[L.Callback] = [BackboneFinetuning(1)]
    with pytest.raises(
        wd.ConfigError, match=r"freeze=\['net\.features\.\*'\], unfreeze={<epoch>: \['net\.features\.\*'\]}"
    ):
        fit(Wraps(), tmp_path, *callbacks)


def test_beside_an_optimizer_of_torch_it_is_left_alone(tmp_path: Path) -> None:
    assert len(fit(Torchs(), tmp_path, BackboneFinetuning(1), wd.DecayMonitor()).optimizers[0].param_groups) == 2


class Finetuning(BaseFinetuning):
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)  # a tenth of the first group's rate


def test_a_finetuning_of_the_users_is_named_and_split(tmp_path: Path) -> None:
    module = Net(ADAMW, "constant")
    before = module.get_parameter("backbone.0.weight").detach().clone()
    trainer = fit(module, tmp_path, Finetuning(), wd.DecayMonitor(every_n_steps=1), max_epochs=3)
    groups = trainer.optimizers[0].param_groups
    assert [(g["name"], g["weight_decay"], g["lr"], g["param_names"]) for g in groups] == [
        ("decay", 0.1, 0.01, ["head.weight"]),
        ("no_decay", 0.0, 0.01, ["head.bias"]),
        ("decay_epoch_1", 0.1, 0.001, ["backbone.0.weight", "backbone.4.weight"]),
        (
            "no_decay_epoch_1",
            0.0,
            0.001,
            ["backbone.0.bias", "backbone.1.weight", "backbone.1.bias", "backbone.4.bias"],
        ),
    ]
    assert not torch.equal(before, module.get_parameter("backbone.0.weight"))
    assert trainer.callback_metrics["wd/decay_epoch_1/d_t"] == pytest.approx(0.001 * 0.1)
