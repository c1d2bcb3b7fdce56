"""Does a saved optimizer state belong to this optimizer? Checked in full before anything is written.

torch matches groups by position and size alone. It lets AdamW's state turn Adam into AdamW, lets reordered groups swap
their decay, and lets a checkpoint's decay replace the configured one, all without a word.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_wd.errors import CheckpointMismatchError, explain

__all__ = ["NO_SCHEDULE", "fit_checkpoint"]

NO_SCHEDULE = "none"  # a group's `lr_scheduler` where the rate is constant

# Settings that choose an implementation, or that older torch versions did not save: no mark of an optimizer's identity.
_VERSIONED = {"maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
_OURS = {"style", "base_lr", "cautious", "kahan", "base_weight_decay", "weight_decay"}
_PLAIN = {True: "decoupled", False: "l2"}  # the style of plain torch states, by their decoupled_weight_decay
_NOT_NEGATIVE = {"lr", "weight_decay", "base_lr", "base_weight_decay", "initial_lr", "max_lr", "eps", "momentum"}
_KINDS = {"l2": "an L2 penalty", "decoupled": "decoupled decay"}


def fit_checkpoint(
    optimizer: torch.optim.Optimizer,
    state_dict: dict[str, Any],
    *,
    on_resume: str,
    state_keys: frozenset[str] | None,
    plain_style: str | None,
    rates_restored_by: str = "",
) -> dict[str, Any]:
    """Return a state dict that is safe to load, with the settings it lacks filled in from the optimizer's groups.

    Args:
        optimizer: the optimizer that loads; it is not changed.
        state_dict: what it is asked to load; it is not changed.
        on_resume: ``checkpoint``, ``config`` or ``error``: what holds where settings differ.
        state_keys: names of the optimizer's state tensors, or None where they are not known.
        plain_style: what a state that names no style was trained with, or None where that is not known.
        rates_restored_by: the configured schedule, if it brings the checkpoint's learning rates back whatever is said.

    Raises:
        CheckpointMismatchError: another optimizer, group or parameter; another decay style or class of learning-rate
            schedule, unless ``on_resume`` is "config"; or a difference under "error".
    """
    own = optimizer.param_groups
    owner = type(optimizer).__name__
    _check_structure(owner, state_dict)
    saved = state_dict["param_groups"]
    _check_family(owner, optimizer, state_dict, state_keys)
    _check_members(owner, own, saved)
    _check_values(owner, own, saved)
    switched = [
        _style_difference(owner, index, mine, theirs, plain_style, on_resume)
        for index, (mine, theirs) in enumerate(_pairs(own, saved))
    ]
    _check_states(owner, own, saved, state_dict["state"], state_keys)

    groups, differences = [], _schedule_differences(owner, own, saved, on_resume)
    rescheduled = bool(differences) and on_resume == "config"
    for index, (mine, theirs) in enumerate(_pairs(own, saved)):
        filled = {**{key: value for key, value in mine.items() if key != "params"}, **theirs}
        filled["base_lr"] = _peak(theirs)
        if "weight_decay" in theirs:
            filled["base_weight_decay"] = theirs.get("base_weight_decay", theirs["weight_decay"])
        if switched[index]:  # the number is in another unit, so it cannot win over the configured one
            filled.update({key: mine[key] for key in ("style", "weight_decay", "base_weight_decay")})
        keys = _settings_of(optimizer, theirs)
        found = _differences(mine, filled, keys, _label(mine, index))
        if on_resume == "config" and rates_restored_by and (rescheduled or mine["base_lr"] != filled["base_lr"]):
            _refuse(
                owner,
                "on_resume=config cannot replace the learning rates that its schedule restores.",
                found=f"{rates_restored_by}, " + "; ".join([*differences, *found]),
                valid="the checkpoint's learning rates and schedule",
                fix="use a schedule of the pack (lr_scheduler=warmup_cosine, ...), or on_resume=checkpoint",
            )
        if found and on_resume == "config":
            _keep_configured(owner, mine, filled, keys, _label(mine, index))
        if rescheduled and "lr_scheduler" in mine:  # the point of a schedule that is gone says nothing
            filled["lr"], filled["lr_scheduler"] = mine["lr"], mine["lr_scheduler"]
        differences += [switched[index], *found] if switched[index] else found
        groups.append(filled)
    if differences:
        _report(owner, differences, on_resume)
    return {**state_dict, "param_groups": groups}


def _pairs(own: list[dict[str, Any]], saved: list[dict[str, Any]]) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    return zip(own, saved, strict=True)


def _label(group: dict[str, Any], index: int) -> str:
    return f"group {group['name']!r}" if "name" in group else f"group {index}"


def _refuse(owner: str, problem: str, *, found: str, valid: str, fix: str) -> None:
    raise CheckpointMismatchError(
        explain(f"the checkpoint does not fit this {owner}: {problem}", found=found, valid=valid, fix=fix)
    )


def _check_structure(owner: str, state_dict: dict[str, Any]) -> None:
    """Refuse what is no state of an optimizer at all."""
    groups = state_dict.get("param_groups")
    whole = isinstance(state_dict.get("state"), dict) and isinstance(groups, list) and all(map(_is_group, groups))
    if not whole:
        _refuse(
            owner,
            "it is no state of an optimizer.",
            found=", ".join(f"{key}: {type(value).__name__}" for key, value in state_dict.items()) or "nothing",
            valid="state (a dict) and param_groups (a list of dicts, each with lists of params and of their names)",
            fix="the checkpoint is damaged or was edited: load another one",
        )


def _is_group(group: Any) -> bool:
    if not isinstance(group, dict) or not isinstance(group.get("params"), list):
        return False
    names = group.get("param_names", [])
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _check_family(
    owner: str, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any], state_keys: frozenset[str] | None
) -> None:
    """Refuse the state of another optimizer, told by the settings of its groups and the names in its state."""
    expected = set(optimizer.defaults) - _VERSIONED - _OURS
    foreign = {
        name
        for cls in vars(torch.optim).values()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
        for name in inspect.signature(cls).parameters
    }
    foreign -= set(optimizer.defaults) | _VERSIONED | _OURS | {"params"}
    for index, group in enumerate(state_dict["param_groups"]):
        missing, extra = sorted(expected - set(group)), sorted(foreign & set(group))
        if missing or extra:
            _refuse(
                owner,
                f"{_label(group, index)} is of another optimizer.",
                found=", ".join([*(f"no {key}" for key in missing), *extra]),
                valid=", ".join(sorted(expected)),
                fix="load it into the optimizer that saved it, or start this one without its state",
            )
    if state_keys is None:
        return
    for key, state in state_dict["state"].items():
        unknown = sorted(set(state) - state_keys) if isinstance(state, dict) else []
        if unknown:
            _refuse(
                owner,
                f"the state of parameter {key!r} is of another optimizer.",
                found=", ".join(map(str, unknown)),
                valid=", ".join(sorted(state_keys)),
                fix="load it into the optimizer that saved it, or start this one without its state",
            )


def _check_members(owner: str, own: list[dict[str, Any]], saved: list[dict[str, Any]]) -> None:
    """Refuse other groups or other parameters: by name where both sides have names, else by number."""
    fix = "build the model, the mask and the optimizer as they were when the checkpoint was saved"
    style, theirs_style = (", ".join(sorted({str(g["style"]) for g in each if "style" in g})) for each in (own, saved))
    if theirs_style and theirs_style != style:  # `corrected` has a group for the output layer
        fix += f"; its decay style was {theirs_style} and is {style} here"
    if len(own) != len(saved):
        _refuse(
            owner,
            "loaded state dict has a different number of parameter groups.",
            found=_outline(saved),
            valid=_outline(own),
            fix=fix,
        )
    for index, (mine, theirs) in enumerate(_pairs(own, saved)):
        if "name" in mine and "name" in theirs and mine["name"] != theirs["name"]:
            _refuse(
                owner,
                f"group {index} has another name.",
                found=_outline(saved),
                valid=_outline(own),
                fix=fix,
            )
    for index, (mine, theirs) in enumerate(_pairs(own, saved)):
        names, theirs_names = mine.get("param_names"), theirs.get("param_names")
        if names is not None and theirs_names is not None and names != theirs_names:
            lost, new = _without(names, theirs_names), _without(theirs_names, names)
            _refuse(
                owner,
                f"{_label(mine, index)} has other parameters."
                if lost or new
                else f"{_label(mine, index)} has the same parameters in another order.",
                found=_listed(new or theirs_names),
                valid=_listed(lost or names),
                fix=fix,
            )
        if len(mine["params"]) != len(theirs["params"]):
            _refuse(
                owner,
                f"loaded state dict contains a parameter group that doesn't match the size of {_label(mine, index)}.",
                found=_outline(saved),
                valid=_outline(own),
                fix=fix,
            )


def _check_values(owner: str, own: list[dict[str, Any]], saved: list[dict[str, Any]]) -> None:
    """Refuse settings that no optimizer saves: torch loads them, and fails or blows up at its next step."""
    for index, (mine, theirs) in enumerate(_pairs(own, saved)):
        for key, value in theirs.items():
            like = mine.get(key, 0.0 if key in _NOT_NEGATIVE else None)
            if key not in ("params", "name", "param_names") and not _is_like(key, value, like):
                _refuse(
                    owner,
                    f"{key} of {_label(mine, index)} has a value that no optimizer saves.",
                    found=f"{key}={value!r}",
                    valid=f"what can stand for {like!r}",
                    fix="the checkpoint is damaged or was edited: load another one",
                )


def _is_like(key: str, value: Any, like: Any) -> bool:
    """Whether a saved setting is of the kind of the optimizer's own, and in the range that any optimizer takes."""
    if key in _VERSIONED:
        return isinstance(value, bool) or (value is None and key in ("foreach", "fused"))
    if isinstance(like, (bool, str)):
        return isinstance(value, type(like))
    if isinstance(like, (tuple, list)):
        same_length = isinstance(value, (tuple, list)) and len(value) == len(like)
        return same_length and all(_is_like(key, one, other) for one, other in zip(value, like, strict=True))
    if isinstance(like, (int, float, Tensor)):
        number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            return False
        return 0 <= number < 1 if key == "betas" else number >= 0 or key not in _NOT_NEGATIVE
    return True


def _style_difference(
    owner: str, index: int, mine: dict[str, Any], theirs: dict[str, Any], plain_style: str | None, on_resume: str
) -> str:
    """Return a line where the saved group had another decay style and the configured one holds; refuse it elsewhere.

    It holds on request, by ``on_resume="config"``, and over a plain optimizer whose state names no style.
    """
    label, configured = _label(mine, index), mine["style"]
    style = theirs.get("style")
    if style is None and "decoupled_weight_decay" in theirs:
        style = _PLAIN[bool(theirs["decoupled_weight_decay"])]
    if style is None and plain_style == "l2":
        if configured == "l2" or not theirs.get("weight_decay"):
            return ""
        return (
            f"{label}: weight_decay is an L2 penalty of {theirs['weight_decay']!r} in the checkpoint of a plain "
            f"optimizer; style {configured!r} keeps {mine['weight_decay']!r}"
        )
    style = plain_style if style is None else style
    if style == configured or (style is None and configured in _KINDS):
        return ""
    if style is None:  # Adam or AdamW before torch 2.7: it was one of two styles
        found = "a state of torch.optim.Adam or AdamW before torch 2.7, so style 'l2' or 'decoupled'"
        go_on = ""
    else:
        found = f"style {style!r}" + (f" ({_KINDS[style]})" if style in _KINDS else "")
        go_on = f"write style={style!r} to continue that run" + " (AdamL2 or SGDL2)" * (style == "l2") + "; "
    if on_resume == "config":
        amounts = f"{theirs.get('weight_decay')!r} in the checkpoint, {configured!r} with {mine['weight_decay']!r}"
        return f"{label}: {found} with weight_decay {amounts} in the configuration"
    raise CheckpointMismatchError(
        explain(
            f"the checkpoint does not fit this {owner}: {label} was trained with another decay style.",
            found=found,
            valid=f"style {configured!r}",
            fix=f"{go_on}to switch on purpose, write on_resume=config, with weight_decay converted by "
            "lightning_wd.convert: the configured style then goes on with the saved moments",
        )
    )


def _check_states(
    owner: str,
    own: list[dict[str, Any]],
    saved: list[dict[str, Any]],
    state: dict[Any, Any],
    state_keys: frozenset[str] | None,
) -> None:
    """Refuse states that are not whole or of another shape: torch would load them and then fail to use them."""
    if state_keys is None:
        return
    for index, (mine, theirs) in enumerate(_pairs(own, saved)):
        names = mine.get("param_names")
        for position, (p, key) in enumerate(zip(mine["params"], theirs["params"], strict=True)):
            held = state.get(key, {})
            where = f"parameter {names[position] if names else position!r} in {_label(mine, index)}"
            wrong = _missing(held, theirs) if isinstance(held, dict) else "no dict"
            wrong = wrong or next(
                (f"{name}={value!r}" for name, value in held.items() if not _is_state(name, value)), ""
            )
            if wrong:
                _refuse(
                    owner,
                    f"the state of {where} is none that an optimizer saves.",
                    found=wrong,
                    valid=", ".join(sorted(state_keys)),
                    fix="the checkpoint is damaged or was edited: load another one",
                )
            for name, value in held.items():
                if isinstance(value, Tensor) and name != "step" and value.shape != p.shape:
                    _refuse(
                        owner,
                        f"{name} of {where} has another shape.",
                        found=str(tuple(value.shape)),
                        valid=str(tuple(p.shape)),
                        fix="build the model as it was when the checkpoint was saved",
                    )


def _missing(held: dict[str, Any], group: dict[str, Any]) -> str:
    """Return what a state that is there lacks, for the settings of its group; a state may be absent as a whole."""
    needed = ["step", "exp_avg", "exp_avg_sq"] if {"exp_avg", "exp_avg_sq"} & set(held) else []
    needed += ["max_exp_avg_sq"] if held and group.get("amsgrad") else []
    return ", ".join(f"no {name}" for name in needed if name not in held)


def _is_state(name: str, value: Any) -> bool:
    if name == "step":  # a number before torch 1.12
        return _is_like(name, value, 0.0) and value >= 0
    return isinstance(value, Tensor) or (name == "momentum_buffer" and value is None)


def _schedule_differences(
    owner: str, own: list[dict[str, Any]], saved: list[dict[str, Any]], on_resume: str
) -> list[str]:
    """Return a line where the learning-rate schedules differ, which Lightning restores by position or not at all.

    Groups name theirs in ``lr_scheduler`` where :func:`lightning_wd.configure_optimizers` made it; older checkpoints
    and groups that joined later do not. The settings of an LRSchedule are its own to compare.
    """
    named = (
        (mine["lr_scheduler"], theirs["lr_scheduler"])
        for mine, theirs in _pairs(own, saved)
        if "lr_scheduler" in mine and "lr_scheduler" in theirs
    )
    configured, had = next(named, ("", ""))
    if configured == had:
        return []
    if on_resume != "config" and configured.partition("(")[0] != had.partition("(")[0]:
        _refuse(
            owner,
            "the run had another learning-rate schedule.",
            found=had,
            valid=configured,
            fix="write lr_scheduler as it was; on_resume=config takes the configured one, from its start where the "
            "checkpoint had none",
        )
    return [f"lr_scheduler is {had} in the checkpoint, {configured} in the configuration"]


def _settings_of(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> list[str]:
    """Return the settings that are compared: the optimizer's own, but for what a schedule of the saved run drives."""
    driven = {"momentum", "betas"} if "max_momentum" in saved else set()
    own = [key for key in optimizer.defaults if key not in _VERSIONED | _OURS | driven | {"lr"}]
    return ["base_lr", "base_weight_decay", "cautious", "kahan", *own]


def _differences(mine: dict[str, Any], saved: dict[str, Any], keys: list[str], label: str) -> list[str]:
    """Return one line for each configured setting that differs."""
    shown = {"base_lr": "lr (base_lr)", "base_weight_decay": "weight_decay"}
    return [
        f"{label}: {shown.get(key, key)} is {saved[key]!r} in the checkpoint, {mine[key]!r} in the configuration"
        for key in keys
        if key in mine and key in saved and _plain(mine[key]) != _plain(saved[key])
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _keep_configured(owner: str, mine: dict[str, Any], filled: dict[str, Any], keys: list[str], label: str) -> None:
    """Put the configured settings into a loaded group, its learning rate at the checkpoint's point of the schedule."""
    if mine.get("amsgrad") and not filled.get("amsgrad"):
        _refuse(
            owner,
            f"{label} has amsgrad, whose maximum the run did not keep.",
            found="amsgrad=False",
            valid="amsgrad=True",
            fix="write amsgrad=False to continue that run",
        )
    lr, peak = filled["lr"], filled["base_lr"]
    if isinstance(lr, Tensor):
        filled["lr"] = lr * (mine["base_lr"] / peak) if peak else mine["lr"]
    else:
        filled["lr"] = mine["base_lr"] * (lr / peak) if peak else mine["lr"]
    for key in (*keys, "initial_lr", "weight_decay"):
        if key in mine:
            filled[key] = mine[key]


def _report(owner: str, differences: list[str], on_resume: str) -> None:
    winner = {
        "checkpoint": "the checkpoint's values are used",
        "config": "the configured values are used",
        "error": "on_resume is 'error'",
    }[on_resume]
    message = explain(
        f"the checkpoint's settings differ from this {owner}'s; {winner}.",
        found="; ".join(differences),
        fix="set on_resume to 'checkpoint', 'config' or 'error' to say which wins",
    )
    if on_resume == "error":
        raise CheckpointMismatchError(message)
    warnings.warn(message, UserWarning, stacklevel=6)


def _peak(group: dict[str, Any]) -> float:
    """Return a saved group's peak learning rate; plain states have it under a scheduler's key, or not at all."""
    for key in ("base_lr", "max_lr", "initial_lr", "lr"):
        if group.get(key) is not None:
            return float(group[key])
    return 0.0


def _outline(groups: list[dict[str, Any]]) -> str:
    return ", ".join(f"{_label(group, i)} ({len(group['params'])} parameters)" for i, group in enumerate(groups))


def _without(names: list[str], others: list[str]) -> list[str]:
    known = set(others)
    return [name for name in names if name not in known]


def _listed(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f", and {len(names) - limit} more" if len(names) > limit else "")
