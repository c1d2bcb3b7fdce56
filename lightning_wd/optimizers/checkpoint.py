"""Fits a saved state to this optimizer, or refuses it, before anything is loaded.

torch matches groups and members by position and size alone. It lets AdamW's state turn Adam into AdamW, lets reordered
groups swap their decay and reordered parameters their moments, and lets a checkpoint's decay replace the configured
one, all in silence. Here names match where both sides have them; a match by position is said.

Three things resume: the optimizer, the learning-rate schedule and the decay schedule. Each compares its own state with
its own settings, and :func:`settle` decides for all three whether the checkpoint or the configuration wins.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_wd.errors import CheckpointMismatchError, listed, warn
from lightning_wd.mask.module_tree import without_wrappers
from lightning_wd.optimizers.param_groups import configured_weight_decay, group_label, peak_lr

__all__ = ["ON_RESUME", "Difference", "carry_on", "fit_checkpoint", "settle"]

ON_RESUME = ("checkpoint", "config", "error")

# Settings that choose an implementation, or that older torch versions did not save: they do not identify an optimizer.
_VERSIONED = {"maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
_OURS = {"style", "base_lr", "cautious_wd", "kahan", "base_weight_decay", "weight_decay", "optimizer"}
_NOT_NEGATIVE = {"lr", "weight_decay", "base_lr", "base_weight_decay", "initial_lr", "max_lr", "eps", "momentum"}
_KINDS = {"l2": "an L2 penalty", "decoupled": "decoupled decay"}
_DAMAGED = "the checkpoint is damaged or was edited: load another one"
_REBUILD = "build the model, the mask and the optimizer as they were when the checkpoint was saved"


class Difference(NamedTuple):
    """A setting on which the checkpoint and the configuration differ."""

    line: str
    lost: str = ""  # why the checkpoint's side cannot be used; '' where it can
    fix: str = ""  # how to have the checkpoint's side again, where ``on_resume`` does not choose it


def settle(what: str, differences: Sequence[Difference], on_resume: str, *, choosable: bool = True) -> bool:
    """Decide whether the checkpoint or the configuration wins where they differ; return True for the configuration.

    ``checkpoint`` warns and uses the checkpoint's settings, or raises where one is lost; ``config`` warns and uses the
    configured ones; ``error`` raises. Without a difference nothing is said. An optimizer of another library has no
    ``on_resume`` to choose by: it is not ``choosable``, and the checkpoint wins.

    >>> settle("the schedule", [], "config")
    True
    >>> settle("the schedule", [Difference("warmup_steps is 10 in the checkpoint, 5 configured")], "error")
    Traceback (most recent call last):
    ...
    lightning_wd.errors.CheckpointMismatchError: the schedule: the checkpoint and the configuration differ.
      found: warmup_steps is 10 in the checkpoint, 5 configured
      fix: write on_resume=config to use the configured values, or write on_resume=checkpoint to use the checkpoint's
    """
    configured = on_resume == "config"
    if not differences:
        return configured
    problem = f"{what}: the checkpoint and the configuration differ"
    found = "; ".join(difference.line for difference in differences)
    lost = next((difference.lost for difference in differences if difference.lost), "")
    use_config = "write on_resume=config to use the configured values"
    if not choosable:
        use_config = "configure what the run had; or start a new run from its weights, to use the configured values"
    fixes = [difference.fix for difference in differences]
    choose = [] if all(fixes) else ["write on_resume=checkpoint to use the checkpoint's"]
    use_checkpoint = " and ".join([*dict.fromkeys(filter(None, fixes)), *choose])
    if not configured and (lost or on_resume == "error"):
        problem += f", and {lost}" if lost else ""
        raise CheckpointMismatchError(f"{problem}.", found=found, fix=f"{use_config}, or {use_checkpoint}")
    or_else = ", or ".join(dict.fromkeys([use_config, *filter(None, fixes)]))
    side, advice = ("configured", use_checkpoint) if configured else ("checkpoint's", or_else)
    warn(f"{problem}; the {side} values are used.", found=found, fix=advice, stacklevel=3)
    return configured


def carry_on(what: str, saved: float, steps: float, on_resume: str) -> None:
    """Say that a schedule of ``saved`` steps is carried on to the end of a run of ``steps``; ``error`` refuses that."""
    line = f"total_steps is {saved} in the checkpoint, {steps} in this run"
    fix = "train with the max_epochs or max_steps of the saved run"
    if on_resume == "error":
        fix += ", or write on_resume=checkpoint to carry it on"
        raise CheckpointMismatchError(f"{what} of the checkpoint ends elsewhere than this run.", found=line, fix=fix)
    warn(
        f"{what} is carried on: it ends where this run ends, not where the saved one did.",
        found=line,
        fix=f"{fix} if that is not meant",
    )


class _Pair(NamedTuple):
    """A group of the optimizer beside the saved settings and members that it gets."""

    label: str
    mine: dict[str, Any]
    theirs: dict[str, Any]  # ``params`` are the keys of the saved states, in the order of mine
    differences: tuple[Difference, ...] = ()  # of what the pairing itself cannot keep


def fit_checkpoint(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict that is safe to load, with the settings it lacks filled in from the optimizer's groups.

    Neither argument is changed.

    Raises:
        CheckpointMismatchError: another optimizer, group or parameter; another decay style, or a learning-rate schedule
            on one side only, unless ``on_resume`` is "config"; or a difference under "error".
    """
    _check_structure(optimizer, state_dict)
    _check_family(optimizer, state_dict)
    pairs = _paired(optimizer, state_dict)
    _check_names(optimizer, pairs)
    _check_values(optimizer, pairs)
    switched = [_style_difference(optimizer, pair) for pair in pairs]
    _check_states(optimizer, pairs, state_dict["state"])
    _tell_of_positions(optimizer, pairs, state_dict["state"])
    rescheduled = _schedule_difference(optimizer, pairs[0])
    groups, differences = [], [rescheduled]
    for pair, switch in zip(pairs, switched, strict=True):
        _, mine, theirs, unkept = pair
        filled = {**mine, **theirs, "base_lr": peak_lr(theirs)}
        if getattr(optimizer, "scheduled", None) is False and "initial_lr" not in theirs:
            filled.pop("initial_lr", None)  # a learning-rate finder's
        if "weight_decay" in theirs:
            filled["base_weight_decay"] = configured_weight_decay(theirs)
        if switch:  # the saved number is in another unit, so it cannot replace the configured one
            filled.update({key: mine[key] for key in ("style", "weight_decay", "base_weight_decay")})
        keys = _compared(optimizer, theirs)
        found = _differences(pair, filled, keys)
        if found and optimizer.on_resume == "config":
            _keep_configured(optimizer, pair, filled, keys)
        if rescheduled:  # a learning rate within a discarded schedule is meaningless
            filled["lr"] = mine["lr"]
        differences += [switch, *unkept, *found]
        groups.append(filled)
    settle(f"the settings of {type(optimizer).__name__}", [*filter(None, differences)], optimizer.on_resume)
    return {**state_dict, "param_groups": groups}


def _refuse(optimizer: Any, problem: str, *, found: str, fix: str, valid: str | None = None) -> NoReturn:
    problem = f"the checkpoint does not fit this {type(optimizer).__name__}: {problem}"
    raise CheckpointMismatchError(problem, found=found, valid=valid, fix=fix)


# --- is it a state of such an optimizer? --------------------------------------------------------------------------


def _check_structure(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """Refuse what is not the state of any optimizer."""
    groups = state_dict.get("param_groups")
    if not (isinstance(state_dict.get("state"), dict) and isinstance(groups, list) and all(map(_is_group, groups))):
        found = ", ".join(f"{key}: {type(value).__name__}" for key, value in state_dict.items()) or "nothing"
        valid = "state (a dict) and param_groups (a list of dicts, each with lists of params and of their names)"
        _refuse(optimizer, "it is not the state of an optimizer.", found=found, valid=valid, fix=_DAMAGED)


def _is_group(group: Any) -> bool:
    if not isinstance(group, dict) or not isinstance(group.get("params"), list):
        return False
    names = group.get("param_names", [])
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _names(group: dict[str, Any]) -> list[str] | None:
    """Return the names of a group's members; None where it has not one for each, as after DeepSpeed flattens it."""
    names: list[str] | None = group.get("param_names")
    return names if names is not None and len(names) == len(group["params"]) else None


def _check_family(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """Refuse the state of another optimizer, recognised by its group settings and state names."""
    fix = "load it into the optimizer that saved it, or start this one without its state"
    expected = set(optimizer.defaults) - _VERSIONED - _OURS
    classes = [cls for cls in vars(torch.optim).values() if isinstance(cls, type) and issubclass(cls, Optimizer)]
    foreign = {name for cls in classes for name in inspect.signature(cls).parameters}
    foreign -= set(optimizer.defaults) | _VERSIONED | _OURS | {"params"}
    for index, group in enumerate(state_dict["param_groups"]):
        missing, extra = sorted(expected - set(group)), sorted(foreign & set(group))
        if missing or extra:
            problem = f"{group_label(group, index)} is of another optimizer."
            found = ", ".join([*(f"no {key}" for key in missing), *extra]) + _of_whom(group, classes)
            valid = f"{', '.join(sorted(expected))}, of {type(optimizer).__name__}"
            _refuse(optimizer, problem, found=found, valid=valid, fix=fix)
    known = optimizer.state_keys
    for key, held in state_dict["state"].items():
        if known is not None and isinstance(held, dict) and not known.issuperset(held):
            problem = f"the state of parameter {key!r} is of another optimizer."
            found = ", ".join(sorted(map(str, set(held) - known)))
            _refuse(optimizer, problem, found=found, valid=", ".join(sorted(known)), fix=fix)


def _check_names(optimizer: Any, pairs: Iterable[_Pair]) -> None:
    """Refuse groups that an optimizer of another name has stepped. A name is compared, never imported."""
    for label, mine, theirs, _ in pairs:
        saved, own = theirs.get("optimizer", mine.get("optimizer")), mine.get("optimizer")
        if saved != own:
            fix = f"configure {saved}, or start this optimizer without its state"
            _refuse(optimizer, f"{label} was trained by another optimizer.", found=str(saved), valid=own, fix=fix)


def _of_whom(group: dict[str, Any], classes: list[type[Optimizer]]) -> str:
    """Return which of torch's optimizers have the most settings of a saved group, all of theirs in it."""
    own = {cls.__name__: inspect.signature(cls).parameters.keys() - _VERSIONED - _OURS - {"params"} for cls in classes}
    fitting = {name: len(settings) for name, settings in own.items() if settings <= group.keys()}
    most = [name for name, count in fitting.items() if count == max(fitting.values()) > 1]  # all have an lr
    return f", as of {' or '.join(sorted(most))}" if most else ""


def _paired(optimizer: Any, state_dict: dict[str, Any]) -> list[_Pair]:
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
    pairs = [_Pair(group_label(mine, i), mine, theirs) for i, (mine, theirs) in enumerate(zip(own, saved, strict=True))]
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
            for name, key in zip(_names(group) or (), group["params"], strict=False)
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


def _regrouped(optimizer: Any, homes: dict[str, _Home], state_dict: dict[str, Any]) -> list[_Pair]:
    """Pair each group with the settings that its members had, in whatever groups another optimizer had them."""
    own, saved, state = optimizer.param_groups, state_dict["param_groups"], state_dict["state"]
    names = {name for group in own for name in group["param_names"]}
    lost = [name for group in own for name in group["param_names"] if name not in homes]
    new = [name for name, home in homes.items() if name not in names and state.get(home.key)]  # else never trained
    if lost or new:
        found, valid = listed(new or homes, 8), listed(lost or sorted(names), 8)
        _refuse(optimizer, "it is of other parameters.", found=found, valid=valid, fix=_REBUILD)
    decays = any(group.get("base_weight_decay") for group in own)
    pairs = []
    for index, mine in enumerate(own):
        label = group_label(mine, index)
        sources = [saved[i] for i in sorted({homes[name].group for name in mine["param_names"]})]
        theirs = {**sources[0], **({"name": mine["name"]} if "name" in mine else {})}
        differences = []
        for key in [key for key in theirs if key not in _VERSIONED | {"params", "param_names", "name"}]:
            values = list({repr(_plain(group.get(key))): group.get(key) for group in sources}.values())
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
        pairs.append(_Pair(label, mine, _in_my_order(mine, theirs, homes), tuple(differences)))
    return pairs


def _check_layout(optimizer: Any, saved: list[dict[str, Any]]) -> None:
    """Refuse other groups or other parameters than the optimizer has at the same positions."""
    own, fix = optimizer.param_groups, _REBUILD
    style, theirs_style = (", ".join(sorted({str(g["style"]) for g in each if "style" in g})) for each in (own, saved))
    if theirs_style and theirs_style != style:  # `corrected` has a group for the output layer
        fix += f"; its decay style was {theirs_style} and is {style} here"
    outlines = {"found": _outline(saved), "valid": _outline(own), "fix": fix}
    if len(own) != len(saved):
        if len(saved) == 1 and len(saved[0]["params"]) == sum(len(group["params"]) for group in own):
            outlines["fix"] = "write optimizer/mask=all (mask='all' in Python) for one group, as the checkpoint has"
            if _names(saved[0]) is None:
                outlines["fix"] += "; its parameters have no names, by which a mask could split them"
        _refuse(optimizer, "loaded state dict has a different number of parameter groups.", **outlines)
    for index, (mine, theirs) in enumerate(zip(own, saved, strict=True)):
        label = group_label(mine, index)
        if "name" in mine and "name" in theirs and mine["name"] != theirs["name"]:
            _refuse(optimizer, f"group {index} has another name.", **outlines)
        names, theirs_names = _names(mine), _names(theirs)
        if names is not None and theirs_names is not None and sorted(names) != sorted(theirs_names):
            lost = [name for name in names if name not in theirs_names]
            new = [name for name in theirs_names if name not in names]
            found, valid = listed(new or theirs_names, 8), listed(lost or names, 8)
            _refuse(optimizer, f"{label} has other parameters.", found=found, valid=valid, fix=fix)
        if len(mine["params"]) != len(theirs["params"]):
            problem = f"loaded state dict contains a parameter group that doesn't match the size of {label}."
            _refuse(optimizer, problem, **outlines)


def _tell_of_positions(optimizer: Any, pairs: Iterable[_Pair], state: dict[Any, Any]) -> None:
    """Warn where position alone decides which of several tensors of one shape gets which state."""
    alike: dict[tuple[int, ...], list[str]] = {}
    unnamed = set()
    for label, mine, theirs, _ in pairs:
        names = _names(mine)
        unnamed |= {who for who, group in (("optimizer", mine), ("checkpoint", theirs)) if _names(group) is None}
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


def _check_values(optimizer: Any, pairs: Iterable[_Pair]) -> None:
    """Refuse settings that no optimizer saves: torch loads them, and fails or blows up at its next step."""
    for label, mine, theirs, _ in pairs:
        for key, value in theirs.items():
            like = mine.get(key, 0.0 if key in _NOT_NEGATIVE else None)
            if key not in ("params", "name", "param_names") and not _is_like(key, value, like):
                problem, valid = f"{key} of {label} has a value that no optimizer saves.", f"a value like {like!r}"
                _refuse(optimizer, problem, found=f"{key}={value!r}", valid=valid, fix=_DAMAGED)


def _is_like(key: str, value: Any, like: Any) -> bool:
    """Whether a saved setting is of the kind of the optimizer's own, and in the range that any optimizer takes."""
    if type(value) is type(like) and not isinstance(value, Tensor) and value == like:
        return True
    if key in _VERSIONED:
        return isinstance(value, bool) or (value is None and key in ("foreach", "fused"))
    if isinstance(like, (bool, str)):
        return isinstance(value, type(like))
    if isinstance(like, (tuple, list)):
        same_length = isinstance(value, (tuple, list)) and len(value) == len(like)
        return same_length and all(_is_like(key, one, other) for one, other in zip(value, like, strict=True))
    if isinstance(like, (int, float, Tensor)):
        number = _plain(value)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            return False
        return 0 <= number < 1 if key == "betas" else number >= 0 or key not in _NOT_NEGATIVE
    return True


def _check_states(optimizer: Any, pairs: Iterable[_Pair], state: dict[Any, Any]) -> None:
    """Refuse states that are not whole or of another shape: torch would load them and then fail to use them."""
    if optimizer.state_keys is None:
        return
    valid = ", ".join(sorted(optimizer.state_keys))
    for label, mine, theirs, _ in pairs:
        names = _names(mine) or range(len(mine["params"]))
        for own_name, p, key in zip(names, mine["params"], theirs["params"], strict=True):
            held, where = state.get(key, {}), f"parameter {own_name!r} in {label}"
            if wrong := _fault(held, theirs):
                problem = f"the state of {where} is not one that an optimizer saves."
                _refuse(optimizer, problem, found=wrong, valid=valid, fix=_DAMAGED)
            for name, value in held.items():
                if isinstance(value, Tensor) and name != "step" and value.shape != p.shape:
                    found, shape = str(tuple(value.shape)), str(tuple(p.shape))
                    _refuse(optimizer, f"{name} of {where} has another shape.", found=found, valid=shape, fix=_REBUILD)


def _fault(held: Any, group: dict[str, Any]) -> str:
    """Return what makes a parameter's state unusable in its group, or ''; it may be absent as a whole."""
    if not isinstance(held, dict):
        return "no dict"
    needed = ["step", "exp_avg", "exp_avg_sq"] if {"exp_avg", "exp_avg_sq"} & set(held) else []
    needed += ["max_exp_avg_sq"] if held and group.get("amsgrad") else []
    lacking = [f"no {name}" for name in needed if name not in held]
    return ", ".join(lacking) or next((f"{k}={value!r}" for k, value in held.items() if not _is_state(k, value)), "")


def _is_state(name: str, value: Any) -> bool:
    if name == "step":  # a number before torch 1.12
        return _is_like(name, value, 0.0) and value >= 0
    return isinstance(value, Tensor) or (name == "momentum_buffer" and value is None)


# --- where do the settings differ? --------------------------------------------------------------------------------


def _style_difference(optimizer: Any, pair: _Pair) -> Difference | None:
    """Return a difference where the saved group had another decay style and the configured one holds, else refuse it.

    The configured style wins under ``on_resume="config"``, or when the state names no style.
    """
    label, mine, theirs, _ = pair
    configured, style = mine["style"], theirs.get("style")
    if style is None and "decoupled_weight_decay" in theirs:
        style = "decoupled" if theirs["decoupled_weight_decay"] else "l2"
    if style is None and optimizer.plain_style == "l2":
        if configured == "l2" or not theirs.get("weight_decay"):
            return None
        return Difference(
            f"{label}: weight_decay is an L2 penalty of {theirs['weight_decay']!r} in the checkpoint of a plain "
            f"optimizer; style {configured!r} keeps {mine['weight_decay']!r}",
            fix=f"write style='l2' and weight_decay={theirs['weight_decay']!r}",
        )
    style = style or optimizer.plain_style
    if style == configured or (style is None and configured in _KINDS):
        return None
    if style is None:
        found, old = "a state of torch.optim.Adam or AdamW before torch 2.7, so style 'l2' or 'decoupled'", ""
    else:
        found = f"style {style!r}" + (f" ({_KINDS[style]})" if style in _KINDS else "")
        old = f"write style={style!r} to continue that run{' (AdamL2 or SGDL2)' * (style == 'l2')}"
    if optimizer.on_resume == "config":
        amounts = f"{theirs.get('weight_decay')!r} in the checkpoint, {configured!r} with {mine['weight_decay']!r}"
        line = f"{label}: {found} with weight_decay {amounts} in the configuration"
        return Difference(line, fix=old or "write the style that the run had")
    fix = "to switch on purpose, write on_resume=config, with weight_decay from lightning_wd.convert; the moments stay"
    fix = f"{old}; {fix}" if old else fix
    problem = f"{label} was trained with another decay style."
    _refuse(optimizer, problem, found=f"{found} in the checkpoint, style {configured!r} in the configuration", fix=fix)


def _schedule_difference(optimizer: Any, pair: _Pair) -> Difference | None:
    """Return a difference where one side alone has a learning-rate schedule: Lightning would drop or start it silently.

    Schedulers leave ``initial_lr`` in a saved group. A schedule compares its own settings when it loads its state. Only
    :func:`lightning_wd.configure_optimizers` says whether its optimizer is ``scheduled``.
    """
    here, there = getattr(optimizer, "scheduled", None), "initial_lr" in pair.theirs
    if here in (None, there) or "base_lr" not in pair.theirs or (not here and "initial_lr" in pair.mine):
        return None
    ours, theirs = (("no lr_scheduler", "an lr_scheduler")[side] for side in (here, there))
    found = f"{theirs} in the checkpoint, {ours} in the configuration"
    if optimizer.on_resume == "config":
        return Difference(found, fix="write lr_scheduler as it was")
    fix = "write lr_scheduler as it was, or on_resume=config to start with the configured learning rate"
    _refuse(optimizer, f"the run had {theirs}.", found=found, fix=fix)


def _compared(optimizer: Any, saved: dict[str, Any]) -> list[str]:
    """Return the settings that are compared: the optimizer's own, except what a schedule of the saved run drives."""
    driven = {"momentum", "betas"} if "max_momentum" in saved else set()
    own = [key for key in optimizer.defaults if key not in _VERSIONED | _OURS | driven | {"lr"}]
    return ["base_lr", "base_weight_decay", "cautious_wd", "kahan", *own]


def _differences(pair: _Pair, saved: dict[str, Any], keys: list[str]) -> list[Difference]:
    """Return the configured settings that differ."""
    shown = {"base_lr": "lr (base_lr)", "base_weight_decay": "weight_decay"}
    label, mine, *_ = pair
    line = "{}: {} is {!r} in the checkpoint, {!r} in the configuration"
    return [
        Difference(line.format(label, shown.get(key, key), saved[key], mine[key]))
        for key in keys
        if key in mine and key in saved and _plain(mine[key]) != _plain(saved[key])
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _keep_configured(optimizer: Any, pair: _Pair, filled: dict[str, Any], keys: list[str]) -> None:
    """Put the configured settings into a loaded group; its learning rate stays at its place in the schedule."""
    label, mine, *_ = pair
    if mine.get("amsgrad") and not filled.get("amsgrad"):
        problem = f"{label} has amsgrad, whose maximum the run did not keep."
        fix = "write amsgrad=False to continue that run"
        _refuse(optimizer, problem, found="amsgrad=False", valid="amsgrad=True", fix=fix)
    peak = filled["base_lr"]
    filled["lr"] = mine["base_lr"] * (filled["lr"] / peak) if peak else mine["lr"]
    filled.update({key: mine[key] for key in (*keys, "initial_lr", "weight_decay") if key in mine})
