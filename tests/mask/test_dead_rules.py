"""A rule that does nothing is refused, one that decays too much is warned of."""

from __future__ import annotations

import pytest
from helpers.masks import Net, net
from torch import nn

from lightning_wd import Mask, MaskError, Rule, plan_decay


def test_a_style_that_nothing_takes_is_refused() -> None:
    with pytest.raises(MaskError) as error:
        plan_decay(net(), {"rules": [{"name": "*.bias", "lr_mult": 2, "style": "l2"}]}, "decoupled")
    assert str(error.value) == (
        "the style 'l2' of mask rule (name '*.bias') has no effect: nothing that it matches decays.\n"
        "  fix: give the rule a wd_mult, or remove its style"
    )
    plan = plan_decay(net(), {"rules": [{"name": "module.*", "style": "l2"}]}, "decoupled")
    assert [(row.style, row.reason) for row in plan][1:3] == [
        ("l2", "weight; style l2 by rule name 'module.*'"),
        ("decoupled", "bias"),
    ]


def test_timms_own_test_excludes_a_relu_and_nothing_complains() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(MaskError, match=r"mask pattern '1\.weight' matched no parameter"):
        plan_decay(net, Mask([Rule(wd_mult=0, name="1.weight")]))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"name": "*.layernrom.*", "wd_mult": 0},
            "mask pattern '*.layernrom.*' matched no parameter.\n"
            "  found: 10 trainable parameters, 0 matches\n"
            "  nearest: '*.layernorm.*' (4 matches: blocks.0.layernorm.weight, ...)\n"
            "  fix: correct the pattern, or remove it",
        ),
        (
            {"name": "layernrom", "wd_mult": 0},
            "mask pattern 'layernrom' matched no parameter.\n"
            "  found: 10 trainable parameters, 0 matches\n"
            "  nearest: '*.layernorm.*' (4 matches: blocks.0.layernorm.weight, ...)\n"
            "  fix: correct the pattern, or remove it",
        ),
        (
            {"name": "head", "wd_mult": 0},
            "mask pattern 'head' matched no parameter.\n"
            "  found: 10 trainable parameters, 0 matches\n"
            "  nearest: '*.head.*' (2 matches: head.weight, ...)\n"
            "  fix: correct the pattern, or remove it",
        ),
        (
            {"module_types": ["LayerNrom"], "wd_mult": 0},
            "mask rule (module_types 'LayerNrom') matched no parameter.\n"
            "  found: 10 trainable parameters, 0 matches\n"
            "  nearest: 'LayerNorm' (4 parameters)\n"
            "  fix: correct the rule, or remove it",
        ),
        (
            {"module_types": ["LayerNorm", "Liner"], "wd_mult": 0},
            "mask rule (module_types 'LayerNorm', 'Liner') names a class that owns no parameter: 'Liner'.\n"
            "  found: LayerNorm, Linear\n"
            "  nearest: 'Linear' (6 parameters)\n"
            "  fix: correct it, or remove it from module_types",
        ),
        (
            {"name": "head.*", "ndim": 7, "wd_mult": 0},
            "mask rule (name 'head.*', ndim 7) matched no parameter.\n"
            "  found: 10 trainable parameters, 0 matches\n"
            "  fix: correct the rule, or remove it",
        ),
        (
            {"name": "head.*"},
            "mask rule (name 'head.*') sets nothing.\n"
            "  found: 2 matches, but none of wd_mult, weight_decay, lr_mult, lr, style, toward, optimizer\n"
            "  fix: give the rule wd_mult=0 to exclude them, or remove it",
        ),
    ],
)
def test_a_dead_rule_is_an_error(rule: dict[str, object], message: str) -> None:
    with pytest.raises(MaskError) as error:
        plan_decay(Net(), {"rules": [rule]})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("pattern", "close"),
    [
        ("net.haed.*", "'net.head.*' (2 matches: net.head.weight, ...)"),
        ("net.blocks", "'net.blocks.*' (8 matches: net.blocks.0.layernorm.weight, ...)"),
        ("net.haed", "'net.head.*' (2 matches: net.head.weight, ...)"),
    ],
)
def test_the_nearest_pattern_corrects_the_wrong_word(pattern: str, close: str) -> None:
    """In a LightningModule every name starts alike, so ``net.`` is right and says nothing."""
    with pytest.raises(MaskError) as error:
        plan_decay(nn.ModuleDict({"net": Net()}), {"rules": [{"name": pattern, "wd_mult": 0}]})
    assert f"nearest: {close}\n" in str(error.value)


def test_a_rule_that_earlier_ones_leave_nothing_to_decide_is_an_error() -> None:
    wide, narrow = {"name": "*.weight", "wd_mult": 0.5}, {"name": "head.weight", "wd_mult": 0}
    with pytest.raises(MaskError) as error:
        plan_decay(Net(), {"rules": [wide, narrow]})
    assert str(error.value) == (
        "mask rule (name 'head.weight') has no effect: earlier rules decide everything that it matches.\n"
        "  found: the rule (name '*.weight') before it\n"
        "  fix: write the narrower rule first, or remove this one"
    )
    assert plan_decay(Net(), {"rules": [narrow, wide]})["head.weight"].wd_mult == 0
    assert plan_decay(Net(), {"rules": [wide, {**narrow, "lr_mult": 2}]})["head.weight"].lr_mult == 2
    assert plan_decay(Net(), {"rules": [wide, {"name": "head.*", "wd_mult": 1}]})["head.bias"].wd_mult == 1


def logged(caplog: pytest.LogCaptureFixture, *rules: dict[str, object], base: str | None = "standard") -> list[str]:
    caplog.clear()
    plan_decay(Net(), {"rules": rules, "base": base})
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_rule_that_decays_a_bias_beside_weights_warns(caplog: pytest.LogCaptureFixture) -> None:
    head = {"name": "*.head.*", "wd_mult": 0.1, "lr_mult": 10}
    assert logged(caplog, head) == [
        "mask rule (name '*.head.*') decays 1 parameter that base 'standard' leaves out, beside 1 that it decays.\n"
        "  found: head.bias (bias)\n"
        "  fix: put {name: 'head.bias', wd_mult: 0} before it, or narrow its conditions; to decay them on purpose, "
        "give them a rule of their own before it"
    ]
    (both,) = logged(caplog, {"name": "*.weight", "wd_mult": 0.5})
    assert "found: blocks.0.layernorm.weight (norm), blocks.1.layernorm.weight (norm)\n" in both


def test_a_rule_that_means_it_does_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    head = {"name": "*.head.*", "wd_mult": 0.1}
    assert logged(caplog, {"name": "*.bias", "wd_mult": 0}, head) == []  # the fix that the warning names
    assert logged(caplog, {"name": "head.bias", "wd_mult": 0.1}, head) == []  # the other one
    assert logged(caplog, {"name": "*.bias", "wd_mult": 1}) == []
    assert logged(caplog, {"name": "*.head.*", "wd_mult": 0}, {"name": "*.fc.*", "lr_mult": 2}) == []
    assert logged(caplog, head, {"wd_mult": 1}, base=None) == logged(caplog, head, base="all") == []


def test_a_rule_that_decays_what_a_hook_names_warns(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    net.no_weight_decay = lambda: ["blocks.0.fc.weight"]  # type: ignore[assignment]
    plan_decay(net, {"rules": [{"name": "*.fc.weight", "wd_mult": 2}]})
    assert "found: blocks.0.fc.weight (weight)\n" in caplog.text


def test_a_rule_that_meets_only_frozen_parameters_is_no_error() -> None:
    net = Net()
    net.head.requires_grad_(False)
    assert plan_decay(net, {"rules": [{"name": "head.*", "lr_mult": 10}]})["head.weight"].reason == "frozen"
    with pytest.raises(MaskError, match="found: 8 trainable and 2 frozen parameters, 0 matches"):
        plan_decay(net, {"rules": [{"name": "heda.*", "lr_mult": 10}]})
