"""What a rule and a mask accept, which parameters a rule meets, and the exact words of every refusal."""

from __future__ import annotations

import copy
import pickle
from typing import Any, cast

import pytest
from helpers.masks import Net
from omegaconf import OmegaConf
from torch import nn

from lightning_wd import Mask, MaskError, Rule, plan_decay
from lightning_wd.mask import as_mask

KEYS = "name, module_types, ndim, predicate, wd_mult, lr_mult, weight_decay, lr, style, toward, optimizer, reason"


def names_met(rule: Rule) -> list[str]:
    return [row.name for row in plan_decay(Net(), Mask([rule], base="none")) if row.wd_mult or row.lr_mult != 1]


@pytest.mark.parametrize(
    ("rule", "met"),
    [
        (Rule(wd_mult=1, name="*.head.*"), ["head.weight", "head.bias"]),  # a leading *. also matches at the root
        (Rule(wd_mult=1, name="head.*"), ["head.weight", "head.bias"]),
        (Rule(wd_mult=1, name="*.0.fc.weight"), ["blocks.0.fc.weight"]),
        (Rule(wd_mult=1, name="blocks.?.fc.bias"), ["blocks.0.fc.bias", "blocks.1.fc.bias"]),
        (Rule(wd_mult=1, name=r"regex:blocks\.\d\.fc\.w"), ["blocks.0.fc.weight", "blocks.1.fc.weight"]),
        (Rule(wd_mult=1, name="regex:^head"), ["head.weight", "head.bias"]),
        (Rule(wd_mult=1, module_types=nn.Linear, ndim=2), ["blocks.0.fc.weight", "blocks.1.fc.weight", "head.weight"]),  # type: ignore[arg-type]
        (
            Rule(wd_mult=1, module_types="LayerNorm", name="*.0.*"),  # type: ignore[arg-type]
            ["blocks.0.layernorm.weight", "blocks.0.layernorm.bias"],
        ),
        (Rule(wd_mult=1, module_types=["torch.nn.LayerNorm"], name="*.1.*.bias"), ["blocks.1.layernorm.bias"]),  # type: ignore[arg-type]
        (Rule(wd_mult=1, predicate=lambda name, parameter, module: parameter.shape == (2, 4)), ["head.weight"]),
        (
            Rule(
                wd_mult=1, predicate=lambda name, parameter, module: module.__class__ is nn.Linear, ndim=1, name="head*"
            ),
            ["head.bias"],
        ),
        (Rule(lr_mult=3, name="head.bias"), ["head.bias"]),
    ],
)
def test_a_rule_meets_exactly_these(rule: Rule, met: list[str]) -> None:
    assert names_met(rule) == met


def test_a_glob_is_on_the_full_name_and_case_counts() -> None:
    for pattern in ("fc.weight", "Head.weight"):
        with pytest.raises(MaskError, match="matched no parameter"):
            plan_decay(Net(), Mask([Rule(wd_mult=0, name=pattern)]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: as_mask({"rules": [{"nmae": "head.*", "wd_mult": 0}]}),
            f"mask rule has no key 'nmae'.\n  valid: {KEYS}\n  nearest: 'name'\n  fix: write name, or remove nmae",
        ),
        (
            lambda: as_mask({"bsae": "standard"}),
            "mask has no key 'bsae'.\n  valid: rules, base, layer_decay\n"
            "  nearest: 'base'\n  fix: write base, or remove bsae",
        ),
        (
            lambda: as_mask("no_embedings"),
            "mask.base 'no_embedings' is unknown.\n"
            "  valid: standard, no_embeddings, matrices, adapters, all, none, null\n"
            "  nearest: 'no_embeddings'\n"
            "  fix: write mask.base=no_embeddings",
        ),
        (
            lambda: Mask([Rule(wd_mult=0.1, name="a.*"), Rule(wd_mult=1, name="b.*"), Rule(wd_mult=0, name="a.*")]),
            "mask has two rules for name 'a.*' that both set the weight decay.\n"
            "  found: Rule(name='a.*', wd_mult=0.1) and Rule(name='a.*', wd_mult=0.0)\n"
            "  fix: keep one of them; the first would always win",
        ),
        (
            lambda: as_mask({"rules": {"name": "head.*"}}),
            "mask.rules must be a list of rules but got {'name': 'head.*'}.\n  found: dict\n"
            "  fix: put the rule in brackets: rules='[{name: \"*.head.weight\", wd_mult: 0.1}]'",
        ),
        (
            lambda: Mask(["head.*"]),  # type: ignore[list-item]
            "mask rule must be a Rule or a mapping but got 'head.*'.\n  found: str\n"
            '  fix: write {name: "*.head.weight", wd_mult: 0.1}',
        ),
        (
            lambda: as_mask(3),  # type: ignore[arg-type]
            "mask must be a Mask, a preset's name or a mapping but got 3.\n  found: int\n"
            "  valid: standard, no_embeddings, matrices, adapters, all, none\n"
            "  fix: write mask='standard', or Mask([Rule(...)])",
        ),
        (
            lambda: Rule(wd_mult=-1),
            "rule.wd_mult must be a number >= 0 but got -1.\n  found: int\n"
            "  valid: a finite number >= 0\n  fix: write rule.wd_mult=1, without the sign",
        ),
        (
            lambda: Rule(style="independant"),
            "rule.style 'independant' is unknown.\n"
            "  valid: l2, decoupled, independent, constant, corrected, hyperball, none\n"
            "  nearest: 'independent'\n  fix: write rule.style=independent",
        ),
        (
            lambda: Rule(wd_mult=0, ndim=True),
            "rule.ndim must be a whole number >= 0 but got True.\n  found: bool\n"
            "  valid: a whole number >= 0\n  fix: write rule.ndim=<a whole number >= 0>",
        ),
        (
            lambda: Rule(wd_mult=0, predicate="my.function"),  # type: ignore[arg-type]
            "rule.predicate must be a function of (name, parameter, module) but got 'my.function'.\n"
            "  found: str\n  fix: correct predicate, or remove it from the rule",
        ),
        (
            lambda: Rule(wd_mult=0, name="regex:["),
            "mask pattern 'regex:[' is not a regular expression.\n"
            "  found: unterminated character set at position 0\n"
            "  fix: correct the pattern, or write a glob such as '*.head.*'",
        ),
        (
            lambda: Mask.layerwise(1.5),
            "mask.layer_decay must be a number > 0 and <= 1 but got 1.5.\n  found: float\n"
            "  valid: a finite number > 0 and <= 1\n  fix: write mask.layer_decay=<a finite number > 0 and <= 1>",
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
        Rule(wd_mult=0, name=value if value == 0 else None, module_types=value)  # type: ignore[arg-type]


def test_what_hydra_hands_over_is_a_mask() -> None:
    config = OmegaConf.create({"base": "standard", "rules": [{"name": "*.head.*", "wd_mult": 0.1, "lr_mult": 10}]})
    expected = Mask([Rule(wd_mult=0.1, name="*.head.*", lr_mult=10)])
    assert as_mask(OmegaConf.to_container(config)) == expected  # type: ignore[arg-type]
    assert as_mask(config) == expected
    assert as_mask({"base": None, "rules": None}) == Mask(base=None)


def test_masks_copy_and_pickle() -> None:
    mask = Mask([Rule(wd_mult=0.1, name="regex:head", module_types=("Linear", nn.Conv1d))], base="matrices")
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert copy.deepcopy(mask) == mask


def test_a_multiplier_and_its_absolute_in_one_rule_are_refused() -> None:
    for settings, words in (
        (
            {"wd_mult": 0.5, "weight_decay": 0.03},
            "mask rule has both wd_mult and weight_decay.\n  found: wd_mult=0.5, weight_decay=0.03\n"
            "  fix: keep wd_mult to multiply the configured value, or weight_decay to replace it",
        ),
        (
            {"lr_mult": 0, "lr": 0},
            "mask rule has both lr_mult and lr.\n  found: lr_mult=0, lr=0\n"
            "  fix: keep lr_mult to multiply the configured value, or lr to replace it",
        ),
    ):
        with pytest.raises(MaskError) as error:
            Rule(name="b.*", **cast(Any, settings))
        assert str(error.value) == words


@pytest.mark.parametrize(
    ("keys", "what"),
    [(("wd_mult", "weight_decay"), "weight decay"), (("lr", "lr_mult"), "learning rate"), (("style",) * 2, "style")],
)
def test_two_rules_with_equal_conditions_that_set_one_property_are_refused(keys: tuple[str, str], what: str) -> None:
    first, second = (Rule(name="b.*", **cast(Any, {key: "l2" if key == "style" else 1})) for key in keys)
    with pytest.raises(MaskError) as error:
        Mask((first, second))
    assert str(error.value) == (
        f"mask has two rules for name 'b.*' that both set the {what}.\n  found: {first!r} and {second!r}\n"
        "  fix: keep one of them; the first would always win"
    )
    assert Mask((first, Rule(name="c.*", wd_mult=1))).rules[0] is first


OLD = (
    f"mask rule has no key 'decay'.\n  valid: {KEYS}\n"
    "  fix: write wd_mult: {}, which multiplies the configured weight decay"
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cast(Any, Rule)(name="b.*", decay=0.1), OLD.format("0.1")),
        (lambda: as_mask({"rules": [{"name": "b.*", "decay": False}]}), OLD.format("0")),
        (
            lambda: cast(Any, Rule)("b.*", 0),
            "mask rule takes its settings by keyword only.\n  found: 'b.*', 0\n"
            "  fix: write Rule(name='*.head.weight', wd_mult=0.1)",
        ),
        (
            lambda: as_mask({"rules": [{3: 0.1}]}),
            f"mask rule has no key '3'.\n  valid: {KEYS}\n  fix: remove 3",
        ),
    ],
)
def test_old_names_and_positions_are_refused_in_these_words(make: Any, message: str) -> None:
    with pytest.raises(MaskError) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("decay", "write wd_mult, or remove decay"),  # of a text
        ("wd", "write weight_decay, or remove wd"),
        ("lr_scale", "write lr_mult, or remove lr_scale"),
        ("lr_multiplier", "write lr_mult, or remove lr_multiplier"),
        ("decay_mult", "write wd_mult, or remove decay_mult"),
        ("weight_decay_mult", "write wd_mult, or remove weight_decay_mult"),
        ("pattern", "write name, or remove pattern"),
        ("params", "write name, or remove params"),
        ("types", "write module_types, or remove types"),
        ("no_decay", "write wd_mult: 0 to exclude"),
    ],
)
def test_names_of_other_libraries_are_told_the_name_here(key: str, fix: str) -> None:
    with pytest.raises(MaskError) as caught:
        as_mask({"rules": [{key: "x"}]})
    assert str(caught.value).startswith(f"mask rule has no key {key!r}.")
    assert str(caught.value).endswith(f"\n  fix: {fix}")


def test_other_keys_are_hyperparameters_unless_they_look_like_a_key_of_a_rule() -> None:
    rule = Rule(name="*.head.*", optimizer="sgdw", momentum=0.9, betas=(0.8, 0.9), eps=None)
    assert rule.settings == {"optimizer": "sgdw", "momentum": 0.9, "betas": (0.8, 0.9)}
    assert repr(rule) == "Rule(name='*.head.*', optimizer='sgdw', momentum=0.9, betas=(0.8, 0.9))"
    assert copy.deepcopy(rule) == pickle.loads(pickle.dumps(rule)) == rule
    assert rule != Rule(name="*.head.*", optimizer="sgdw", momentum=0.9)
    assert Rule(lr_decay=0.1, beta1=0.9, weight_decouple=True).settings.keys() == {
        "lr_decay",
        "beta1",
        "weight_decouple",
    }
    for wrong, key in (("optimiser", "optimizer"), ("weight_decy", "weight_decay"), ("stlye", "style")):
        with pytest.raises(MaskError, match=f"mask rule has no key '{wrong}'[\\s\\S]*nearest: '{key}'"):
            as_mask({"rules": [{wrong: 1}]})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": ""}, "rule.optimizer must be a name such as 'sgdw' or a dotted path but got ''."),
        ({"optimizer": nn.Linear}, "rule.optimizer must be a name such as 'sgdw' or a dotted path but got <class"),
        ({"betas": nn.Linear}, "rule.betas must be plain data but got <class"),
        ({"betas": [0.9, print]}, "rule.betas must be plain data but got [0.9, <built-in function print>]."),
    ],
)
def test_what_a_checkpoint_cannot_keep_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(MaskError) as caught:
        Rule(**settings)
    assert str(caught.value).startswith(words)


def test_two_rules_for_one_hyperparameter() -> None:
    with pytest.raises(MaskError, match=r"mask has two rules for name 'b.\*' that both set the betas\."):
        Mask([{"name": "b.*", "betas": [0.9, 0.9]}, {"name": "b.*", "betas": [0.8, 0.9], "lr": 1.0}])
    Mask([{"name": "b.*", "betas": [0.9, 0.9]}, {"name": "b.*", "eps": 1.0}])
