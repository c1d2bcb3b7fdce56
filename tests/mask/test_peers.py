"""What other libraries decay, silently wrong masks included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.masks import Holder, decayed, named
from torch import nn
from torch.nn.utils import parametrizations

from lightning_wd import MaskError, plan_decay
from lightning_wd.mask import peer_plan


class PosEmbed(nn.Module):
    """A ViT's outline: a position table whose name says nothing, known by the hook alone."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Parameter(torch.ones(1, 4, 4))
        self.fc = nn.Linear(4, 4)

    def no_weight_decay(self) -> set[str]:
        return {"grid"}


def test_timm_loses_the_hook_in_a_lightning_module_and_under_compile() -> None:
    wrapped = nn.ModuleDict({"model": PosEmbed()})
    assert decayed(peer_plan(wrapped, "timm")) == {"model.grid", "model.fc.weight"}
    assert decayed(plan_decay(wrapped)) == {"model.fc.weight"}
    compiled: Any = torch.compile(PosEmbed(), backend="eager")
    assert decayed(peer_plan(compiled, "timm")) == {"grid", "fc.weight"}
    assert decayed(plan_decay(compiled)) == {"fc.weight"}


def test_transformers_decays_norms_it_does_not_know_and_exempts_debias() -> None:
    """pytorch_optimizer likewise."""
    net = nn.ModuleDict(
        {
            "n1": named("MyRMSNorm", weight=(4,)), "n2": nn.BatchNorm1d(4), "n3": nn.GroupNorm(1, 4),
            "ssm": Holder(A_log=(4, 4)), "debias_proj": nn.Linear(4, 4),
        }
    )  # fmt: skip
    assert decayed(peer_plan(net, "transformers")) == {"n1.weight", "n2.weight", "n3.weight", "ssm.A_log"}
    assert decayed(plan_decay(net)) == {"debias_proj.weight"}


def test_ndim_rules_decay_weight_norms_magnitude() -> None:
    net = parametrizations.weight_norm(nn.Linear(4, 4))
    assert "parametrizations.weight.original0" in decayed(peer_plan(net, "ndim"))
    for mask in ("standard", "no_embeddings", "matrices"):
        assert decayed(plan_decay(net, mask)) == {"parametrizations.weight.original1"}


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(
        MaskError,
        match=r"peer 'tim' is unknown.\n  valid: timm, transformers, ndim\n  nearest: 'timm'\n  fix: write peer=timm",
    ):
        peer_plan(nn.Linear(2, 2), "tim")
