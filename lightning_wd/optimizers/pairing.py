"""Which saved group and member goes with which of the optimizer: by name where both sides have names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor

from lightning_wd.errors import CheckpointMismatchError, listed, warn
from lightning_wd.mask.module_tree import without_wrappers
from lightning_wd.optimizers.param_groups import group_label
from lightning_wd.optimizers.saved_state import REBUILD, VERSIONED, names_of, plain, refusal

__all__ = ["Difference", "Pair", "paired", "tell_of_positions"]


class Difference(NamedTuple):
    """A setting on which the checkpoint and the configuration differ."""

    line: str
    lost: str = ""  # why the checkpoint's side cannot be used; '' where it can
    fix: str = ""  # how to have the checkpoint's side again, where ``on_resume`` does not choose it


class Pair(NamedTuple):
    """A group of the optimizer beside the saved settings and members that it gets."""

    label: str
    mine: dict[str, Any]
    theirs: dict[str, Any]  # ``params`` are the keys of the saved states, in the order of mine
    differences: tuple[Difference, ...] = ()  # of what the pairing itself cannot keep


def paired(optimizer: Any, state_dict: dict[str, Any]) -> list[Pair]:
    """Pair each group with what was saved of it; refuse other groups or other parameters.

    Where both sides have names, they decide, whatever the order. A state of this package must then have the same
    groups; one of another optimizer may have the parameters in other groups.
    """
    own, saved = optimizer.param_groups, state_dict["param_groups"]
    homes = _homes(own, saved)
    if homes and not any("style" in group for group in saved):
        return _regrouped(optimizer, homes, state_dict)
    if homes:  # the groups in my order, the members by my names
        called = {home: name for name, home in homes.items()}
        saved = [
            {**group, "param_names": [called[_Home(i, key)] for key in group["params"]]}
            for i, group in enumerate(saved)
        ]
        order = [homes[group["param_names"][0]].group for group in own if group["param_names"][0] in homes]
        saved = [saved[i] for i in order] if sorted(order) == list(range(len(saved))) else saved
    _check_layout(optimizer, saved)
    pairs = [Pair(group_label(mine, i), mine, theirs) for i, (mine, theirs) in enumerate(zip(own, saved, strict=True))]
    return [pair._replace(theirs=_in_my_order(pair.mine, pair.theirs, homes)) for pair in pairs] if homes else pairs


class _Home(NamedTuple):
    """Where a state is saved: the index of its group, and its key."""

    group: int
    key: Any


def _homes(own: list[dict[str, Any]], saved: list[dict[str, Any]]) -> dict[str, _Home]:
    """Return where each name was saved; empty where a side has no names, or not one for each parameter.

    Wrappers' parts of a name do not count, nor does a prefix that all names have on one side alone: of the attribute
    whose parameters the optimizer was given.
    """
    mine, theirs = (
        {
            without_wrappers(name): _Home(index, key)
            for index, group in enumerate(groups)
            for name, key in zip(names_of(group) or (), group["params"], strict=False)
        }
        for groups in (own, saved)
    )
    if any(len(names) < sum(len(g["params"]) for g in groups) for names, groups in ((mine, own), (theirs, saved))):
        return {}
    given = {without_wrappers(name): name for group in own for name in group["param_names"]}
    return {given.get(name, name): home for name, home in _without_prefix(mine, theirs).items()}


def _without_prefix(mine: dict[str, _Home], theirs: dict[str, _Home]) -> dict[str, _Home]:
    """Return theirs under my names, where all names of one side have one prefix more."""
    first = next(iter(mine))
    for name in theirs if mine.keys() != theirs.keys() else ():
        added, dropped = first.removesuffix(f".{name}"), name.removesuffix(f".{first}")
        if added != first:
            renamed = {f"{added}.{n}": home for n, home in theirs.items()}
        else:
            renamed = {n.removeprefix(f"{dropped}."): home for n, home in theirs.items() if n.startswith(f"{dropped}.")}
        if mine.keys() == renamed.keys() and len(renamed) == len(theirs):
            return renamed
    return theirs


def _in_my_order(mine: dict[str, Any], theirs: dict[str, Any], homes: dict[str, _Home]) -> dict[str, Any]:
    """Return saved settings with the members of a group of the optimizer."""
    names = mine["param_names"]
    return {**theirs, "params": [homes[name].key for name in names], "param_names": names}


def _regrouped(optimizer: Any, homes: dict[str, _Home], state_dict: dict[str, Any]) -> list[Pair]:
    """Pair each group with the settings that its members had, in whatever groups another optimizer had them."""
    own, saved, state = optimizer.param_groups, state_dict["param_groups"], state_dict["state"]
    names = {name for group in own for name in group["param_names"]}
    lost = [name for group in own for name in group["param_names"] if name not in homes]
    new = [name for name, home in homes.items() if name not in names and state.get(home.key)]  # else never trained
    if lost or new:
        found, valid = listed(new or homes, 8), listed(lost or sorted(names), 8)
        raise refusal(optimizer, "it is of other parameters.", found=found, valid=valid, fix=REBUILD)
    decays = any(group.get("base_weight_decay") for group in own)
    pairs = []
    for index, mine in enumerate(own):
        label = group_label(mine, index)
        sources = [saved[i] for i in sorted({homes[name].group for name in mine["param_names"]})]
        theirs = {**sources[0], **({"name": mine["name"]} if "name" in mine else {})}
        differences = []
        for key in [key for key in theirs if key not in VERSIONED | {"params", "param_names", "name"}]:
            values = list({repr(plain(group.get(key))): group.get(key) for group in sources}.values())
            had = " and ".join(map(repr, values))
            spared = key == "weight_decay" and decays and not mine["base_weight_decay"] and values != [0]
            if spared and sum(len(group["params"]) for group in sources) > len(mine["params"]):
                theirs[key] = mine[key]
                line = (
                    f"{label}: {key} is {had} in the checkpoint; the mask leaves it out of the decay, at {mine[key]!r}"
                )
                differences.append(Difference(line, fix="write optimizer/mask=all to let it decay as before"))
            elif len(values) > 1:
                line = f"{label}: {key} is {had} in the checkpoint, {mine.get(key)!r} in the configuration"
                fix = "give these parameters groups of their own"
                differences.append(Difference(line, lost="one group has one value", fix=fix))
        pairs.append(Pair(label, mine, _in_my_order(mine, theirs, homes), tuple(differences)))
    return pairs


def _check_layout(optimizer: Any, saved: list[dict[str, Any]]) -> None:
    """Refuse other groups or other parameters than the optimizer has at the same positions."""
    own, fix = optimizer.param_groups, REBUILD
    style, theirs_style = (", ".join(sorted({str(g["style"]) for g in each if "style" in g})) for each in (own, saved))
    if theirs_style and theirs_style != style:  # `corrected` has a group for the output layer
        fix += f"; its decay style was {theirs_style} and is {style} here"
    outlines = {"found": _outline(saved), "valid": _outline(own), "fix": fix}
    if len(own) != len(saved):
        if len(saved) == 1 and len(saved[0]["params"]) == sum(len(group["params"]) for group in own):
            outlines["fix"] = "write optimizer/mask=all (mask='all' in Python) for one group, as the checkpoint has"
            if names_of(saved[0]) is None:
                outlines["fix"] += "; its parameters have no names, by which a mask could split them"
        raise refusal(optimizer, "loaded state dict has a different number of parameter groups.", **outlines)
    # A plan names groups by what rules set, and these settings are compared themselves.
    planned = getattr(optimizer, "decay_plan", None) is not None
    for index, (mine, theirs) in enumerate(zip(own, saved, strict=True)):
        label = group_label(mine, index)
        names, theirs_names = names_of(mine), names_of(theirs)
        same = planned and names is not None and sorted(names) == sorted(theirs_names or ())
        if "name" in mine and "name" in theirs and mine["name"] != theirs["name"] and not same:
            raise refusal(optimizer, f"group {index} has another name.", **outlines)
        if names is not None and theirs_names is not None and sorted(names) != sorted(theirs_names):
            lost = [name for name in names if name not in theirs_names]
            new = [name for name in theirs_names if name not in names]
            found, valid = listed(new or theirs_names, 8), listed(lost or names, 8)
            raise refusal(optimizer, f"{label} has other parameters.", found=found, valid=valid, fix=fix)
        if len(mine["params"]) != len(theirs["params"]):
            problem = f"loaded state dict contains a parameter group that doesn't match the size of {label}."
            raise refusal(optimizer, problem, **outlines)


def tell_of_positions(optimizer: Any, pairs: Iterable[Pair], state: dict[Any, Any]) -> None:
    """Warn where position alone decides which of several tensors of one shape gets which state."""
    alike: dict[tuple[int, ...], list[str]] = {}
    unnamed = set()
    for label, mine, theirs, _ in pairs:
        names = names_of(mine)
        unnamed |= {who for who, group in (("optimizer", mine), ("checkpoint", theirs)) if names_of(group) is None}
        for i, (p, key) in enumerate(zip(mine["params"], theirs["params"], strict=True)):
            held = state.get(key, {})
            if any(isinstance(value, Tensor) for name, value in held.items() if name != "step"):
                alike.setdefault(tuple(p.shape), []).append(names[i] if names else f"{label}[{i}]")
    alike = {shape: members for shape, members in alike.items() if len(members) > 1}
    if not unnamed or not alike:
        return
    who = "neither the checkpoint nor the optimizer has" if len(unnamed) > 1 else f"the {min(unnamed)} has no"
    problem = (
        f"{who} names of parameters, so {type(optimizer).__name__} takes the state by position only: "
        f"{sum(map(len, alike.values()))} tensors share their shape with another and cannot be told apart"
    )
    found = "; ".join(f"{listed(members)} of shape {shape}" for shape, members in list(alike.items())[:3])
    fix = (
        "check that the parameters have the order of the run that was saved; an optimizer built from "
        "named_parameters() saves names, and the order no longer matters"
    )
    if optimizer.on_resume == "error":
        fix += "; or write on_resume=checkpoint to take them in this order"
        raise CheckpointMismatchError(f"{problem}.", found=found, fix=fix)
    warn(f"{problem}.", found=found, fix=fix, stacklevel=3)


def _outline(groups: list[dict[str, Any]]) -> str:
    sizes = [len(group["params"]) for group in groups]
    labels = [group_label(group, i) for i, group in enumerate(groups)]
    return ", ".join(f"{label} ({n} parameter{'s' * (n != 1)})" for label, n in zip(labels, sizes, strict=True))
