"""Hooks and marks of a model's author."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.masks import Holder, compiled, placed
from torch import nn

from lightning_wd import Mask, MaskError, Rule, plan_decay


def test_hooks_that_list_wrapped_names_are_found() -> None:
    class Lister(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = compiled(nn.Linear(4, 4))

        def no_weight_decay(self) -> list[str]:
            return [name for name, _ in self.named_parameters() if name.endswith("weight")]

    assert placed(nn.Sequential(Lister())) == [("0.fc.weight", "no_decay"), ("0.fc.bias", "no_decay")]


class Hooked(nn.Module):
    def __init__(self, names: Any, keywords: Any = ()) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(8, 4))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4))
        self.proj = nn.Linear(4, 4)
        self._names, self._keywords = names, keywords

    def no_weight_decay(self) -> Any:
        return self._names

    def no_weight_decay_keywords(self) -> Any:
        return self._keywords


@pytest.mark.parametrize("collection", [list, set, tuple, dict.fromkeys])
def test_hooks_of_any_submodule_hold_under_its_prefix(collection: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 4), Hooked(collection(["proj.weight", "absent", "0.weight"])))
    plan = plan_decay(net)
    assert {row.name for row in plan if not row.wd_mult and row.name.endswith("weight")} == {"1.proj.weight"}
    assert plan["1.proj.weight"].reason == "hook Hooked.no_weight_decay()"


@pytest.mark.parametrize("hook", ["no_weight_decay", "no_weight_decay_keywords"])
def test_hooks_hung_on_one_module_hold_too(hook: str) -> None:
    net = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    setattr(net["a"], hook, lambda: {"weight"})
    plan = plan_decay(net)
    assert {row.name for row in plan if row.wd_mult} == {"b.weight"}
    assert plan["a.weight"].reason == f"hook Linear.{hook}()"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch calls its older reparametrizations old
def test_hooks_name_what_older_reparametrizations_have_renamed() -> None:
    from torch.nn.utils import prune

    for wrap, leaves in (
        (nn.utils.spectral_norm, {"weight_orig"}),
        (nn.utils.weight_norm, {"weight_g", "weight_v"}),
        (lambda layer: prune.l1_unstructured(layer, "weight", amount=1), {"weight_orig"}),
    ):
        net = nn.Sequential(Hooked({"proj.weight"}))
        wrap(net[0].proj)  # type: ignore[operator]
        hook = "hook Hooked.no_weight_decay()"
        assert {row.name for row in plan_decay(net) if row.reason == hook} == {f"0.proj.{leaf}" for leaf in leaves}


def test_hooks_with_wildcards_under_a_prefix_that_looks_like_one() -> None:
    plan = plan_decay(nn.ModuleDict({"[a]": Hooked(["cpb_mlp.*"])}))
    assert plan["[a].cpb_mlp.0.weight"].reason == "hook Hooked.no_weight_decay()"


def test_hooks_with_wildcards_and_keywords() -> None:
    plan = plan_decay(nn.Sequential(Hooked(["cpb_mlp.*"], ["proj"]), nn.Linear(4, 4)))
    assert {row.name for row in plan if row.wd_mult} == {"1.weight"}
    assert plan["0.cpb_mlp.1.weight"].reason == "hook Hooked.no_weight_decay()"
    assert plan["0.proj.weight"].reason == "hook Hooked.no_weight_decay_keywords()"


def test_a_rule_overrides_a_hook_and_all_and_none_ignore_it() -> None:
    net = Hooked({"proj.weight"})
    assert plan_decay(net, Mask([Rule(wd_mult=1, name="proj.weight")]))["proj.weight"].wd_mult == 1
    assert plan_decay(net, "matrices")["proj.weight"].wd_mult == 0
    assert plan_decay(net, "all")["proj.weight"].wd_mult == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "pos_embed",
            "Hooked.no_weight_decay() must return a collection of parameter names but got 'pos_embed'.\n"
            "  found: str\n  fix: return a set of names, for example {'pos_embed', 'cls_token'}",
        ),
        (
            [3],
            "Hooked.no_weight_decay() must return a collection of parameter names but got [3].\n"
            "  found: list\n  fix: return a set of names, for example {'pos_embed', 'cls_token'}",
        ),
    ],
)
def test_hooks_that_return_no_names_are_refused(names: Any, message: str) -> None:
    with pytest.raises(MaskError) as error:
        plan_decay(Hooked(names))
    assert str(error.value) == message


def test_a_hook_that_fails_is_refused() -> None:
    class Broken(nn.Linear):
        def no_weight_decay(self) -> set[str]:
            raise KeyError("x")

    with pytest.raises(MaskError, match=r"Broken.no_weight_decay\(\) failed: KeyError: 'x'"):
        plan_decay(Broken(2, 2))


def test_marks_of_mamba_and_s4() -> None:
    net = Holder(a=(4, 4), b=(4, 4), c=(4, 4), d=(4, 4), e=(4, 4))
    net.a._no_weight_decay = True  # type: ignore[union-attr]
    net.b._optim = {"weight_decay": 0.0, "lr": 1e-4}  # type: ignore[union-attr]
    net.c._optim = {"weight_decay": 0.02, "lr": None}  # type: ignore[union-attr]
    net.d._no_weight_decay = False  # type: ignore[union-attr]
    plan = plan_decay(net)
    assert {row.name: (row.wd_mult, row.reason) for row in plan} == {
        "a": (0.0, "mark _no_weight_decay"),
        "b": (0.0, "mark _optim"),
        "c": (1.0, "mark _optim"),
        "d": (1.0, "weight"),
        "e": (1.0, "weight"),
    }
    groups = {g["name"]: g for g in plan.groups(lr=1e-2, weight_decay=0.1)}
    assert {
        name: (g["lr"], g["base_lr"], g["weight_decay"], [n for n, _ in g["params"]]) for name, g in groups.items()
    } == {
        "decay": (1e-2, 1e-2, 0.1, ["d", "e"]),
        "no_decay": (1e-2, 1e-2, 0.0, ["a"]),
        "no_decay_lr_0.0001": (1e-4, 1e-4, 0.0, ["b"]),
        "decay_0.02": (1e-2, 1e-2, 0.02, ["c"]),
    }
    ruled = plan_decay(net, Mask([Rule(wd_mult=0.5, name="c"), Rule(lr_mult=3, name="b")]))
    assert {g["name"] for g in ruled.groups(lr=1e-2, weight_decay=0.1)} == {
        *("decay", "no_decay", "no_decay_lr_x3", "decay_x0.5")
    }
    net.e._optim = {"lr": -1}  # type: ignore[union-attr]
    with pytest.raises(MaskError, match=r"e\._optim\['lr'\] must be a number >= 0 but got -1"):
        plan_decay(net)


def test_hooks_name_layers_and_parametrized_tensors() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
            self.cpb_mlp = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4))
            self.cpb_mlp2 = nn.Linear(4, 4)

        def no_weight_decay(self) -> set[str]:
            return {"proj.weight", "cpb_mlp", "absent"}

    reasons = {row.name: row.reason for row in plan_decay(Net()) if row.name.endswith(("weight", "original"))}
    hook = "hook Net.no_weight_decay()"
    assert reasons == {
        "proj.parametrizations.weight.original": hook,
        "cpb_mlp.0.weight": hook,
        "cpb_mlp.2.weight": hook,
        "cpb_mlp2.weight": "weight",
    }
