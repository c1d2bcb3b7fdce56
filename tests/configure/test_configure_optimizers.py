"""configure_optimizers: what is built, in groups by name, and with Fabric."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from helpers.lit import ADAMW, Lit, groups_of

from lightning_wd.configure import configure_optimizers


@pytest.mark.parametrize("prefixed", [False, True])
def test_groups_by_name_in_plain_torch_and_in_lightning(prefixed: bool) -> None:
    lit = Lit()
    optimizer = configure_optimizers(lit if prefixed else lit.net, ADAMW)["optimizer"]
    net = "net." if prefixed else ""
    assert groups_of(optimizer) == {
        "decay": [f"{net}0.weight", f"{net}2.weight"],
        "no_decay": [f"{net}0.bias", f"{net}1.weight", f"{net}1.bias", f"{net}2.bias"],
    }
    assert [(g["weight_decay"], g["lr"], g["base_lr"], g["style"]) for g in optimizer.param_groups] == [
        (0.1, 0.01, 0.01, "decoupled"),
        (0.0, 0.01, 0.01, "decoupled"),
    ]
    assert [row.reason for row in optimizer.decay_plan][:3] == ["weight", "bias", "norm layer LayerNorm"]


@pytest.mark.parametrize(
    ("name", "style", "cls", "base"),
    [
        ("adamw", "decoupled", "AdamW", torch.optim.AdamW),
        ("adamw", "independent", "AdamW", torch.optim.AdamW),
        ("sgdw", "decoupled", "SGDW", torch.optim.SGD),
        ("adam_l2", "l2", "AdamL2", torch.optim.Adam),
        ("adamw", "l2", "AdamL2", torch.optim.Adam),
        ("sgd_l2", "l2", "SGDL2", torch.optim.SGD),
        ("adam_l2", "none", "AdamW", torch.optim.AdamW),
    ],
)
def test_classes(name: str, style: str, cls: str, base: type) -> None:
    config = {"name": name, "weight_decay": 0.01, "decay": {"style": style}}
    optimizer = configure_optimizers(Lit(), config)["optimizer"]
    assert (type(optimizer).__name__, isinstance(optimizer, base)) == (cls, True)
    if style == "l2":
        assert not isinstance(optimizer, torch.optim.AdamW)


def test_hyperparameters_reach_the_optimizer() -> None:
    adam = configure_optimizers(Lit(), {**ADAMW, "betas": [0.8, 0.9], "eps": 1e-6, "amsgrad": True})["optimizer"]
    assert (adam.defaults["betas"], adam.defaults["eps"], adam.defaults["amsgrad"]) == ((0.8, 0.9), 1e-6, True)
    sgd = configure_optimizers(Lit(), {"name": "sgdw", "momentum": 0.5, "nesterov": True})["optimizer"]
    assert [(g["momentum"], g["nesterov"]) for g in sgd.param_groups] == [(0.5, True)] * 2
    cautious = configure_optimizers(Lit(), {**ADAMW, "decay": {"cautious": True}})["optimizer"]
    assert [g["cautious_wd"] for g in cautious.param_groups] == [True, True]


def test_the_lr_multiplier_scales_the_decay_of_decoupled_not_of_independent() -> None:
    rules = {"rules": [{"name": "2.*", "lr_mult": 10}]}
    for style, fraction in (("decoupled", 0.1 * 0.01 * 10), ("independent", 0.1)):
        config = {**ADAMW, "decay": {"style": style}, "mask": rules}
        head = configure_optimizers(Lit().net, config)["optimizer"].param_groups[2]
        assert (head["name"], head["lr"], head["base_lr"]) == ("decay_lr_x10", 0.1, 0.1)
        from lightning_wd.styles import step_fraction

        d = step_fraction(style, weight_decay=head["weight_decay"], lr=head["lr"], base_lr=head["base_lr"])
        assert d == pytest.approx(fraction)


def test_with_fabric() -> None:
    fabric = L.Fabric(accelerator="cpu", devices=1)
    net = Lit().net
    built = configure_optimizers(net, {**ADAMW, "decay": {"style": "constant"}, "weight_decay": 0.5})
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    model, optimizer = fabric.setup(net, built["optimizer"])
    fabric.backward(model(torch.zeros(2, 4)).sum() * 0)
    optimizer.step()
    after = dict(net.named_parameters())
    torch.testing.assert_close(after["0.weight"], before["0.weight"] * 0.5)
    torch.testing.assert_close(after["0.bias"], before["0.bias"], rtol=0, atol=0)
