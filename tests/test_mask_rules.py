"""What a rule and a mask accept, which parameters a rule meets, and the exact words of every refusal."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from lightning_wd import Mask, MaskError, Rule, plan_decay
from lightning_wd.mask import as_mask


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"layernorm": nn.LayerNorm(4), "fc": nn.Linear(4, 4)}) for _ in range(2)
        )
        self.head = nn.Linear(4, 2)


def names_met(rule: Rule) -> list[str]:
    return [row.name for row in plan_decay(Net(), Mask([rule], base="none")) if row.decay or row.lr != 1]


@pytest.mark.parametrize(
    ("rule", "met"),
    [
        (Rule(1, name="*.head.*"), ["head.weight", "head.bias"]),  # a leading *. also matches at the root
        (Rule(1, name="head.*"), ["head.weight", "head.bias"]),
        (Rule(1, name="*.0.fc.weight"), ["blocks.0.fc.weight"]),
        (Rule(1, name="blocks.?.fc.bias"), ["blocks.0.fc.bias", "blocks.1.fc.bias"]),
        (Rule(1, name=r"regex:blocks\.\d\.fc\.w"), ["blocks.0.fc.weight", "blocks.1.fc.weight"]),
        (Rule(1, name="regex:^head"), ["head.weight", "head.bias"]),
        (Rule(1, module_types=nn.Linear, ndim=2), ["blocks.0.fc.weight", "blocks.1.fc.weight", "head.weight"]),
        (Rule(1, module_types="LayerNorm", name="*.0.*"), ["blocks.0.layernorm.weight", "blocks.0.layernorm.bias"]),
        (Rule(1, module_types=["torch.nn.LayerNorm"], name="*.1.*.bias"), ["blocks.1.layernorm.bias"]),
        (Rule(1, predicate=lambda name, parameter, module: parameter.shape == (2, 4)), ["head.weight"]),
        (
            Rule(1, predicate=lambda name, parameter, module: module.__class__ is nn.Linear, ndim=1, name="head*"),
            ["head.bias"],
        ),
        (Rule(lr=3, name="head.bias"), ["head.bias"]),
    ],
)
def test_a_rule_meets_exactly_these(rule: Rule, met: list[str]) -> None:
    assert names_met(rule) == met


def test_a_glob_is_on_the_full_name_and_case_counts() -> None:
    for pattern in ("fc.weight", "Head.weight"):
        with pytest.raises(MaskError, match="matched no parameter"):
            plan_decay(Net(), Mask([Rule(0, name=pattern)]))


def test_per_property_the_first_match_wins() -> None:
    mask = Mask([Rule(lr=10, name="*.head.*"), Rule(0.5, name="*.weight", lr=2), Rule(0, name="head.*", reason="mine")])
    plan = plan_decay(Net(), mask)
    assert (plan["head.weight"].decay, plan["head.weight"].lr) == (0.5, 10)
    assert (plan["head.bias"].decay, plan["head.bias"].lr, plan["head.bias"].reason) == (
        *(0, 10),
        "mine; lr x10 by rule name '*.head.*'",
    )
    assert (plan["blocks.0.fc.weight"].decay, plan["blocks.0.fc.weight"].lr) == (0.5, 2)


def test_an_lr_rule_leaves_norms_and_biases_excluded() -> None:
    """mmengine#846: there a matching custom key switches the norm and bias rules off."""
    plan = plan_decay(Net(), Mask([Rule(lr=10, name="*.head.*"), Rule(lr=0.1, name="*.layernorm.*")]))
    assert [(row.name, row.decay, row.lr) for row in plan] == [
        ("blocks.0.layernorm.weight", 0.0, 0.1),
        ("blocks.0.layernorm.bias", 0.0, 0.1),
        ("blocks.0.fc.weight", 1.0, 1.0),
        ("blocks.0.fc.bias", 0.0, 1.0),
        ("blocks.1.layernorm.weight", 0.0, 0.1),
        ("blocks.1.layernorm.bias", 0.0, 0.1),
        ("blocks.1.fc.weight", 1.0, 1.0),
        ("blocks.1.fc.bias", 0.0, 1.0),
        ("head.weight", 1.0, 10.0),
        ("head.bias", 0.0, 10.0),
    ]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"name": "*.layernrom.*", "decay": 0},
            "mask pattern '*.layernrom.*' matched no parameter.\n"
            "  found: 10 trainable parameters, 0 matches\n"
            "  nearest: '*.layernorm.*' (4 matches: blocks.0.layernorm.weight, ...)\n"
            "  fix: correct the pattern, or remove the rule",
        ),
        (
            {"name": "layernrom", "decay": 0},
            "mask pattern 'layernrom' matched no parameter.\n"
            "  found: 10 trainable parameters, 0 matches\n"
            "  nearest: '*.layernorm.*' (4 matches: blocks.0.layernorm.weight, ...)\n"
            "  fix: correct the pattern, or remove the rule",
        ),
        (
            {"name": "head", "decay": 0},
            "mask pattern 'head' matched no parameter.\n"
            "  found: 10 trainable parameters, 0 matches\n"
            "  nearest: '*.head.*' (2 matches: head.weight, ...)\n"
            "  fix: correct the pattern, or remove the rule",
        ),
        (
            {"module_types": ["LayerNrom"], "decay": 0},
            "mask rule (module_types 'LayerNrom') matched no parameter.\n"
            "  found: 10 trainable parameters, 0 matches\n"
            "  nearest: 'LayerNorm' (4 parameters)\n"
            "  fix: correct the rule, or remove it",
        ),
        (
            {"module_types": ["LayerNorm", "Liner"], "decay": 0},
            "mask rule (module_types 'LayerNorm', 'Liner') names a class that owns no parameter: 'Liner'.\n"
            "  found: LayerNorm, Linear\n"
            "  nearest: 'Linear' (6 parameters)\n"
            "  fix: correct it, or remove it from module_types",
        ),
        (
            {"name": "head.*", "ndim": 7, "decay": 0},
            "mask rule (name 'head.*', ndim 7) matched no parameter.\n"
            "  found: 10 trainable parameters, 0 matches\n"
            "  fix: correct the rule, or remove it",
        ),
        (
            {"name": "head.*"},
            "mask rule (name 'head.*') sets nothing.\n"
            "  found: 2 matches, but neither decay, lr nor style\n"
            "  fix: give the rule decay=0 to exclude them, or remove it",
        ),
    ],
)
def test_a_dead_rule_is_an_error(rule: dict[str, object], message: str) -> None:
    with pytest.raises(MaskError) as error:
        plan_decay(Net(), {"rules": [rule]})
    assert str(error.value) == message


def test_a_rule_that_earlier_ones_leave_nothing_to_decide_is_an_error() -> None:
    wide, narrow = {"name": "*.weight", "decay": 0.5}, {"name": "head.weight", "decay": 0}
    with pytest.raises(MaskError) as error:
        plan_decay(Net(), {"rules": [wide, narrow]})
    assert str(error.value) == (
        "mask rule (name 'head.weight') has no effect: earlier rules decide everything that it matches.\n"
        "  found: the rule (name '*.weight') before it\n"
        "  fix: write the narrower rule first, or remove this one"
    )
    assert plan_decay(Net(), {"rules": [narrow, wide]})["head.weight"].decay == 0
    assert plan_decay(Net(), {"rules": [wide, {**narrow, "lr": 2}]})["head.weight"].lr == 2
    assert plan_decay(Net(), {"rules": [wide, {"name": "head.*", "decay": 1}]})["head.bias"].decay == 1


def logged(caplog: pytest.LogCaptureFixture, *rules: dict[str, object], base: str | None = "standard") -> list[str]:
    caplog.clear()
    plan_decay(Net(), {"rules": rules, "base": base})
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_rule_that_decays_a_bias_beside_weights_warns(caplog: pytest.LogCaptureFixture) -> None:
    head = {"name": "*.head.*", "decay": 0.1, "lr": 10}
    assert logged(caplog, head) == [
        "mask rule (name '*.head.*') decays 1 parameter that base 'standard' leaves out, beside 1 that it decays.\n"
        "  found: head.bias (bias)\n"
        "  fix: put {name: 'head.bias', decay: 0} before it, or narrow its conditions; to decay them on purpose, give "
        "them a rule of their own before it"
    ]
    (both,) = logged(caplog, {"name": "*.weight", "decay": 0.5})
    assert "found: blocks.0.layernorm.weight (norm), blocks.1.layernorm.weight (norm)\n" in both


def test_a_rule_that_means_it_does_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    head = {"name": "*.head.*", "decay": 0.1}
    assert logged(caplog, {"name": "*.bias", "decay": 0}, head) == []  # the fix that the warning names
    assert logged(caplog, {"name": "head.bias", "decay": 0.1}, head) == []  # the other one
    assert logged(caplog, {"name": "*.bias", "decay": 1}) == []
    assert logged(caplog, {"name": "*.head.*", "decay": 0}, {"name": "*.fc.*", "lr": 2}) == []
    assert logged(caplog, head, {"decay": 1}, base=None) == logged(caplog, head, base="all") == []


def test_a_rule_that_decays_what_a_hook_names_warns(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    net.no_weight_decay = lambda: ["blocks.0.fc.weight"]  # type: ignore[assignment]
    plan_decay(net, {"rules": [{"name": "*.fc.weight", "decay": 2}]})
    assert "found: blocks.0.fc.weight (weight)\n" in caplog.text


def test_a_rule_that_meets_only_frozen_parameters_is_no_error() -> None:
    net = Net()
    net.head.requires_grad_(False)
    assert plan_decay(net, {"rules": [{"name": "head.*", "lr": 10}]})["head.weight"].reason == "frozen"
    with pytest.raises(MaskError, match="found: 8 trainable and 2 frozen parameters, 0 matches"):
        plan_decay(net, {"rules": [{"name": "heda.*", "lr": 10}]})


def test_a_parameter_that_no_rule_places_is_an_error() -> None:
    with pytest.raises(MaskError) as error:
        plan_decay(Net(), Mask([Rule(0, ndim=1), Rule(lr=2, name="head.weight")], base=None))
    assert str(error.value) == (
        "3 parameters are placed by no rule (base is null).\n"
        "  found: blocks.0.fc.weight, blocks.1.fc.weight, head.weight\n"
        "  fix: add a last rule for the rest, such as Rule(1.0), or give the mask a base such as 'standard'"
    )
    assert plan_decay(Net(), Mask([Rule(0, ndim=1), Rule(1)], base=None))["head.weight"].decay == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: as_mask({"rules": [{"nmae": "head.*", "decay": 0}]}),
            "mask rule has an unknown key 'nmae'.\n  found: nmae, decay\n"
            "  valid: decay, name, module_types, ndim, predicate, lr, style, reason\n"
            "  nearest: 'name'\n  fix: rename 'nmae' to 'name'",
        ),
        (
            lambda: as_mask({"bsae": "standard"}),
            "mask has an unknown key 'bsae'.\n  found: bsae\n  valid: rules, base, layer_decay\n"
            "  nearest: 'base'\n  fix: rename 'bsae' to 'base'",
        ),
        (
            lambda: as_mask("no_embedings"),
            "mask base 'no_embedings' is unknown.\n  valid: standard, no_embeddings, matrices, all, none\n"
            "  nearest: 'no_embeddings'\n"
            "  fix: write base=no_embeddings, or leave base null where rules place every parameter",
        ),
        (
            lambda: Mask([Rule(0.1, name="a.*"), Rule(1, name="b.*"), Rule(0, name="a.*")]),
            "mask has two rules for name 'a.*' that both set decay.\n"
            "  found: Rule(decay=0.1, name='a.*') and Rule(decay=0.0, name='a.*')\n"
            "  fix: keep one of them; the first would always win",
        ),
        (
            lambda: as_mask({"rules": {"name": "head.*"}}),
            "mask rules must be a list of rules but got {'name': 'head.*'}.\n  found: dict\n"
            "  fix: put the rule in brackets: rules='[{name: \"*.head.weight\", decay: 0.1}]'",
        ),
        (
            lambda: Mask(["head.*"]),
            "mask rule must be a Rule or a mapping but got 'head.*'.\n  found: str\n"
            '  fix: write {name: "*.head.weight", decay: 0.1}',
        ),
        (
            lambda: as_mask(3),
            "mask must be a Mask, a preset's name or a mapping but got 3.\n  found: int\n"
            "  valid: standard, no_embeddings, matrices, all, none\n"
            "  fix: write mask='standard', or Mask([Rule(...)])",
        ),
        (
            lambda: Rule(-1),
            "mask rule's decay must be a number >= 0 but got -1.\n  found: int\n"
            "  valid: a finite number >= 0\n"
            "  fix: write mask rule's decay=1, without the sign",
        ),
        (
            lambda: Rule(style="independant"),
            "mask rule's style 'independant' is not a decay style.\n"
            "  valid: l2, decoupled, independent, constant, corrected, none\n"
            "  nearest: 'independent'\n  fix: write mask rule's style=independent",
        ),
        (
            lambda: Rule(0, ndim=True),
            "mask rule's ndim must be a whole number >= 0 but got True.\n  found: bool\n"
            "  fix: correct ndim, or remove it from the rule",
        ),
        (
            lambda: Rule(0, predicate="my.function"),
            "mask rule's predicate must be a function of (name, parameter, module) but got 'my.function'.\n"
            "  found: str\n  fix: correct predicate, or remove it from the rule",
        ),
        (
            lambda: Rule(0, name="regex:["),
            "mask pattern 'regex:[' is not a regular expression.\n"
            "  found: unterminated character set at position 0\n"
            "  fix: correct the pattern, or write a glob such as '*.head.*'",
        ),
        (
            lambda: Mask.layerwise(1.5),
            "layer_decay must be in (0, 1] but got 1.5.\n  fix: write layer_decay=0.75",
        ),
    ],
)
def test_what_no_mask_can_be_is_refused_in_these_words(make: object, message: str) -> None:
    with pytest.raises(MaskError) as error:
        make()  # type: ignore[operator]
    assert str(error.value) == message


@pytest.mark.parametrize("value", [0, ("a", 3), [None]])
def test_bad_names_and_types_are_refused(value: object) -> None:
    with pytest.raises(MaskError, match="must be"):
        Rule(0, name=value if value == 0 else None, module_types=value)  # type: ignore[arg-type]


def test_what_hydra_hands_over_is_a_mask() -> None:
    config = OmegaConf.create({"base": "standard", "rules": [{"name": "*.head.*", "decay": 0.1, "lr": 10}]})
    expected = Mask([Rule(0.1, name="*.head.*", lr=10)])
    assert as_mask(OmegaConf.to_container(config)) == expected  # type: ignore[arg-type]
    assert as_mask(config) == expected
    assert as_mask({"base": None, "rules": None}) == Mask(base=None)


def test_presets() -> None:
    assert [m.base for m in (Mask.standard(), Mask.no_embeddings(), Mask.matrices(), Mask.all(), Mask.none())] == [
        *("standard", "no_embeddings", "matrices", "all", "none")
    ]
    net = nn.ModuleDict({"tok": nn.Embedding(5, 4), "fc": nn.Linear(4, 4)})
    net.register_parameter("pos_embed", nn.Parameter(torch.zeros(1, 5, 4)))
    decayed = {
        preset: {row.name for row in plan_decay(net, preset) if row.decay}
        for preset in ("standard", "no_embeddings", "matrices", "all", "none")
    }
    assert decayed == {
        "standard": {"tok.weight", "fc.weight"},
        "no_embeddings": {"fc.weight"},
        "matrices": {"pos_embed", "tok.weight", "fc.weight"},
        "all": {"pos_embed", "tok.weight", "fc.weight", "fc.bias"},
        "none": set(),
    }


def test_masks_copy_and_pickle() -> None:
    mask = Mask([Rule(0.1, name="regex:head", module_types=("Linear", nn.Conv1d))], base="matrices")
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert copy.deepcopy(mask) == mask
