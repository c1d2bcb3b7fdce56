"""Loading a state: what fits, what is refused and how it is said, and which side wins where both fit."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import lightning_wd as wd
from lightning_wd.optimizers import SGDL2, AdamL2

FAMILIES = [
    pytest.param(wd.AdamW, torch.optim.AdamW, {"weight_decay": 0.1}, id="AdamW"),
    pytest.param(AdamL2, torch.optim.Adam, {"weight_decay": 0.1}, id="AdamL2"),
    pytest.param(wd.SGDW, torch.optim.SGD, {"momentum": 0.9}, id="SGDW"),
    pytest.param(SGDL2, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}, id="SGDL2"),
]


def params(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(s)) for s in shapes or ((3, 2), (2,))]


def groups(decay: float = 0.1, **settings: Any) -> list[dict[str, Any]]:
    a, b = params()
    return [
        {"params": [("w", a)], "name": "decay", "weight_decay": decay, **settings},
        {"params": [("b", b)], "name": "no_decay", "weight_decay": 0.0, **settings},
    ]


def stepped(optimizer: Any, steps: int = 1) -> Any:
    for t in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.full_like(p, 0.5 + t)
        optimizer.step()
    return optimizer


def weights(optimizer: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def snapshot(optimizer: Any) -> Any:
    return copy.deepcopy(optimizer.state_dict())


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize(("ours", "plain", "settings"), FAMILIES)
def test_plain_torch_state_loads_and_defaults_stay(ours: Any, plain: Any, settings: dict[str, Any]) -> None:
    source = stepped(plain(params(), lr=0.1, **settings), 3)
    saved = snapshot(source)
    for key in ("maximize", "foreach", "capturable", "differentiable", "fused"):  # what older torch did not save
        for group in saved["param_groups"]:
            group.pop(key, None)
    target = ours(params(), lr=0.1, **settings)
    before = copy.deepcopy({k: v for k, v in target.param_groups[0].items() if k != "params"})
    target.load_state_dict(saved)
    after = {k: v for k, v in target.param_groups[0].items() if k != "params"}
    assert after == before
    assert same(target.state_dict()["state"], source.state_dict()["state"])
    for mine, theirs in zip(target.param_groups[0]["params"], source.param_groups[0]["params"], strict=True):
        mine.data.copy_(theirs.data)
    stepped(source), stepped(target)
    if settings.get("weight_decay") or ours is wd.SGDW:
        assert all(map(torch.equal, weights(target), weights(source)))


@pytest.mark.parametrize(("ours", "plain", "settings"), FAMILIES)
def test_torch_loads_our_state(ours: Any, plain: Any, settings: dict[str, Any]) -> None:
    if ours is wd.SGDW:
        settings = {**settings, "weight_decay": 0.0}
    source = stepped(ours(params(), lr=0.1, **settings), 2)
    target = plain(params(), lr=0.1, **settings)
    target.load_state_dict(snapshot(source))
    for mine, theirs in zip(target.param_groups[0]["params"], source.param_groups[0]["params"], strict=True):
        mine.data.copy_(theirs.data)
    stepped(source), stepped(target)
    for a, b in zip(weights(target), weights(source), strict=True):
        torch.testing.assert_close(a, b)


def refused(optimizer: Any, state: Any, *words: str) -> None:
    """The load fails in these words, and leaves everything as it was."""
    before = snapshot(optimizer)
    with pytest.raises(wd.CheckpointMismatchError) as error:
        optimizer.load_state_dict(state)
    for word in (f"the checkpoint does not fit this {type(optimizer).__name__}", "fix: ", *words):
        assert word in str(error.value)
    assert same(snapshot(optimizer), before)


def flagged(optimizer: Any) -> Any:
    """The state as torch >= 2.7 saves it; an older torch must refuse it as well."""
    state = stepped(optimizer).state_dict()
    for group in state["param_groups"]:
        decoupled = group.setdefault("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
        assert decoupled is isinstance(optimizer, torch.optim.AdamW)
    return state


def test_another_style_or_optimizer_is_refused() -> None:
    def adamw(**s: Any) -> Any:
        return stepped(wd.AdamW(params(), lr=0.1, weight_decay=0.1, **s))

    torch_adam = flagged(torch.optim.Adam(params(), lr=0.1, weight_decay=0.1))
    torch_adamw = flagged(torch.optim.AdamW(params(), lr=0.1, weight_decay=0.1))
    sgdw = stepped(wd.SGDW(params(), lr=0.1, momentum=0.9, weight_decay=0.1))
    l2 = stepped(AdamL2(params(), lr=0.1, weight_decay=0.1))
    another = "group 0 was trained with another decay style."

    refused(
        adamw(), l2.state_dict(), another, "found: style 'l2' (an L2 penalty)", "style 'decoupled' in the configuration"
    )
    refused(adamw(), torch_adam, another, "found: style 'l2'")
    refused(
        l2,
        adamw().state_dict(),
        another,
        "found: style 'decoupled' (decoupled decay)",
        "style 'l2' in the configuration",
    )
    refused(l2, torch_adamw, another, "write style='decoupled'", "to switch on purpose, write on_resume=config")
    refused(adamw(style="independent"), torch_adamw, another, "style 'independent' in the configuration")
    refused(adamw(style="independent"), adamw().state_dict(), another, "write style='decoupled'")
    refused(sgdw, stepped(SGDL2(params(), lr=0.1, weight_decay=0.1)).state_dict(), another)
    refused(adamw(), sgdw.state_dict(), "group 0 is of another optimizer.", "no betas", "momentum", "as of SGD")
    refused(sgdw, adamw().state_dict(), "group 0 is of another optimizer.", "as of Adam or AdamW\n", "of SGDW\n")
    for cls in (torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.RMSprop):
        refused(adamw(), stepped(cls(params(), lr=0.1)).state_dict(), "of another optimizer.")
    nadam = stepped(wd.decoupled(torch.optim.NAdam)(params(), lr=0.1))
    refused(nadam, adamw().state_dict(), "group 0 is of another optimizer.", "no momentum_decay")


@pytest.mark.parametrize("plain", [torch.optim.Adam, torch.optim.AdamW])
def test_plain_states_of_old_torch_do_not_say_which_adam_saved_them(plain: Any) -> None:
    """Before torch 2.7 they are alike: both styles that they may have been load, and no other does."""
    saved = snapshot(stepped(plain(params(), lr=0.1, weight_decay=0.1)))
    for group in saved["param_groups"]:
        group.pop("decoupled_weight_decay", None)
    for target in (wd.AdamW(params(), lr=0.1, weight_decay=0.1), AdamL2(params(), lr=0.1, weight_decay=0.1)):
        style = target.param_groups[0]["style"]
        target.load_state_dict(copy.deepcopy(saved))
        assert target.param_groups[0]["style"] == style
        assert target.param_groups[0]["decoupled_weight_decay"] is (style != "l2")
        assert same(target.state_dict()["state"], saved["state"])
    asked = wd.AdamW(params(), lr=0.1, weight_decay=0.5, style="independent")
    (message,) = load(copy.deepcopy(saved), asked, "config")
    assert "so style 'l2' or 'decoupled' with weight_decay 0.1 in the checkpoint, 'independent' with 0.5" in message
    assert (asked.param_groups[0]["style"], asked.param_groups[0]["weight_decay"]) == ("independent", 0.5)
    for style in ("independent", "constant", "corrected", "none"):
        refused(
            wd.AdamW(params(), lr=0.1, weight_decay=0.1, style=style),
            saved,
            "group 0 was trained with another decay style.",
            "found: a state of torch.optim.Adam or AdamW before torch 2.7, so style 'l2' or 'decoupled'",
            f"style '{style}' in the configuration",
        )


@pytest.mark.skipif(
    "decoupled_weight_decay" not in torch.optim.Adam(params()).defaults,
    reason="torch < 2.7 has an AdamW that shares nothing with Adam",
)
def test_torch_adam_would_have_become_adamw() -> None:
    """The failure that this check is for, in torch itself: if it is gone, the check can be relaxed."""
    adam = torch.optim.Adam(params(), lr=0.1, weight_decay=0.1)
    adam.load_state_dict(stepped(torch.optim.AdamW(params(), lr=0.1)).state_dict())
    assert adam.param_groups[0]["decoupled_weight_decay"] is True


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_numbers_keep_their_digits(dtype: torch.dtype) -> None:
    """torch casts NAdam's product of momenta, a float32, to the dtype of the weights when it loads a state."""

    def built() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 8, dtype=dtype))
        return weight, wd.decoupled(torch.optim.NAdam)([weight], lr=0.01, weight_decay=0.5)

    def steps(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        for step in range(5):
            weight.grad = torch.linspace(step - 3, 1, 8, dtype=dtype)
            optimizer.step()

    whole, optimizer = built()
    steps(whole, optimizer)
    resumed, other = built()
    resumed.data.copy_(whole.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(whole, optimizer)
    steps(resumed, other)
    assert other.state[resumed]["mu_product"].dtype == torch.float32
    assert torch.equal(resumed, whole)


@pytest.mark.parametrize(("on_resume", "rate", "momentum"), [("checkpoint", 0.05, 0.9), ("config", 0.01, 0.5)])
def test_a_changed_number_of_a_rule_is_settled_like_any_other(on_resume: str, rate: float, momentum: float) -> None:
    """A mask names its groups after the numbers of its rules; the members say which group is which."""

    def built(optimizer: str = "sgdw", name: str = "adamw", **settings: Any) -> Any:
        rule = {"name": "1.*", "optimizer": optimizer, **settings}
        net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        config = {"name": name, "mask": {"rules": [rule]}, "on_resume": on_resume}
        return wd.configure_optimizers(net, config, "constant")["optimizer"]

    target, saved = built(lr=0.01, momentum=0.5), snapshot(stepped(built(lr=0.05, momentum=0.9)))
    line = r"group 'decay_lr_0\.01_sgdw_momentum_0\.5': lr \(base_lr\) is 0\.05 in the checkpoint, 0\.01 in the config"
    with pytest.warns(UserWarning, match=line):
        target.load_state_dict(saved)
    for group, stem in zip(target.param_groups[2:], ("decay", "no_decay"), strict=True):
        assert group["name"] == f"{stem}_lr_0.01_sgdw_momentum_0.5"  # as the plan calls it
        assert [group[key] for key in ("lr", "initial_lr", "base_lr", "momentum")] == [rate, rate, rate, momentum]
    refused(built("torch.optim.Adam", lr=0.05), saved, "of another optimizer")
    refused(built(name="muon", lr=0.05, momentum=0.9), saved, "group 'decay_muon' is of another optimizer")
    for group in saved["param_groups"]:
        del group["param_names"]
    refused(target, saved, "group 2 has another name.", "'decay_lr_0.01_sgdw_momentum_0.5' (1 parameter)")


def test_other_groups_or_members_are_refused() -> None:
    def make(gs: list[dict[str, Any]]) -> Any:
        return stepped(wd.AdamW(gs, lr=0.1))

    target = make(groups())
    one = groups()[:1]
    refused(
        target,
        make(one).state_dict(),
        "different number of parameter groups",
        "found: group 'decay' (1 parameter)",
        "valid: group 'decay' (1 parameter), group 'no_decay' (1 parameter)",
    )
    corrected = groups(style="corrected")
    corrected.append({"params": [("head", params()[0])], "name": "decay_decoupled", "style": "decoupled"})
    refused(make(corrected), make(groups(style="independent")).state_dict(), "number of parameter groups",
            "its decay style was independent and is corrected, decoupled here")  # fmt: skip
    relabelled = groups()
    relabelled[0]["name"] = "weights"
    refused(target, make(relabelled).state_dict(), "group 0 has another name.", "found: group 'weights'")
    moved = groups()
    moved[0]["params"], moved[1]["params"] = moved[1]["params"], moved[0]["params"]
    refused(target, make(moved).state_dict(), "group 0 has another name.")
    renamed = groups()
    renamed[0]["params"] = [("head.w", renamed[0]["params"][0][1])]
    refused(target, make(renamed).state_dict(), "group 'decay' has other parameters.", "found: head.w", "valid: w")
    refused(
        stepped(wd.SGDW(params((2,), (2,)), lr=0.1)),
        stepped(wd.SGDW(params((2,)), lr=0.1)).state_dict(),
        "doesn't match the size of group 0",
    )
    refused(  # the same sizes but other members: torch loads it, and fails in the next step
        stepped(wd.SGDW(params((3, 2), (2,)), lr=0.1, momentum=0.9)),
        stepped(wd.SGDW(params((2,), (3, 2)), lr=0.1, momentum=0.9)).state_dict(),
        "momentum_buffer of parameter 0 in group 0 has another shape.",
        "found: (2,)",
        "valid: (3, 2)",
    )


def square(*names: str) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters of one shape: only a name tells them apart."""
    return [(name, torch.nn.Parameter(torch.ones(2, 2))) for name in names]


def stepped_by_name(optimizer: Any) -> Any:
    """Step with gradients that depend on the names: a is stepped with 1, b with 2."""
    for group in optimizer.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            p.grad = torch.full_like(p, 1.0 + "abcdefgh".index(name[-1]))
    optimizer.step()
    return optimizer


def moments(optimizer: Any) -> dict[str, float]:
    return {
        name: round(optimizer.state[p]["exp_avg"].mean().item(), 6)
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }


MOMENTS = {"a": 0.1, "b": 0.2, "c": 0.3}


@pytest.mark.parametrize("on_resume", ["checkpoint", "config", "error"])
def test_members_match_by_name_whatever_the_order_of_members_and_groups(on_resume: str) -> None:
    def build(*order: str) -> Any:
        gs = [{"params": square(*names), "name": names, "weight_decay": 0.1 * (names < "c")} for names in order]
        return wd.AdamW(gs, lr=0.1)

    saved = stepped_by_name(build("ab", "c")).state_dict()
    saved["param_groups"][0].update(param_names=["b", "a"], params=[1, 0])  # as if it had been built from b, a
    saved["param_groups"].reverse()
    target = build("ab", "c")
    assert load(copy.deepcopy(saved), target, on_resume) == []
    assert moments(target) == MOMENTS
    assert [(g["name"], g["param_names"], g["weight_decay"]) for g in target.param_groups] == [
        ("ab", ["a", "b"], 0.1),
        ("c", ["c"], 0.0),
    ]


@pytest.mark.parametrize("cls", [torch.optim.AdamW, wd.AdamW])
@pytest.mark.parametrize(
    ("mine", "theirs"),
    [("", "_orig_mod."), ("net.", ""), ("net.", "module.net."), ("a._orig_mod.", ""), ("a.", "a._orig_mod.")],
)
def test_a_prefix_of_all_names_is_no_difference(cls: Any, mine: str, theirs: str) -> None:
    saved = stepped_by_name(cls(square(*(theirs + n for n in "bca")), lr=0.1, weight_decay=0.1))
    target = wd.AdamW(square(*(mine + n for n in "abc")), lr=0.1, weight_decay=0.1)
    assert load(saved.state_dict(), target, "error") == []
    assert moments(target) == {mine + n: value for n, value in MOMENTS.items()}


def test_a_prefix_of_some_names_is_a_difference() -> None:
    saved = stepped_by_name(torch.optim.AdamW(square("net.a", "b"), lr=0.1)).state_dict()
    refused(wd.AdamW(square("a", "b"), lr=0.1), saved, "it is of other parameters.", "found: net.a", "valid: a")


def masked(decay: float = 0.1, **settings: Any) -> Any:
    gs: list[dict[str, Any]] = [
        {"params": square("a"), "name": "decay"},
        {"params": square("b", "c"), "name": "no_decay", "weight_decay": 0},
    ]
    return wd.AdamW(gs, lr=0.1, weight_decay=decay, **settings)


def test_one_plain_group_with_names_goes_into_masked_groups() -> None:
    """The mask stays, and what it leaves out is said; lr, betas and the other amounts follow on_resume."""
    plain = torch.optim.AdamW(square("c", "a", "b"), lr=0.2, weight_decay=0.3, betas=(0.9, 0.95))
    saved = stepped_by_name(plain).state_dict()
    kept = (
        "group 'no_decay': weight_decay is 0.3 in the checkpoint; the mask leaves it out of the decay, at 0.0",
        "group 'decay': weight_decay is 0.3 in the checkpoint, 0.1 in the configuration",
    )
    for mode, lr, decay in (("checkpoint", 0.2, 0.3), ("config", 0.1, 0.1)):
        target = masked()
        (message,) = load(copy.deepcopy(saved), target, mode)
        assert all(line in message for line in kept)
        assert "write optimizer/mask=all to let it decay as before" in message
        assert moments(target) == MOMENTS
        assert [(g["name"], g["lr"], g["weight_decay"]) for g in target.param_groups] == [
            ("decay", lr, decay),
            ("no_decay", lr, 0.0),
        ]
    with pytest.raises(wd.CheckpointMismatchError, match="the mask leaves it out of the decay") as error:
        load(copy.deepcopy(saved), masked(), "error")
    assert kept[1] in str(error.value)


def test_frozen_parameters_of_a_plain_optimizer_are_no_misfit_but_trained_ones_are() -> None:
    plain = torch.optim.AdamW(square("a", "b", "c", "d"), lr=0.1, weight_decay=0.0)
    saved = stepped_by_name(plain).state_dict()
    refused(masked(), saved, "it is of other parameters.", "found: d", "valid: a, b, c")
    del saved["state"][3]  # d was frozen: no step has given it a state
    target = masked(decay=0.0)
    assert load(saved, target, "error") == []
    assert moments(target) == MOMENTS
    refused(masked(), stepped_by_name(torch.optim.AdamW(square("a", "b"))).state_dict(), "found: a, b", "valid: c")


def test_settings_that_one_group_cannot_have_are_refused() -> None:
    plain = torch.optim.AdamW([{"params": square("a"), "lr": 0.3}, {"params": square("b", "c"), "lr": 0.1}])
    saved = stepped_by_name(plain).state_dict()
    build = functools.partial(wd.AdamW, lr=0.1)
    with pytest.raises(wd.CheckpointMismatchError) as error:
        build(square("a", "b", "c")).load_state_dict(saved)
    assert str(error.value) == (
        "the settings of AdamW: the checkpoint and the configuration differ, and one group has one value.\n"
        "  found: group 0: lr is 0.3 and 0.1 in the checkpoint, 0.1 in the configuration; "
        "group 0: lr (base_lr) is 0.3 in the checkpoint, 0.1 in the configuration\n"
        "  fix: write on_resume=config to use the configured values, or give these parameters groups of their own "
        "and write on_resume=checkpoint to use the checkpoint's"
    )
    target = build(square("a", "b", "c"))
    assert len(load(saved, target, "config")) == 1
    assert (target.param_groups[0]["lr"], moments(target)) == (0.1, MOMENTS)


def test_without_names_position_decides_and_is_said() -> None:
    plain = torch.optim.AdamW([p for _, p in square("a", "b")], lr=0.1, weight_decay=0.1)
    saved = stepped(plain).state_dict()
    named, unnamed = (wd.AdamW(ps, lr=0.1, weight_decay=0.1) for ps in (square("a", "b"), params((2, 2), (2, 2))))
    (message,) = load(copy.deepcopy(saved), named, "checkpoint")
    assert message == (
        "the checkpoint has no names of parameters, so AdamW takes the state by position only: 2 tensors share their "
        "shape with another and cannot be told apart.\n"
        "  found: a, b of shape (2, 2)\n"
        "  fix: check that the parameters have the order of the run that was saved; an optimizer built from "
        "named_parameters() saves names, and the order no longer matters"
    )
    (message,) = load(copy.deepcopy(saved), unnamed, "config")
    assert message.startswith("neither the checkpoint nor the optimizer has names of parameters")
    assert "found: group 0[0], group 0[1] of shape (2, 2)" in message
    (message,) = load(stepped(named).state_dict(), unnamed, "checkpoint")
    assert message.startswith("the optimizer has no names of parameters")
    named.on_resume = "error"
    before = snapshot(named)
    with pytest.raises(wd.CheckpointMismatchError, match="or write on_resume=checkpoint to take them in this order"):
        named.load_state_dict(saved)
    assert same(snapshot(named), before)


@pytest.mark.parametrize("shapes", [((3, 2), (2,)), ((2, 2), (2, 2))])
def test_what_cannot_be_mixed_up_is_not_told(shapes: tuple[tuple[int, ...], ...]) -> None:
    """Other shapes, which are checked; and no state, as SGD without momentum has none."""
    cls: Any = (wd.SGDW, torch.optim.SGD) if shapes[0] == shapes[1] else (wd.AdamW, torch.optim.AdamW)
    saved = stepped(cls[1](params(*shapes), lr=0.1, weight_decay=0.0)).state_dict()
    assert load(saved, cls[0](params(*shapes), lr=0.1, weight_decay=0.0), "error") == []


def test_names_that_fit_no_members_are_none() -> None:
    """DeepSpeed's ZeRO puts one flat tensor in the place of a group's members, and leaves their names."""
    source, target = masked(), masked()
    for optimizer in (source, target):
        for group in optimizer.param_groups:
            group["params"] = [torch.nn.Parameter(torch.ones(4 * len(group["params"])))]
    assert load(stepped(source).state_dict(), target, "error") == []
    assert [s["exp_avg"].numel() for s in target.state.values()] == [4, 8]


def test_one_group_without_names_is_told_the_mask_that_takes_it() -> None:
    saved = stepped(torch.optim.AdamW([p for _, p in square("a", "b", "c")])).state_dict()
    refused(
        masked(),
        saved,
        "loaded state dict has a different number of parameter groups.",
        "found: group 0 (3 parameters)",
        "valid: group 'decay' (1 parameter), group 'no_decay' (2 parameters)",
        "fix: write optimizer/mask=all (mask='all' in Python) for one group, as the checkpoint has; "
        "its parameters have no names, by which a mask could split them",
    )


def load(saved: Any, target: Any, mode: str) -> list[str]:
    target.on_resume = mode
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        target.load_state_dict(saved)
    return [str(w.message) for w in caught]


def test_checkpoint_wins_and_warns() -> None:
    saved = stepped(wd.AdamW(groups(0.5), lr=0.1)).state_dict()
    target = wd.AdamW(groups(0.1), lr=0.2)
    (message,) = load(saved, target, "checkpoint")
    assert "the checkpoint's values are used" in message
    assert "group 'decay': lr (base_lr) is 0.1 in the checkpoint, 0.2 in the configuration" in message
    assert "group 'decay': weight_decay is 0.5 in the checkpoint, 0.1 in the configuration" in message
    assert "group 'no_decay': weight_decay" not in message
    assert [g["weight_decay"] for g in target.param_groups] == [0.5, 0.0]
    assert [(g["lr"], g["base_lr"]) for g in target.param_groups] == [(0.1, 0.1)] * 2


def test_config_wins_and_warns() -> None:
    source = wd.AdamW(groups(0.5), lr=0.1)
    for group in source.param_groups:
        group["lr"] = 0.05  # a schedule at half the peak
    saved = stepped(source).state_dict()
    target = wd.AdamW(groups(0.1), lr=0.2)
    (message,) = load(saved, target, "config")
    assert "the configured values are used" in message
    assert [g["weight_decay"] for g in target.param_groups] == [0.1, 0.0]
    assert [(g["lr"], g["base_lr"]) for g in target.param_groups] == [(0.1, 0.2)] * 2
    assert target.state_dict()["state"][0]["step"] == 1


NADAMW = wd.decoupled(torch.optim.NAdam)


@pytest.mark.parametrize(
    ("saved", "style", "target"),
    [
        (AdamL2, "l2", wd.AdamW),
        (wd.AdamW, "decoupled", AdamL2),
        (functools.partial(wd.AdamW, style="independent"), "independent", wd.AdamW),
        (functools.partial(SGDL2, momentum=0.9), "l2", functools.partial(wd.SGDW, momentum=0.9)),
        (functools.partial(NADAMW, style="l2"), "l2", NADAMW),
    ],
)
def test_on_request_the_configured_style_goes_on_with_the_saved_moments(saved: Any, style: str, target: Any) -> None:
    source = stepped(saved(params(), lr=0.1, weight_decay=0.2), steps=3)
    state = snapshot(source)
    switched, by_hand = (
        target([torch.nn.Parameter(w) for w in weights(source)], lr=0.1, weight_decay=0.5) for _ in "12"
    )
    configured = switched.param_groups[0]["style"]
    (message,) = load(copy.deepcopy(state), switched, "config")
    assert "the configured values are used" in message
    assert f"group 0: style {style!r}" in message
    assert f"with weight_decay 0.2 in the checkpoint, {configured!r} with 0.5 in the configuration" in message
    note = " (AdamL2 or SGDL2)" if style == "l2" else ""  # on_resume=checkpoint would refuse another style
    assert message.endswith(f"fix: write style={style!r} to continue that run{note}")
    undecided = ("params", "kahan")  # a stepped optimizer has decided on kahan=None
    assert {k: v for k, v in switched.param_groups[0].items() if k not in undecided} == {
        k: v for k, v in by_hand.param_groups[0].items() if k not in undecided
    }
    assert same(switched.state_dict()["state"], state["state"])

    for p, held in zip(by_hand.param_groups[0]["params"], state["state"].values(), strict=True):
        by_hand.state[p] = copy.deepcopy(held)
    assert same(weights(stepped(switched)), weights(stepped(by_hand)))
    assert not same(weights(switched), weights(stepped(source)))


def test_the_advice_is_right_for_each_difference() -> None:
    """on_resume=checkpoint would bring the betas back, but not another style."""
    saved = stepped(AdamL2(params(), lr=0.1, weight_decay=0.2, betas=(0.5, 0.9))).state_dict()
    (message,) = load(saved, wd.AdamW(params(), lr=0.1, weight_decay=0.1), "config")
    style, betas = message.partition("fix: write style='l2'")[2].split(" and ")
    assert style.startswith(" to continue that run")
    assert betas == "write on_resume=checkpoint to use the checkpoint's"
    plain = stepped(torch.optim.SGD(params(), lr=0.1, weight_decay=5e-4, momentum=0.9)).state_dict()
    (message,) = load(plain, wd.SGDW(params(), lr=0.1, weight_decay=0.1, momentum=0.9), "config")
    assert message.endswith("fix: write style='l2' and weight_decay=0.0005")  # no on_resume brings the penalty back


def test_every_setting_is_compared() -> None:
    saved = stepped(wd.AdamW(params(), lr=0.1, betas=(0.9, 0.95))).state_dict()
    words = "group 0: betas is (0.9, 0.95) in the checkpoint, (0.5, 0.9) in the configuration; group 0: eps is 1e-08"

    def changed(mode: str, **more: Any) -> Any:
        target = wd.AdamW(params(), lr=0.1, betas=(0.5, 0.9), eps=1e-3, **more)
        (message,) = load(copy.deepcopy(saved), target, mode)
        assert words in message
        return target.param_groups[0]

    assert (changed("checkpoint")["betas"], changed("config")["betas"]) == ((0.9, 0.95), (0.5, 0.9))
    assert (changed("checkpoint")["eps"], changed("config")["eps"]) == (1e-8, 1e-3)
    with pytest.raises(wd.CheckpointMismatchError, match=r"betas is \(0.9, 0.95\) in the checkpoint"):
        changed("error")
    with pytest.raises(wd.CheckpointMismatchError, match="amsgrad, whose maximum the run did not keep"):
        changed("config", amsgrad=True)
    sgd = stepped(wd.SGDW(params(), lr=0.1, momentum=0.9)).state_dict()
    target = wd.SGDW(params(), lr=0.1, momentum=0.5, nesterov=True)
    (message,) = load(sgd, target, "config")
    assert "momentum is 0.9 in the checkpoint, 0.5 in the configuration" in message
    assert (target.param_groups[0]["momentum"], target.param_groups[0]["nesterov"]) == (0.5, True)


def test_settings_that_a_schedule_drives_are_no_difference() -> None:
    def build() -> tuple[Any, Any]:
        optimizer = wd.AdamW(params(), lr=0.1)
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)

    source, schedule = build()
    stepped(source)
    schedule.step()
    assert source.param_groups[0]["betas"][0] != 0.95
    assert load(source.state_dict(), build()[0], "error") == []


def test_error_refuses_a_difference() -> None:
    saved = stepped(wd.AdamW(groups(0.5), lr=0.1)).state_dict()
    target = wd.AdamW(groups(0.1), lr=0.1)
    target.on_resume = "error"
    before = snapshot(target)
    with pytest.raises(wd.CheckpointMismatchError, match=r"weight_decay is 0.5 in the checkpoint, 0.1 in the conf"):
        target.load_state_dict(saved)
    assert same(snapshot(target), before)


@pytest.mark.parametrize("mode", ["checkpoint", "config", "error"])
def test_schedules_raise_no_false_alarm(mode: str) -> None:
    source = wd.AdamW(groups(0.5), lr=0.1)
    for group in source.param_groups:
        group["lr"], group["weight_decay"] = 0.003, group["weight_decay"] * 0.7
    target = wd.AdamW(groups(0.5), lr=0.1)
    assert load(stepped(source).state_dict(), target, mode) == []
    assert target.param_groups[0]["lr"] == 0.003
    assert target.param_groups[0]["weight_decay"] == 0.35


@pytest.mark.parametrize(
    ("plain", "settings"),
    [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adagrad, {}), (torch.optim.Adamax, {})],
)
def test_a_plain_penalty_is_not_read_as_decoupled_decay(plain: Any, settings: dict[str, Any]) -> None:
    saved = stepped(plain(params(), lr=0.1, weight_decay=5e-4, **settings)).state_dict()
    target = wd.decoupled(plain)(params(), lr=0.1, weight_decay=5e-3, **settings)
    (message,) = load(saved, target, "checkpoint")
    assert "weight_decay is an L2 penalty of 0.0005 in the checkpoint" in message
    assert target.param_groups[0]["weight_decay"] == 5e-3
    target.on_resume = "error"
    with pytest.raises(wd.CheckpointMismatchError, match=r"an L2 penalty of 0\.0005"):
        target.load_state_dict(saved)


def test_plain_states_of_decoupled_optimizers_are_read_as_such() -> None:
    def adafactor(**settings: Any) -> Any:
        return wd.decoupled(torch.optim.Adafactor)(params(), lr=0.1, weight_decay=0.1, **settings)

    saved = stepped(torch.optim.Adafactor(params(), lr=0.1, weight_decay=0.2)).state_dict()
    target = adafactor()
    (message,) = load(saved, target, "checkpoint")
    assert "weight_decay is 0.2 in the checkpoint, 0.1 in the configuration" in message
    assert target.param_groups[0]["weight_decay"] == 0.2
    refused(
        adafactor(style="independent"), saved, "found: style 'decoupled'", "style 'independent' in the configuration"
    )


@pytest.mark.parametrize("style", ["decoupled", "independent"])
def test_plain_states_without_any_decay_keep_the_configured(style: str) -> None:
    saved = stepped(torch.optim.Rprop(params(), lr=0.1)).state_dict()
    target = wd.decoupled(torch.optim.Rprop)(params(), lr=0.1, weight_decay=0.1, style=style)
    assert load(saved, target, "error") == []
    assert target.param_groups[0]["weight_decay"] == target.param_groups[0]["base_weight_decay"] == 0.1


def test_users_hooks_may_rename_before_the_check() -> None:
    saved = stepped(wd.AdamW(groups(), lr=0.1)).state_dict()
    saved["param_groups"][0]["param_names"] = ["old.w"]
    target = wd.AdamW(groups(), lr=0.1)

    def rename(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        state = copy.deepcopy(state)
        state["param_groups"][0]["param_names"] = ["w"]
        return state

    target.register_load_state_dict_pre_hook(rename)
    target.load_state_dict(saved)
    assert saved["param_groups"][0]["param_names"] == ["old.w"]
    assert target.param_groups[0]["param_names"] == ["w"]


@pytest.mark.parametrize("style", ["decoupled", "independent", "constant", "corrected", "l2"])
@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW])
def test_distributed_checkpoint_leaves_weights_alone(cls: Any, style: str) -> None:
    """It steps an empty optimizer once to make its state, at learning rate 0: constant decay must hold still too."""

    def build() -> tuple[torch.nn.Module, Any]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        named = [(n, p) for n, p in model.named_parameters()]
        extra = {"momentum": 0.9} if cls is wd.SGDW else {}
        gs = [{"params": named[:1], "name": "decay"}, {"params": named[1:], "name": "no_decay", "weight_decay": 0.0}]
        return model, cls(gs, lr=0.1, weight_decay=0.1, style=style, **extra)

    model, optimizer = build()
    before = weights(optimizer)
    get_optimizer_state_dict(model, optimizer)
    assert all(map(torch.equal, before, weights(optimizer)))

    model, optimizer = build()
    stepped(optimizer, 2)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    fresh_model, fresh = build()
    fresh_model.load_state_dict(model.state_dict())
    set_optimizer_state_dict(fresh_model, fresh, saved)
    assert all(map(torch.equal, weights(fresh), weights(optimizer)))
    stepped(fresh), stepped(optimizer)
    assert all(map(torch.equal, weights(fresh), weights(optimizer)))
