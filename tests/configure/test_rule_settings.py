"""What rules set for the optimizers that step their parameters: what is built of it, and the words of each refusal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.lit import Lit, trainer
from helpers.recipe import ROOT
from torch import nn

import lightning_wd as wd

APART = "helpers.own_ways.BetasApart"


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2))


def built(*rules: dict[str, Any], module: nn.Module | None = None, **config: Any) -> Any:
    config = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, **config}
    return wd.configure_optimizers(module or net(), {**config, "mask": {"rules": list(rules)}})["optimizer"]


def settings(optimizer: Any, *keys: str) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(g.get(k) for k in keys) for g in optimizer.param_groups for name in g["param_names"]}


# --- what is built --------------------------------------------------------------------------------------------------


def test_an_optimizer_keeps_lr_and_decay_of_the_config_and_has_its_own_defaults() -> None:
    rule = {"name": "2.*", "optimizer": "sgdw"}
    optimizer = built(rule, {"name": "3.weight", "lr": 0.5, "weight_decay": 0.3}, betas=[0.8, 0.9])
    said = settings(optimizer, "optimizer", "lr", "weight_decay", "betas", "momentum")
    assert said["0.weight"] == ("adamw", 0.01, 0.1, (0.8, 0.9), None)
    assert said["2.weight"] == ("sgdw", 0.01, 0.1, None, 0.9)  # as `name: sgdw` has it, not SGD's 0
    assert said["2.bias"] == ("sgdw", 0.01, 0.0, None, 0.9)
    assert said["3.weight"] == ("adamw", 0.5, 0.3, (0.8, 0.9), None)


def test_one_optimizer_stays_its_own_class() -> None:
    for rules in ([], [{"name": "2.*", "optimizer": "adamw", "lr_mult": 2}], [{"name": "2.*", "betas": [0.8, 0.9]}]):
        optimizer = built(*rules)
        assert type(optimizer) is wd.AdamW
        assert not any({"optimizer", "use_muon"} & group.keys() for group in optimizer.param_groups)
    assert settings(optimizer, "betas")["2.weight"] == ((0.8, 0.9),)
    assert settings(optimizer, "betas")["0.weight"] == ((0.9, 0.999),)


def test_hyperparameters_go_through_the_constructor() -> None:
    optimizer = built({"name": "2.*", "betas": [0.5, 0.9]}, name=APART, betas=[0.8, 0.9], weight_decay=0.0)
    assert settings(optimizer, "beta1", "betas")["2.weight"] == (0.5, None)
    assert settings(optimizer, "beta1", "betas")["0.weight"] == (0.8, None)
    compiled = built({"name": "2.*", "optimizer": "adamw", "fused": False}, {"name": "3.*", "kahan": True})
    assert type(compiled) is wd.AdamW
    assert settings(compiled, "fused", "kahan")["2.weight"] == (False, None)
    assert settings(compiled, "fused", "kahan")["3.weight"] == (None, True)


def test_the_halves_of_muon_have_rates_and_amounts_of_their_own() -> None:
    rules = [{"name": "2.weight", "lr_mult": 0.5, "wd_mult": 0.1}]
    optimizer = built(*rules, name="muon", muon={"lr": 0.1, "weight_decay": 0.5}, ns_steps=4, betas=[0.8, 0.9])
    said = settings(optimizer, "optimizer", "use_muon", "base_lr", "weight_decay", "ns_steps", "betas")
    assert said["0.weight"] == ("muon", True, 0.1, 0.5, 4, None)
    assert said["2.weight"] == ("muon", True, 0.05, 0.05, 4, None)
    assert said["3.weight"] == ("adamw", False, 0.01, 0.1, None, (0.8, 0.9))
    assert said["0.bias"] == ("adamw", False, 0.01, 0.0, None, (0.8, 0.9))
    same = settings(built(name="muon", muon={"lr": None}), "base_lr", "weight_decay", "adjust_lr_fn", "ns_steps")
    assert same["0.weight"] == (0.01, 0.1, "match_rms_adamw", 5)
    default = wd.configure_optimizers(net(), "muon")["optimizer"]
    assert settings(default, "weight_decay")["0.weight"] == settings(default, "weight_decay")["3.weight"] == (0.1,)


def test_the_halves_are_carried_over_with_the_run() -> None:
    reference = {"global_batch": 4, "steps": 10, "lr_rule": "sqrt"}
    config = {"name": "muon", "lr": 0.01, "weight_decay": 0.1, "muon": {"lr": 0.1}, "reference": reference}

    def here(config: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        built = wd.configure_optimizers(net(), config, total_steps=20, global_batch=16)
        return settings(built["optimizer"], "base_lr", "weight_decay")

    said = here(config)
    assert said["0.weight"] == pytest.approx((0.2, 0.1 * (0.01 * 10) / (0.02 * 20)))
    assert said["3.weight"] == pytest.approx((0.02, 0.1 * (0.01 * 10) / (0.02 * 20)))
    said = here({**config, "muon": {"lr": 0.1, "weight_decay": 0.4}})
    assert said["0.weight"] == pytest.approx((0.2, 0.4 * (0.1 * 10) / (0.2 * 20)))


def test_muon_by_rule_equals_muon_by_name() -> None:
    rule = {"module_types": "Linear", "ndim": 2, "optimizer": "muon"}
    by_rule = built({"name": "3.*", "optimizer": "adamw"}, rule)
    by_name = built(name="muon")
    keys = ("optimizer", "use_muon", "lr", "weight_decay", "momentum", "betas", "split")
    assert settings(by_rule, *keys) == settings(by_name, *keys)


def test_the_plan_says_what_steps_each_tensor() -> None:
    plan = built({"name": "2.*", "optimizer": "sgdw", "momentum": 0.5}).decay_plan
    assert [(row.name, row.optimizer) for row in plan][:5] == [
        ("0.weight", "adamw"), ("0.bias", "adamw"), ("1.weight", "adamw"), ("1.bias", "adamw"), ("2.weight", "sgdw"),
    ]  # fmt: skip
    assert plan["2.weight"].reason == "weight; optimizer sgdw by rule name '2.*'; momentum 0.5 by rule name '2.*'"
    assert plan["2.weight"].group == "decay_sgdw_momentum_0.5"
    assert plan.table().names[-2:] == ("optimizer", "reason")
    assert "optimizer" not in built().decay_plan.table().names
    reasons = {row.name: row.reason for row in built(name="muon").decay_plan if row.kind == "weight"}
    assert reasons == {
        "0.weight": "weight; muon: hidden matrix",
        "2.weight": "weight; muon: hidden matrix",
        "3.weight": "weight; adamw: output layer",
    }


def test_a_config_of_rules_is_plain_data(tmp_path: Path) -> None:
    rules = [{"name": "*.bias", "optimizer": "sgdw", "momentum": 0.5}, wd.Rule(name="net.2.weight", betas=(0.8, 0.9))]
    module = Lit(wd.OptimizerConfig(name="adamw", mask={"rules": rules}))
    made = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    made.fit(module)
    made.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["optimizer"]["mask"]["rules"] == [
        {"name": "*.bias", "optimizer": "sgdw", "momentum": 0.5},
        {"name": "net.2.weight", "betas": [0.8, 0.9]},
    ]
    again = Lit.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert again.hparams["optimizer"] == module.hparams["optimizer"]
    assert [g["optimizer"] for g in saved["optimizer_states"][0]["param_groups"]] == ["adamw", "adamw", "sgdw", "adamw"]


def test_the_page_holds() -> None:
    """docs/several_optimizers.md: its YAML builds what it says, and its code runs."""
    page = (ROOT / "docs/several_optimizers.md").read_text()
    (text,), (code,) = (re.findall(rf"```{kind}\n(.*?)```", page, re.S) for kind in ("yaml", "python"))
    block = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    module = nn.ModuleDict({"embedding": nn.Embedding(5, 8), "blocks": block, "head": nn.Linear(8, 5)})
    optimizer = wd.configure_optimizers(module, yaml.safe_load(text))["optimizer"]
    said = settings(optimizer, "optimizer", "base_lr", "weight_decay", "betas", "momentum")
    assert said == {
        "embedding.weight": ("sgdw", 0.05, 0.1, None, 0.9),
        "blocks.0.weight": ("muon", 1e-3, 0.05, None, 0.95),
        "head.weight": ("adamw", 3e-4, 0.1, (0.9, 0.99), None),
        **dict.fromkeys(("blocks.0.bias", "blocks.1.weight", "blocks.1.bias"), ("adamw", 1e-3, 0.0, (0.9, 0.95), None)),
        "head.bias": ("adamw", 1e-3, 0.0, (0.9, 0.95), None),
    }
    names: dict[str, Any] = {}
    exec(code, names)
    assert isinstance(names["optimizer"], wd.MultiOptimizer)


# --- refusals -------------------------------------------------------------------------------------------------------

BIAS = "mask rule 1 (name '*.bias')"


@pytest.mark.parametrize(
    ("rules", "config", "words"),
    [
        (
            [{"name": "*.bias", "optimizer": "sgdw"}, {"name": "0.*", "betas": [0.9, 0.9]}],
            {},
            "mask rule 2 (name '0.*') sets betas, which sgdw does not take.\n  found: sgdw steps 0.bias\n",
        ),
        (
            [{"name": "*.bias", "momentun": 0.9}],
            {"name": "sgdw"},
            "  nearest: 'momentum'\n  fix: write momentum, or rem",
        ),
        (
            [{"name": "*.bias", "momentum": 0.9}],
            {},
            f"{BIAS} sets momentum, which adamw does not take.\n  found: adamw steps 0.bias, 1.bias, 2.bias, 3.bias\n"
            "  valid: wd_mult, weight_decay, lr_mult, lr, style, toward, optimizer, betas, eps, ",
        ),
        (
            [{"name": "*.bias", "momentum": 0.9}],
            {},
            "\n  fix: give the rule an optimizer that takes it (sgdw, sgd_l2, rmspropw, muon), or remove momentum",
        ),
        (
            [{"name": "*.bias", "optimizer": "sgdw", "momentum": 1.5}],
            {},
            "optimizer.mask.rules[0].momentum must be a number >= 0 and < 1 but got 1.5.",
        ),
        (
            [{"name": "*.bias", "betas": 0.9}],
            {},
            "optimizer.mask.rules[0].betas must be 2 numbers but got 0.9.\n  fix: write 'optimizer.mask.rules[0].betas",
        ),
        (
            [{"name": "*.bias", "optimizer": "sgdww"}],
            {},
            "optimizer.mask.rules[0].optimizer 'sgdww' is unknown.\n",
        ),
        (
            [{"name": "*.bias", "optimizer": "torch.optim.Adm"}],
            {},
            "'torch.optim.Adm' does not exist: torch.optim has no 'Adm'.\n",
        ),
        (
            [{"name": "*.bias", "optimizer": "torch.optim.LBFGS"}],
            {},
            "LBFGS cannot be decoupled: it evaluates the closure itself",
        ),
        (
            [{"name": "*.weight", "optimizer": "radamw"}, {"name": "1.weight", "optimizer": "adamw", "lr": 1.0}],
            {},
            "mask rule 2 (name '1.weight') gives nothing to adamw: earlier rules give all that it matches an "
            "optimizer.\n  fix: write the narrower rule first, or remove optimizer from this one",
        ),
        (
            [{"optimizer": "sgdw"}],
            {},
            "optimizer.name adamw steps no parameter: the rules of optimizer.mask give all to sgdw.\n"
            "  fix: write optimizer.name=sgdw, without optimizer in its rules, or narrow the rules",
        ),
        (
            [{"name": "2.weight", "optimizer": "muon"}],
            {"name": "adam_l2"},
            "mask rule 1 (name '2.weight') gives parameters of style 'l2' to muon, which does not do that style.\n"
            "  found: 2.weight\n  valid: decoupled, independent, constant, corrected, hyperball, none\n"
            "  fix: write style: decoupled into the rule, with a weight_decay in its unit, or another optimizer",
        ),
        (
            [{"name": "2.*", "optimizer": "adam_l2"}],
            {},
            "mask rule 1 (name '2.*') gives parameters of style 'decoupled' to adam_l2, which does not do that style.\n"
            "  found: 2.weight\n  valid: l2, none\n",
        ),
        (
            [{"name": "2.*", "optimizer": "muon"}],
            {},
            "mask rule 1 (name '2.*') gives muon what is no matrix.\n  found: 2.bias\n  fix: write ndim: 2",
        ),
        (
            [{"name": "2.*", "optimizer": "helpers.own_ways.Needs"}, {"name": "2.bias", "rank": 3}],
            {},
            "mask rule 1 (name '2.*') gives parameters to helpers.own_ways.Needs, which needs rank.\n"
            "  found: 2.weight, 2.bias\n  fix: write rank: <value> into the rule",
        ),
        (
            [{"name": "2.*", "eps": -1.0, "alpha": -3.0}],
            {"name": "torch.optim.RMSprop"},
            "mask rule 1 (name '2.*') has settings that torch.optim.RMSprop refuses: Invalid epsilon value: -1.0.\n"
            "  found: eps=-1.0, alpha=-3.0\n  fix: correct these settings, or give the rule another optimizer",
        ),
        (
            [
                {"name": "1.*", "lr": 0.5},
                {"name": "2.*", "optimizer": "sgdw", "lr": 0.5, "nesterov": True, "momentum": 0},
            ],
            {},
            "mask rule 2 (name '2.*') has settings that sgdw refuses: Nesterov momentum requires a momentum and zero",
        ),
        (
            [{"name": "2.*", "foreach": True, "fused": True}],
            {},
            "mask rule 1 (name '2.*') has settings that adamw refuses: `fused` and `foreach` cannot be `True` together",
        ),
        (
            [{"name": "2.weight", "optimizer": "muon", "split": 3}],
            {},
            "optimizer.mask.rules[0].split=3 of group 'decay_muon_split_3' does not divide the first dimension of "
            "2.weight.\n",
        ),
        (
            [{"name": "2.weight", "optimizer": "muon"}, {"name": "2.weight", "adjust_lr_fn": "orignal"}],
            {},
            "optimizer.mask.rules[1].adjust_lr_fn 'orignal' is unknown.\n  valid: match_rms_adamw, original\n"
            "  nearest: 'original'\n  fix: write optimizer.mask.rules[1].adjust_lr_fn=original",
        ),
        (
            [],
            {"name": "muon", "ns_coefficients": "quintik"},
            "optimizer.ns_coefficients 'quintik' is unknown.\n  valid: quintic, polar_express\n  nearest: 'quintic'\n"
            "  fix: write optimizer.ns_coefficients=quintic",
        ),
        (
            [{"name": "1.*", "lr": 0.5}, {"name": "2.*", "lr": -1}],
            {},
            "optimizer.mask.rules[1].lr must be a number >= 0 but got -1.\n  found: int\n"
            "  valid: a finite number >= 0\n  fix: write optimizer.mask.rules[1].lr=1, without the sign",
        ),
        ([], {"muon": {"lr": 0.1}}, "optimizer.muon is a setting of optimizer=muon, and this is adamw.\n"),
        ([], {"name": "muon", "muon": {"lrs": 0.1}}, "optimizer.muon has no key 'lrs'.\n  valid: lr, weight_decay\n"),
        ([], {"name": "muon", "muon": {"lr": -1}}, "optimizer.muon.lr must be a number >= 0 but got -1."),
    ],
)
def test_what_no_optimizer_can_do_is_refused(rules: list[Any], config: dict[str, Any], words: str) -> None:
    with pytest.raises((wd.MaskError, wd.ConfigError)) as caught:
        built(*rules, **config)
    assert words in str(caught.value)


def test_muon_without_hidden_matrices_is_refused() -> None:
    with pytest.raises(wd.ConfigError) as caught:
        built(name="muon", module=nn.Sequential(nn.Linear(4, 2)))
    assert str(caught.value) == (
        "optimizer=muon leaves Muon without parameters: no hidden matrix is left to it.\n"
        "  found: 0.weight (weight; adamw: output layer)\n  fix: write optimizer=adamw"
    )
    with pytest.raises(wd.ConfigError) as caught:
        built({"name": "*", "optimizer": "sgdw"}, name="muon")
    assert "weight; optimizer sgdw by rule name '*')" in str(caught.value)
    assert str(caught.value).endswith("fix: write optimizer=adamw, or narrow the rules")


def test_an_optimizer_of_frozen_parameters_is_refused_unless_they_may_be_unfrozen(tmp_path: Path) -> None:
    rule = {"name": "net.0.*", "optimizer": "sgdw"}
    module = Lit({"name": "adamw", "mask": {"rules": [rule]}})
    made = trainer(tmp_path, callbacks=[wd.MaskedFinetuning(["net.0.*"], {1: ["net.0.*"]})])
    made.fit(module)
    assert isinstance(made.optimizers[0], wd.MultiOptimizer)
    module.net[0].requires_grad_(False)
    with pytest.raises(wd.MaskError) as caught:
        wd.configure_optimizers(module.net, {"name": "adamw", "mask": {"rules": [{**rule, "name": "0.*"}]}})
    assert str(caught.value) == (
        "mask rule 1 (name '0.*') leaves sgdw without parameters: all that it matches are frozen.\n"
        "  found: 0.weight, 0.bias\n"
        "  fix: set requires_grad=True on what should train, unfreeze it with MaskedFinetuning, or remove the rule"
    )
