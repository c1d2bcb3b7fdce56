"""From a module and a mask to a plan: ties, rules, what has no shape; a plan is a partition of any module's tensors."""

from __future__ import annotations

import warnings
from typing import Any, cast

import pytest
import torch
from helpers.masks import Extended, Net, compiled, net, placed, tied
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lightning_wd import ConfigError, Mask, MaskError, Rule, plan_decay


def test_excluded_parameters_keep_the_plans_style() -> None:
    plan = plan_decay(net(), Mask([Rule(name="*", style="l2")]), "decoupled")
    assert {row.name: (row.group, row.style) for row in plan if not row.wd_mult} == dict.fromkeys(
        ("module.bias", "norm.weight", "norm.bias"), ("no_decay", "decoupled")
    )


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ConfigError, match="style 'decopled' is unknown"):
        plan_decay(net(), style="decopled")


def test_frozen_parameters_are_listed_and_in_no_group() -> None:
    module = net()
    module["emb"].requires_grad_(False)  # type: ignore[index]
    row = plan_decay(module)["emb.weight"]
    assert (row.group, row.reason, row.wd_mult, row.kind) == (None, "frozen", 0.0, "embedding")
    assert "emb.weight" not in [n for g in plan_decay(module).groups(lr=1, weight_decay=1) for n, _ in g["params"]]
    assert plan_decay(module, include_frozen=True)["emb.weight"].group == "decay"


def test_a_tied_tensor_is_one_row_with_all_its_names() -> None:
    plan = plan_decay(tied())
    assert [(row.names, row.wd_mult) for row in plan] == [(("wte.weight", "head.weight"), 1.0)]
    assert plan["head.weight"] is plan["wte.weight"]
    assert len(plan.groups(lr=1, weight_decay=1)[0]["params"]) == 1


@pytest.mark.parametrize(
    ("mask", "decay", "lr"),
    [
        ("no_embeddings", 0.0, 1.0),
        (Mask([Rule(wd_mult=0, name="head.*")]), 0.0, 1.0),
        (Mask([Rule(wd_mult=1, name="head.*")], base="no_embeddings"), 0.0, 1.0),
        (Mask([Rule(wd_mult=2, name="wte.*")]), 2.0, 1.0),
        (Mask([Rule(lr_mult=10, name="head.*")]), 1.0, 10.0),
        (Mask([Rule(lr_mult=0, name="head.*")]), 1.0, 0.0),
    ],
)
def test_where_ties_disagree_exclusion_wins_then_the_earlier_evidence(mask: Any, decay: float, lr: float) -> None:
    with pytest.warns(UserWarning, match=r"disagrees about one tied tensor: wte\.weight: .*; head\.weight: "):
        (row,) = plan_decay(tied(), mask)
    assert (row.wd_mult, row.lr_mult) == (decay, lr)


def test_a_rule_for_all_names_of_a_tie_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = plan_decay(tied(), Mask([Rule(wd_mult=0.5, name="*.weight")], base="no_embeddings"))
    assert row.wd_mult == 0.5


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # newer torch calls it old
def test_torchscript_has_lost_the_types() -> None:
    module = net()
    module["norm"] = torch.jit.script(nn.LayerNorm((4, 4)))  # type: ignore[index, operator]
    with pytest.raises(MaskError) as error:
        plan_decay(module)
    assert str(error.value) == (
        "TorchScript keeps no layer types, so norms, embeddings and matrices can no longer be told apart.\n"
        "  found: norm.weight, norm.bias\n"
        "  fix: plan and train the module before torch.jit.script or torch.jit.trace, or freeze what is scripted"
    )
    for param in module["norm"].parameters():  # type: ignore[index]
        param.requires_grad_(False)
    assert placed(module)[3:] == [("norm.weight", None), ("norm.bias", None)]


def test_a_reason_is_only_text() -> None:
    plan = plan_decay(nn.Linear(4, 4), Mask([Rule(wd_mult=0, name="weight", reason="frozen")]))
    assert [(row.name, row.group, row.reason) for row in plan] == [
        ("weight", "no_decay", "frozen"),
        ("bias", "no_decay", "bias"),
    ]


LEAVES = st.sampled_from(
    [lambda: nn.Linear(2, 3), lambda: nn.Conv1d(2, 2, 1), lambda: nn.LayerNorm(3), lambda: nn.BatchNorm1d(2),
     lambda: nn.Embedding(3, 2), lambda: nn.LSTM(1, 2), lambda: nn.PReLU(), lambda: nn.ReLU(),
     lambda: nn.MultiheadAttention(2, 1), lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))]
)  # fmt: skip


NAMES = st.sampled_from(["module", "_orig_mod", "norm", "bias", "net", "head", "a_b", "0x"])


TREES = st.recursive(
    st.tuples(st.just("leaf"), LEAVES), lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=10
)


def build(tree: Any) -> nn.Module:
    return tree[1]() if isinstance(tree, tuple) else nn.ModuleDict({name: build(sub) for name, sub in tree.items()})  # type: ignore[no-any-return]


@settings(max_examples=60, deadline=None)
@given(tree=TREES, data=st.data())
def test_a_plan_is_a_partition_whatever_the_module(tree: Any, data: st.DataObject) -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"root": build(tree), "end": nn.Linear(2, 2)})
    linears = [m for m in module.modules() if type(m) is nn.Linear and m.weight.shape == (2, 2)]
    if len(linears) > 1 and data.draw(st.booleans(), label="tie"):
        linears[0].weight = linears[-1].weight
    for param in module.parameters():
        param.requires_grad_(data.draw(st.booleans()))
    plan = plan_decay(module)
    assert [row.name for row in plan] == [name for name, _ in module.named_parameters()]
    every = [name for row in plan for name in row.names]
    assert sorted(every) == sorted(name for name, _ in module.named_parameters(remove_duplicate=False))
    trainable = {id(p) for p in module.parameters() if p.requires_grad}
    if trainable:
        members = [id(param) for g in plan.groups(lr=1, weight_decay=1) for _, param in g["params"]]
        assert len(members) == len(set(members))
        assert set(members) == trainable
    before = {id(row.param): (row.name, row.wd_mult, row.group, row.reason) for row in plan}
    for wrapped in (nn.DataParallel(module), checkpoint_wrapper(module), compiled(module), Extended(module)):
        after = {id(r.param): (r.name, r.wd_mult, r.group, r.reason) for r in plan_decay(wrapped)}
        assert {key: after[key] for key in before} == before
        assert len(after) == len(list(wrapped.parameters()))
    renamed = plan_decay(nn.ModuleDict({"other": module}))
    assert {id(r.param): (r.name, r.wd_mult, r.group, r.reason) for r in renamed} == {
        key: (f"other.{name}", *rest) for key, (name, *rest) in before.items()
    }


def test_ndim_rules_never_decay_a_lazy_weight() -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.LazyConv2d(4, 3))
    with pytest.raises(MaskError) as error:
        plan_decay(net)
    assert str(error.value) == (
        "lazy parameters have no shape yet.\n  found: 0.weight, 0.bias, 1.weight, 1.bias\n"
        "  fix: run a dummy batch through the module before its optimizer is configured"
    )
    net[0](torch.ones(1, 2))
    assert plan_decay(net[0])["weight"].wd_mult == 1


def test_per_property_the_first_match_wins() -> None:
    mask = Mask(
        [
            Rule(lr_mult=10, name="*.head.*"),
            Rule(wd_mult=0.5, name="*.weight", lr_mult=2),
            Rule(wd_mult=0, name="head.*", reason="mine"),
        ]
    )
    plan = plan_decay(Net(), mask)
    assert (plan["head.weight"].wd_mult, plan["head.weight"].lr_mult) == (0.5, 10)
    assert (plan["head.bias"].wd_mult, plan["head.bias"].lr_mult, plan["head.bias"].reason) == (
        *(0, 10),
        "mine; lr x10 by rule name '*.head.*'",
    )
    assert (plan["blocks.0.fc.weight"].wd_mult, plan["blocks.0.fc.weight"].lr_mult) == (0.5, 2)


def test_an_lr_rule_leaves_norms_and_biases_excluded() -> None:
    """mmengine#846: there a matching custom key switches the norm and bias rules off."""
    plan = plan_decay(Net(), Mask([Rule(lr_mult=10, name="*.head.*"), Rule(lr_mult=0.1, name="*.layernorm.*")]))
    assert [(row.name, row.wd_mult, row.lr_mult) for row in plan] == [
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


def test_a_parameter_that_no_rule_places_is_an_error() -> None:
    with pytest.raises(MaskError) as error:
        plan_decay(Net(), Mask([Rule(wd_mult=0, ndim=1), Rule(lr_mult=2, name="head.weight")], base=None))
    assert str(error.value) == (
        "no rule places these parameters (base is null).\n"
        "  found: blocks.0.fc.weight, blocks.1.fc.weight, head.weight\n"
        "  fix: add a last rule for the rest, such as Rule(wd_mult=1), or give the mask a base such as 'standard'"
    )
    assert plan_decay(Net(), Mask([Rule(wd_mult=0, ndim=1), Rule(wd_mult=1)], base=None))["head.weight"].wd_mult == 1


def test_presets() -> None:
    assert [m.base for m in (Mask.standard(), Mask.no_embeddings(), Mask.matrices(), Mask.all(), Mask.none())] == [
        *("standard", "no_embeddings", "matrices", "all", "none")
    ]
    assert Mask.adapters().base == "adapters"
    net = nn.ModuleDict({"tok": nn.Embedding(5, 4), "fc": nn.Linear(4, 4)})
    net.register_parameter("pos_embed", nn.Parameter(torch.zeros(1, 5, 4)))
    decayed = {
        preset: {row.name for row in plan_decay(net, preset) if row.wd_mult}
        for preset in ("standard", "no_embeddings", "matrices", "all", "none")
    }
    assert decayed == {
        "standard": {"tok.weight", "fc.weight"},
        "no_embeddings": {"fc.weight"},
        "matrices": {"pos_embed", "tok.weight", "fc.weight"},
        "all": {"pos_embed", "tok.weight", "fc.weight", "fc.bias"},
        "none": set(),
    }


def three() -> nn.Module:
    return nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2, bias=False), "c": nn.Linear(2, 2, bias=False)})


def groups(rules: list[Rule], style: str | None = "decoupled", **mask: Any) -> dict[str, tuple[Any, ...]]:
    """Name -> style, weight decay, lr, peak, members; the run has lr 0.01 and weight decay 0.1."""
    plan = plan_decay(three(), Mask(tuple(rules), **mask), style)
    return {
        g["name"]: (g.get("style"), g["weight_decay"], g["lr"], g["base_lr"], [name for name, _ in g["params"]])
        for g in plan.groups(lr=0.01, weight_decay=0.1)
    }


def test_an_absolute_weight_decay_and_lr_are_the_groups_own() -> None:
    assert groups([Rule(name="a.weight", weight_decay=0.05), Rule(name="a.*", lr=0.001)]) == {
        "decay": ("decoupled", 0.1, 0.01, 0.01, ["b.weight", "c.weight"]),
        "decay_0.05_lr_0.001": ("decoupled", 0.05, 0.001, 0.001, ["a.weight"]),
        "no_decay_lr_0.001": ("decoupled", 0.0, 0.001, 0.001, ["a.bias"]),
    }


def test_a_group_is_named_after_what_is_absolute() -> None:
    rules = [Rule(name="a.weight", weight_decay=0.05), Rule(name="b.*", lr=0.001), Rule(name="c.*", lr_mult=0.1)]
    assert list(groups(rules)) == ["no_decay", "decay_0.05", "decay_lr_0.001", "decay_lr_x0.1"]


def test_weight_decay_0_excludes_as_wd_mult_0_does() -> None:
    by_value, by_multiplier = ([Rule(name="b.*", **cast(Any, {key: 0}))] for key in ("weight_decay", "wd_mult"))
    assert groups(by_value) == groups(by_multiplier)
    assert groups(by_value)["no_decay"] == ("decoupled", 0.0, 0.01, 0.01, ["a.bias", "b.weight"])
    row = plan_decay(three(), Mask(tuple(by_value)))["b.weight"]
    assert (row.wd_mult, row.settings, row.reason) == (0.0, {}, "rule name 'b.*'")


def test_an_lr_of_0_is_a_rate_of_its_own() -> None:
    assert groups([Rule(name="b.*", lr=0)])["decay_lr_0"] == ("decoupled", 0.1, 0.0, 0.0, ["b.weight"])


@pytest.mark.parametrize("style", ["decoupled", "independent", "constant", "corrected"])
@pytest.mark.parametrize("rule_style", ["decoupled", "independent", "constant", "corrected", "l2"])
def test_an_absolute_weight_decay_is_in_the_unit_of_the_rows_style(style: str, rule_style: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is converted, so L2 warns of nothing
        found = groups([Rule(name="b.*", weight_decay=0.03, style=rule_style)], style)
    suffix = "" if rule_style == style else f"_{rule_style}"
    assert found[f"decay_0.03{suffix}"] == (rule_style, 0.03, 0.01, 0.01, ["b.weight"])


def test_a_rule_for_the_style_alone_leaves_another_rules_amount_unconverted() -> None:
    found = groups([Rule(name="b.*", weight_decay=0.03), Rule(name="[bc].*", style="independent")])
    assert found["decay_0.03_independent"] == ("independent", 0.03, 0.01, 0.01, ["b.weight"])
    assert found["decay_independent"] == ("independent", 0.1 * 0.01, 0.01, 0.01, ["c.weight"])


def test_an_absolute_lr_leaves_the_conversion_of_a_style_at_the_runs_peak() -> None:
    found = groups([Rule(name="b.*", lr=0.5, style="independent")])
    assert found["decay_lr_0.5_independent"] == ("independent", 0.1 * 0.01, 0.5, 0.5, ["b.weight"])


def test_a_tensor_lr_gives_way_to_an_absolute_one() -> None:
    plan = plan_decay(three(), Mask([Rule(name="b.*", lr=0.5), Rule(name="c.*", lr_mult=0.5)]))  # type: ignore[arg-type]
    found = {g["name"]: (g["lr"], g["base_lr"]) for g in plan.groups(lr=torch.tensor(0.25), weight_decay=0.1)}
    assert found["decay_lr_0.5"] == (0.5, 0.5)
    assert found["decay_lr_x0.5"] == (torch.tensor(0.125), 0.125)


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        (Rule(name="b.*", wd_mult=0.5), Rule(weight_decay=0.03, ndim=2), "decay_x0.5"),
        (Rule(name="b.*", weight_decay=0.03), Rule(wd_mult=0.5, ndim=2), "decay_0.03"),
        (Rule(name="b.*", weight_decay=0), Rule(weight_decay=0.03, ndim=2), "no_decay"),
        (Rule(name="b.*", lr_mult=0.5), Rule(lr=0.03, ndim=2), "decay_lr_x0.5"),
        (Rule(name="b.*", lr=0.03), Rule(lr_mult=0.5, ndim=2), "decay_lr_0.03"),
    ],
)
def test_the_first_rule_that_sets_a_property_wins_by_multiplier_or_value(first: Rule, second: Rule, name: str) -> None:
    assert plan_decay(three(), Mask((first, second)))["b.weight"].group == name
    with pytest.raises(MaskError, match=r"mask rule \(name 'b\.\*'\) has no effect: earlier rules decide everything"):
        plan_decay(three(), Mask((second, first)))


def test_each_property_has_a_first_rule_of_its_own() -> None:
    rules = [Rule(name="b.*", lr=0.5), Rule(name="[bc].*", weight_decay=0.03, lr_mult=2), Rule(ndim=2, style="l2")]
    with pytest.warns(UserWarning, match="the number 0.1 is used unchanged"):  # of a.weight
        found = groups(rules)
    assert found["decay_0.03_lr_0.5_l2"] == ("l2", 0.03, 0.5, 0.5, ["b.weight"])
    assert found["decay_0.03_lr_x2_l2"] == ("l2", 0.03, 0.02, 0.02, ["c.weight"])
    row = plan_decay(three(), Mask(tuple(rules)), "decoupled")["b.weight"]
    assert row.reason == "rule name '[bc].*'; lr 0.5 by rule name 'b.*'; style l2 by rule ndim 2"


def test_an_absolute_decays_what_the_base_leaves_out_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    assert groups([Rule(name="a.*", weight_decay=0.05)])["decay_0.05"][-1] == ["a.weight", "a.bias"]
    assert "decays 1 parameter that base 'standard' leaves out, beside 1 that it decays" in caplog.text
    caplog.clear()
    groups([Rule(name="a.bias", weight_decay=0.05), Rule(name="a.*", lr=0.05), Rule(name="b.*", weight_decay=0)])
    assert caplog.text == ""


def test_an_absolute_places_a_parameter_without_a_base() -> None:
    found = groups([Rule(ndim=1, weight_decay=0), Rule(name="b.*", weight_decay=0.05), Rule(wd_mult=1)], base=None)
    assert list(found) == ["decay", "no_decay", "decay_0.05"]
    with pytest.raises(MaskError, match=r"no rule places these parameters \(base is null\).\n  found: c.weight\n"):
        groups([Rule(name="[ab].*", weight_decay=0.05), Rule(name="c.*", lr=0.1)], base=None)


def test_layer_decay_leaves_an_absolute_lr_alone() -> None:
    blocks = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))})
    rules = [Rule(name="layers.0.*", lr=0.5), Rule(name="layers.1.*", lr_mult=3)]
    plan = plan_decay(nn.ModuleDict({"net": blocks}), Mask.layerwise(0.5, [Rule(name="*.2.*", weight_decay=0.3)]))
    assert [(row.lr_mult, row.group) for row in plan] == [
        (0.25, "decay_lr_x0.25"), (0.5, "decay_lr_x0.5"), (1.0, "decay_0.3"),
    ]  # fmt: skip
    found = plan_decay(blocks, Mask.layerwise(0.5, rules)).groups(lr=0.01, weight_decay=0.1)
    assert [(g["name"], g["lr"], g["base_lr"]) for g in found] == [
        ("decay", 0.01, 0.01),
        ("decay_lr_0.5", 0.5, 0.5),
        ("decay_lr_x3", 0.03, 0.03),
    ]


def test_a_rule_comes_before_a_mark() -> None:
    module = three()
    module["b"].weight._optim = {"lr": 1e-4, "weight_decay": 0.02, "betas": (0.5, 0.9)}  # type: ignore[index]
    rule = Rule(name="b.*", lr=0.5, weight_decay=0.05)
    row = plan_decay(module, Mask((rule,)))["b.weight"]
    assert (dict(row.settings), row.wd_mult) == ({"betas": (0.5, 0.9), "weight_decay": 0.05, "lr": 0.5}, 1.0)
    row = plan_decay(module, Mask((Rule(name="b.*", weight_decay=0),)))["b.weight"]
    assert (dict(row.settings), row.wd_mult) == ({"betas": (0.5, 0.9), "lr": 1e-4}, 0.0)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([Rule(name="head.*", weight_decay=0)], (0.0, 1.0, {})),
        ([Rule(name="head.*", weight_decay=0.05)], (1.0, 1.0, {"weight_decay": 0.05})),
        ([Rule(name="head.*", lr=0.5)], (1.0, 1.0, {"lr": 0.5})),
        ([Rule(name="wte.*", weight_decay=0.05), Rule(name="head.*", wd_mult=0)], (0.0, 1.0, {})),
        ([Rule(name="wte.*", weight_decay=0.05), Rule(name="head.*", wd_mult=2)], (1.0, 1.0, {"weight_decay": 0.05})),
        ([Rule(name="head.*", wd_mult=2), Rule(name="wte.*", weight_decay=0.05)], (2.0, 1.0, {})),
        ([Rule(name="head.*", lr_mult=2), Rule(name="wte.*", lr=0.5)], (1.0, 2.0, {})),
        ([Rule(name="head.*", lr=0.5, wd_mult=2), Rule(name="wte.*", lr_mult=2)], (2.0, 1.0, {"lr": 0.5})),
    ],
)
def test_ties_that_disagree_about_an_absolute(rules: list[Rule], expected: tuple[Any, ...]) -> None:
    with pytest.warns(UserWarning, match="disagrees about one tied tensor") as caught:
        (row,) = plan_decay(tied(), Mask(tuple(rules)))
    assert (row.wd_mult, row.lr_mult, dict(row.settings)) == expected
    assert caught[0].filename == __file__  # the caller's line


def test_the_warning_of_a_tie_says_what_is_absolute() -> None:
    with pytest.warns(UserWarning, match="disagrees") as caught:
        plan_decay(tied(), Mask((Rule(name="head.*", weight_decay=0.05, lr=0.5),)))
    assert str(caught[0].message) == (
        "the mask disagrees about one tied tensor: wte.weight: wd_mult 1.0, lr_mult 1 (embedding); "
        "head.weight: weight_decay 0.05, lr 0.5 (rule name 'head.*'; lr 0.5 by rule name 'head.*').\n"
        "  found: exclusion wins, then the earlier evidence: weight_decay 0.05, lr 0.5\n"
        "  fix: to decide it yourself, write a rule that matches each of its names"
    )
