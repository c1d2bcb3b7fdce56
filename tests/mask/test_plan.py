"""The plan: its rows, its groups, their names and amounts, plain data and differences."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from helpers.masks import NET, net, tied
from torch import nn

from lightning_wd import ConfigError, Mask, MaskError, Rule, plan_decay


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def test_rows_are_in_the_order_of_named_parameters() -> None:
    plan = plan_decay(net())
    assert [(row.name, row.group) for row in plan] == NET
    assert [row.name for row in plan] == [name for name, _ in net().named_parameters()]
    row = plan["module.weight"]
    assert (row.names, row.shape, row.numel, row.wd_mult, row.lr_mult, row.style) == (
        ("module.weight",),
        (4, 4),
        16,
        1,
        1,
        None,
    )
    assert len(plan) == 5
    assert "norm.bias" in plan
    with pytest.raises(KeyError, match=r"no parameter 'norm.wight' in the plan; nearest: 'norm\.weight'"):
        plan["norm.wight"]


def test_groups_are_what_torch_takes_and_checkpoints_hold_the_names() -> None:
    module = net()
    groups = plan_decay(module, style="independent").groups(lr=0.1, weight_decay=1e-3, cautious=False)
    assert [settings_of(g) for g in groups] == [
        {"cautious": False, "name": "decay", "lr": 0.1, "base_lr": 0.1, "weight_decay": 1e-3, "style": "independent"},
        {"cautious": False, "name": "no_decay", "lr": 0.1, "base_lr": 0.1, "weight_decay": 0.0, "style": "independent"},
    ]
    own = dict(module.named_parameters())
    assert all(param is own[name] for g in groups for name, param in g["params"])
    state = torch.optim.SGD(groups).state_dict()
    assert [g["param_names"] for g in state["param_groups"]] == [
        ["emb.weight", "module.weight"],
        ["module.bias", "norm.weight", "norm.bias"],
    ]


def test_groups_with_equal_settings_are_one_and_named_readably() -> None:
    rules = [
        Rule(wd_mult=0.1, name="module.*", lr_mult=10),
        Rule(wd_mult=0, name="emb.*", lr_mult=10),
        Rule(wd_mult=0.1, name="norm.weight", lr_mult=10.0),
    ]
    groups = plan_decay(net(), Mask(rules)).groups(lr=0.01, weight_decay=0.5)
    assert [(g["name"], g["lr"], g["weight_decay"], [n for n, _ in g["params"]]) for g in groups] == [
        ("no_decay", 0.01, 0.0, ["norm.bias"]),
        ("no_decay_lr_x10", 0.1, 0.0, ["emb.weight"]),
        ("decay_x0.1_lr_x10", 0.1, 0.05, ["module.weight", "module.bias", "norm.weight"]),
    ]


def test_group_names_stay_unique_where_rounding_would_merge_them() -> None:
    rules = [Rule(wd_mult=0.1, name="emb.*"), Rule(wd_mult=0.1 + 1e-12, name="module.weight")]
    names = [g["name"] for g in plan_decay(net(), Mask(rules)).groups(lr=1, weight_decay=1)]
    assert names == ["no_decay", "decay_x0.1", "decay_x0.10000000000100001"]


def test_a_tensor_lr_is_not_aliased() -> None:
    lr = torch.tensor(0.5)
    groups = plan_decay(net()).groups(lr=lr, weight_decay=0.0)
    groups[0]["lr"].fill_(9.0)
    assert (lr.item(), groups[1]["lr"].item()) == (0.5, 0.5)
    assert type(groups[0]["base_lr"]) is float


@pytest.mark.parametrize(
    ("plan_style", "rule_style", "amount", "expected"),
    [
        ("decoupled", "independent", 0.1, 0.1 * 1e-2),  # d = lr * lam_decoupled = lam_independent
        ("independent", "corrected", 1e-3, 1e-3 / 1e-2),
        ("decoupled", "corrected", 0.1, 0.1),
        ("constant", "independent", 1e-3, 1e-3),
        (None, "independent", 0.1, 0.1),
    ],
)
def test_a_rules_style_keeps_the_strength_at_the_peak(
    plan_style: str | None, rule_style: str, amount: float, expected: float
) -> None:
    plan = plan_decay(net(), Mask([Rule(wd_mult=0.5, name="emb.*", style=rule_style)]), plan_style)
    group = plan.groups(lr=1e-2, weight_decay=amount)[-1]
    assert (group["name"], group["style"]) == (f"decay_x0.5_{rule_style}", rule_style)
    assert group["weight_decay"] == pytest.approx(0.5 * expected, rel=1e-15)


@pytest.mark.parametrize(("plan_style", "rule_style"), [("decoupled", "l2"), ("l2", "decoupled")])
def test_an_l2_group_among_others_takes_the_number_and_says_so(plan_style: str, rule_style: str) -> None:
    plan = plan_decay(net(), Mask([Rule(wd_mult=0.5, name="emb.*", style=rule_style)]), plan_style)
    words = f"has style '{rule_style}', and weight_decay was given for '{plan_style}'.*the number 0.1 is used unchanged"
    with pytest.warns(UserWarning, match=words):
        group = plan.groups(lr=1e-2, weight_decay=0.1)[-1]
    assert (group["style"], group["weight_decay"]) == (rule_style, 0.05)


@pytest.mark.parametrize(
    ("lr", "weight_decay"), [(-1, 0.1), (0.1, -1), (float("nan"), 0), (0.1, float("inf")), (True, 0)]
)
def test_values_out_of_range_are_refused(lr: Any, weight_decay: Any) -> None:
    with pytest.raises(ConfigError, match="must be a number >= 0"):
        plan_decay(net()).groups(lr=lr, weight_decay=weight_decay)


@pytest.mark.parametrize(
    ("module", "found"),
    [(nn.ReLU(), "no parameter at all"), (nn.Linear(2, 2).requires_grad_(False), "2 parameters, all frozen")],
)
def test_a_plan_with_nothing_to_train_has_no_groups(module: nn.Module, found: str) -> None:
    plan = plan_decay(module)
    with pytest.raises(MaskError) as error:
        plan.groups(lr=1, weight_decay=1)
    assert str(error.value) == (
        f"the plan has no trainable parameter, so there is nothing to optimize.\n  found: {found}\n"
        "  fix: set requires_grad=True on what should train, or pass the module that holds the parameters"
    )


def test_settings_of_marks_are_plain_data() -> None:
    module = nn.Linear(2, 2)
    module.weight._optim = {"betas": (torch.tensor(0.5), 0.9), "foreach": None, "fused": True, "maker": net}  # type: ignore[attr-defined]
    settings = json.loads(json.dumps(plan_decay(module).to_dict()))["parameters"][0]["settings"]
    assert settings == {"betas": [0.5, 0.9], "fused": True, "maker": repr(net)}


def test_diff_names_what_two_plans_treat_differently() -> None:
    module = net()
    one, other = (
        plan_decay(module),
        plan_decay(module, {"base": "no_embeddings", "rules": [{"name": "norm.*", "lr_mult": 2, "reason": "mine"}]}),
    )
    assert [str(d) for d in one.diff(other)] == [
        "emb.weight: decay (embedding) / no_decay (embedding)",
        "norm.weight: no_decay (norm layer LayerNorm) / no_decay_lr_x2 (norm layer LayerNorm; lr x2 by mine)",
        "norm.bias: no_decay (bias) / no_decay_lr_x2 (bias; lr x2 by mine)",
    ]
    assert one.diff(plan_decay(module)) == ()
    small = plan_decay(nn.ModuleDict({"emb": nn.Embedding(6, 4), "new": nn.Linear(1, 1, bias=False)}))
    assert [str(d) for d in one.diff(small)][-1] == "new.weight: absent / decay (weight)"
    assert str(one.diff(small)[0]) == "module.weight: decay (weight) / absent"


def test_plain_data() -> None:
    plan = plan_decay(tied(), style="decoupled")
    assert json.loads(json.dumps(plan.to_dict())) == {
        "style": "decoupled",
        "totals": {"decay": {"tensors": 1, "numel": 24}},
        "parameters": [
            {
                "name": "wte.weight", "names": ["wte.weight", "head.weight"], "shape": [6, 4], "numel": 24,
                "wd_mult": 1.0, "lr_mult": 1.0,
                "style": "decoupled", "toward": "zero", "optimizer": None, "group": "decay", "reason": "embedding",
                "kind": "embedding",
            }
        ],
    }  # fmt: skip


def test_lightly_returns_tied_parameters_twice_frozen_ones_and_decays_rms_norm() -> None:
    net = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False), "norm": nn.RMSNorm(4)})
    net["b"].weight = net["a"].weight
    net["c"] = nn.Linear(4, 4).requires_grad_(False)
    groups = plan_decay(net).groups(lr=1, weight_decay=1)
    assert [[name for name, _ in g["params"]] for g in groups] == [["a.weight"], ["norm.weight"]]


def test_nemo_drops_what_only_starts_like_a_group() -> None:
    net = nn.ModuleDict({"encoder": nn.Linear(4, 4), "encoder_proj": nn.Linear(4, 4)})
    plan = plan_decay(net, Mask([Rule(lr_mult=0.1, name="encoder.*")]))
    placed = {name: g["lr"] for g in plan.groups(lr=1.0, weight_decay=0) for name, _ in g["params"]}
    assert placed == {"encoder.weight": 0.1, "encoder.bias": 0.1, "encoder_proj.weight": 1.0, "encoder_proj.bias": 1.0}


def test_a_rate_of_a_rule_that_looks_like_a_multiplier_warns() -> None:
    """`lr` in a rule was a multiplier once; 10 times became a rate of 10."""
    plan = plan_decay(nn.Linear(2, 2), {"rules": [{"name": "weight", "lr": 10}]})
    with pytest.warns(UserWarning, match="peak learning rate of 10, more than 100 times the configured 0.001"):
        plan.groups(lr=1e-3, weight_decay=0.1)
    plan_decay(nn.Linear(2, 2), {"rules": [{"name": "weight", "lr": 0.05}]}).groups(lr=1e-3, weight_decay=0.1)
    plan_decay(nn.Linear(2, 2), {"rules": [{"name": "weight", "lr_mult": 500}]}).groups(lr=1e-3, weight_decay=0.1)


def test_groups_of_several_optimizers() -> None:
    net = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    rules = [Rule(name="b.*", optimizer="my.own.Lion", betas=[0.9, 0.99]), Rule(name="*.bias", betas=[0.5, 0.9])]
    plan = plan_decay(net, Mask(rules))
    assert [(row.optimizer, row.settings) for row in plan] == [
        (None, {}), (None, {"betas": [0.5, 0.9]}),
        ("my.own.Lion", {"betas": [0.9, 0.99]}), ("my.own.Lion", {"betas": [0.9, 0.99]}),
    ]  # fmt: skip
    groups = plan.groups(lr=0.1, weight_decay=0.5, optimizer="adamw")
    assert [(g["name"], g["optimizer"], g.get("betas")) for g in groups] == [
        ("decay", "adamw", None),
        ("no_decay_betas_0.5_0.9", "adamw", [0.5, 0.9]),
        ("decay_Lion_betas_0.9_0.99", "my.own.Lion", [0.9, 0.99]),
        ("no_decay_Lion_betas_0.9_0.99", "my.own.Lion", [0.9, 0.99]),
    ]
    (difference,) = plan.diff(plan_decay(net, Mask([rules[0]])))
    assert difference.name == "a.bias"


def test_a_tied_tensor_has_the_earliest_settings() -> None:
    net = tied()
    rules = [Rule(name="head.*", optimizer="sgdw"), Rule(name="wte.*", optimizer="muon", momentum=0.5)]
    with pytest.warns(UserWarning, match="the mask disagrees about one tied tensor"):
        (row,) = plan_decay(net, Mask(rules))
    assert (row.optimizer, row.settings, row.by) == ("sgdw", {"momentum": 0.5}, {"optimizer": 0, "momentum": 1})
