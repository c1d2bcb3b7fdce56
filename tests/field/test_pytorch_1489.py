"""A state went to other parameters, because an optimizer saves positions and no names.

https://github.com/pytorch/pytorch/issues/1489 (pytorch#1489)

There: parameters in another order get each other's moments, in silence where their shapes agree.
Here: names match wherever both sides have them, in any order and any groups. Without names a warning tells that
position alone decides, and ``on_resume=error`` refuses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import lightning_wd as wd

ORDER = ("net.weight", "key.weight", "query.weight", "norm.bias")  # of the torch optimizer, not of the module
CONFIG = {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2}


class Net(L.LightningModule):
    def __init__(self, named: bool | None = None, **config: Any) -> None:
        super().__init__()
        self.query, self.key, self.net = nn.Linear(8, 8, False), nn.Linear(8, 8, False), nn.Linear(8, 1, False)
        self.norm = nn.LayerNorm(8)
        self.norm.weight.requires_grad_(False)
        self.named, self.config = named, {**CONFIG, **config}

    def configure_optimizers(self) -> Any:
        if self.named is None:
            return wd.configure_optimizers(self, self.config)
        members = [(name, dict(self.named_parameters())[name]) for name in ORDER]
        params: Any = members if self.named else [p for _, p in members]
        return torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-2)

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return self.net(self.norm(self.query(batch) * self.key(batch))).square().mean()

    def train_dataloader(self) -> Any:
        data: Any = torch.randn(8, 8)
        return torch.utils.data.DataLoader(data, 4)

    def moments(self) -> dict[str, Tensor]:
        state = self.trainer.optimizers[0].state
        return {name: state[p]["exp_avg"] for name, p in self.named_parameters() if p.requires_grad}


class Resumed(L.Callback):
    moments: dict[str, Tensor]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.moments = {name: value.clone() for name, value in pl_module.moments().items()}


def fit(model: Net, *callbacks: L.Callback, epochs: int = 1, ckpt: Path | None = None) -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, ckpt_path=ckpt)
    return trainer


def saved(folder: Path, named: bool) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint of plain torch's AdamW, and the moments in it."""
    before = Net(named)
    fit(before).save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt", before.moments()


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended")
def test_names_match_in_another_order_and_in_the_groups_of_the_mask(tmp_path: Path) -> None:
    path, before = saved(tmp_path, named=True)
    look, model = Resumed(), Net()
    with pytest.warns(UserWarning, match="group 'no_decay': weight_decay is 0.01 in the checkpoint; the mask leaves"):
        trainer = fit(model, look, epochs=2, ckpt=path)
    assert look.moments.keys() == before.keys() == set(ORDER)
    assert all(torch.equal(look.moments[name], value) for name, value in before.items())
    assert [(g["name"], g["param_names"], g["weight_decay"]) for g in trainer.optimizers[0].param_groups] == [
        ("decay", ["query.weight", "key.weight", "net.weight"], 0.01),
        ("no_decay", ["norm.bias"], 0.0),
    ]
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {4}


def test_without_names_the_mask_that_fits_is_named_and_then_position_is_told(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, named=False)
    with pytest.raises(wd.CheckpointMismatchError, match=r"fix: write optimizer/mask=all \(mask='all' in Python\)"):
        fit(Net(), epochs=2, ckpt=path)
    with pytest.raises(wd.CheckpointMismatchError, match=r"exp_avg of parameter 'query.weight' in group 'decay'"):
        fit(Net(mask="all"), epochs=2, ckpt=path)


class Alike(Net):
    """Only parameters of one shape: no check of shapes can see that their order has changed."""

    def __init__(self, named: bool | None = None, **config: Any) -> None:
        super().__init__(named, mask="all", **config)
        for module in (self.net, self.norm):
            module.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        if self.named is None:
            return super().configure_optimizers()
        return torch.optim.AdamW([self.key.weight, self.query.weight], lr=1e-3, weight_decay=1e-2)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended")
def test_position_alone_is_told_and_refused_on_request(tmp_path: Path) -> None:
    first = Alike(named=False)
    fit(first).save_checkpoint(path := tmp_path / "last.ckpt")
    words = (
        "the checkpoint has no names of parameters, so AdamW takes the state by position only: 2 tensors share their "
        "shape with another"
    )
    look = Resumed()
    with pytest.warns(UserWarning, match=words) as told:
        fit(Alike(), look, epochs=2, ckpt=path)
    assert len([w for w in told if words in str(w.message)]) == 1
    assert torch.equal(look.moments["query.weight"], first.moments()["key.weight"])  # the case is real
    with pytest.raises(wd.CheckpointMismatchError, match=words):
        fit(Alike(on_resume="error"), epochs=2, ckpt=path)
