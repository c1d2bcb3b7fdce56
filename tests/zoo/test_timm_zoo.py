"""Two architectures of every timm family, on the meta device."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers.zoo import check_plan, outline
from helpers.zoo_groups import TIMM
from torch import nn

from lightning_wd import Mask, plan_decay
from lightning_wd.mask import peer_plan

timm = pytest.importorskip(
    "timm", reason="timm is not installed: make test-zoo runs the zoo in an environment of its own"
)

MODELS = [name for family in timm.list_modules() for name in timm.list_models(module=family)[:2]]


def build(name: str) -> nn.Module:
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # timm's own deprecations are not under test
        return timm.create_model(name)  # type: ignore[no-any-return]


def test_the_zoo_is_large() -> None:
    assert len(MODELS) >= 100


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_placed_correctly(name: str) -> None:
    model = build(name)
    plan = check_plan(model)
    excluded_by_timm = {row.name for row in peer_plan(model, "timm") if not row.wd_mult}
    assert excluded_by_timm <= {row.name for row in plan if not row.wd_mult}  # we exempt what timm does


@pytest.mark.parametrize("name", TIMM)
def test_exact_groups(name: str) -> None:
    plan = plan_decay(nn.ModuleDict({"model": build(name)}))
    for group, expected in zip(("decay", "no_decay"), TIMM[name], strict=True):
        assert outline(row.name.removeprefix("model.") for row in plan if row.group == group) == expected


@pytest.mark.parametrize("name", MODELS[::2])
def test_layerwise_rates_are_timms(name: str) -> None:
    from timm.optim._param_groups import param_groups_layer_decay

    model = build(name)
    if not hasattr(model, "group_matcher"):
        pytest.skip("timm falls back to counting parameters: this model has no group_matcher")
    theirs = {id(p): g["lr_scale"] for g in param_groups_layer_decay(model, layer_decay=0.75) for p in g["params"]}
    assert {id(row.param): row.lr_mult for row in plan_decay(model, Mask.layerwise(0.75)) if row.group} == theirs


@pytest.mark.parametrize("name", MODELS[::4])
def test_the_policy_timm_is_timms_own(name: str) -> None:
    from timm.optim import create_optimizer_v2

    model = build(name)
    groups = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=0.1).param_groups
    theirs = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert {id(row.param) for row in peer_plan(model, "timm") if row.wd_mult} == theirs
