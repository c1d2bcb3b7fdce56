"""Whether a saved state is one of such an optimizer at all, with values and states that it can use."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_wd.errors import CheckpointMismatchError
from lightning_wd.optimizers.kernels import pulls
from lightning_wd.optimizers.param_groups import group_label

__all__ = [
    "DECAY_SETTINGS",
    "OURS",
    "REBUILD",
    "VERSIONED",
    "check_optimizer",
    "check_states",
    "check_structure",
    "check_values",
    "names_of",
    "plain",
    "refusal",
]

# Settings that choose an implementation, or that older torch versions did not save: they do not identify an optimizer.
VERSIONED = {"maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
DECAY_SETTINGS = ("cautious_wd", "toward", "anchor_dtype", "kahan")  # beside the style and the amount
OURS = {"style", "base_lr", "base_weight_decay", "weight_decay", "optimizer", *DECAY_SETTINGS}
_NOT_NEGATIVE = {"lr", "weight_decay", "base_lr", "base_weight_decay", "initial_lr", "max_lr", "eps", "momentum"}
_DAMAGED = "the checkpoint is damaged or was edited: load another one"
REBUILD = "build the model, the mask and the optimizer as they were when the checkpoint was saved"


def refusal(optimizer: Any, problem: str, *, found: str, fix: str, valid: str | None = None) -> CheckpointMismatchError:
    """Return the error for a state that does not fit the optimizer."""
    problem = f"the checkpoint does not fit this {type(optimizer).__name__}: {problem}"
    return CheckpointMismatchError(problem, found=found, valid=valid, fix=fix)


def check_structure(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """Refuse what is not the state of any optimizer."""
    groups = state_dict.get("param_groups")
    if not (isinstance(state_dict.get("state"), dict) and isinstance(groups, list) and all(map(_is_group, groups))):
        found = ", ".join(f"{key}: {type(value).__name__}" for key, value in state_dict.items()) or "nothing"
        valid = "state (a dict) and param_groups (a list of dicts, each with lists of params and of their names)"
        raise refusal(optimizer, "it is not the state of an optimizer.", found=found, valid=valid, fix=_DAMAGED)


def _is_group(group: Any) -> bool:
    if not isinstance(group, dict) or not isinstance(group.get("params"), list):
        return False
    names = group.get("param_names", [])
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def names_of(group: dict[str, Any]) -> list[str] | None:
    """Return the names of a group's members; None where it has not one for each, as after DeepSpeed flattens it."""
    names: list[str] | None = group.get("param_names")
    return names if names is not None and len(names) == len(group["params"]) else None


def check_optimizer(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """Refuse the state of another optimizer, recognised by its group settings and state names."""
    fix = "load it into the optimizer that saved it, or start this one without its state"
    classes = [cls for cls in vars(torch.optim).values() if isinstance(cls, type) and issubclass(cls, Optimizer)]
    every = {name for cls in classes for name in inspect.signature(cls).parameters}
    for index, group in enumerate(state_dict["param_groups"]):
        problem = f"{group_label(group, index)} is of another optimizer."
        stepper = _stepper(optimizer, group)
        if stepper is None:
            found = f"optimizer {group['optimizer']!r}" if "optimizer" in group else "no optimizer"
            names = list(dict.fromkeys(mine["optimizer"] for mine in optimizer.param_groups))
            raise refusal(optimizer, problem, found=found + _of_whom(group, classes), valid=", ".join(names), fix=fix)
        expected = set(stepper.defaults) - VERSIONED - OURS
        foreign = every - set(stepper.defaults) - VERSIONED - OURS - {"params"}
        missing, extra = sorted(expected - set(group)), sorted(foreign & set(group))
        if missing or extra:
            found = ", ".join([*(f"no {key}" for key in missing), *extra]) + _of_whom(group, classes)
            valid = f"{', '.join(sorted(expected))}, of {type(stepper).__name__}"
            raise refusal(optimizer, problem, found=found, valid=valid, fix=fix)
        known = stepper.state_keys
        for key in group["params"]:
            held = state_dict["state"].get(key)
            if known is not None and isinstance(held, dict) and not known.issuperset(held):
                problem = f"the state of parameter {key!r} is of another optimizer."
                found = ", ".join(sorted(map(str, set(held) - known)))
                raise refusal(optimizer, problem, found=found, valid=", ".join(sorted(known)), fix=fix)


def _stepper(optimizer: Any, group: dict[str, Any]) -> Any:
    """Return what steps groups like a saved one: of several by their name, which must be the same."""
    for mine in optimizer.param_groups:
        stepper = optimizer.stepper_of(mine)
        if stepper is optimizer or mine["optimizer"] == group.get("optimizer"):
            return stepper
    return None


def _of_whom(group: dict[str, Any], classes: list[type[Optimizer]]) -> str:
    """Return which of torch's optimizers have the most settings of a saved group, all of theirs in it."""
    own = {cls.__name__: inspect.signature(cls).parameters.keys() - VERSIONED - OURS - {"params"} for cls in classes}
    fitting = {name: len(settings) for name, settings in own.items() if settings <= group.keys()}
    most = [name for name, count in fitting.items() if count == max(fitting.values()) > 1]  # all have an lr
    return f", as of {' or '.join(sorted(most))}" if most else ""


def check_values(optimizer: Any, pairs: Iterable[tuple[str, dict[str, Any], dict[str, Any], Any]]) -> None:
    """Refuse settings that no optimizer saves: torch loads them, and fails or blows up at its next step."""
    for label, mine, theirs, _ in pairs:
        own, saved = mine.get("optimizer"), theirs.get("optimizer", optimizer.own_name)
        if own != saved:
            problem, valid = f"{label} is of another optimizer.", None if own is None else f"optimizer {own!r}"
            raise refusal(optimizer, problem, found=f"optimizer {saved!r}", valid=valid, fix=REBUILD)
        for key, value in theirs.items():
            like = mine.get(key, 0.0 if key in _NOT_NEGATIVE else None)
            if key not in ("params", "name", "param_names") and not _is_like(key, value, like):
                problem, valid = f"{key} of {label} has a value that no optimizer saves.", f"a value like {like!r}"
                raise refusal(optimizer, problem, found=f"{key}={value!r}", valid=valid, fix=_DAMAGED)


def _is_like(key: str, value: Any, like: Any) -> bool:
    """Whether a saved setting is of the kind of the optimizer's own, and in the range that any optimizer takes."""
    if type(value) is type(like) and not isinstance(value, Tensor) and value == like:
        return True
    if key in VERSIONED:
        return isinstance(value, bool) or (value is None and key in ("foreach", "fused"))
    if key == "kahan":  # None: saved before the first step decided
        return value is None or isinstance(value, bool)
    if isinstance(like, (bool, str)):
        return isinstance(value, type(like))
    if isinstance(like, (tuple, list)):
        same_length = isinstance(value, (tuple, list)) and len(value) == len(like)
        return same_length and all(_is_like(key, one, other) for one, other in zip(value, like, strict=True))
    if isinstance(like, (int, float, Tensor)):
        number = plain(value)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            return False
        return 0 <= number < 1 if key == "betas" else number >= 0 or key not in _NOT_NEGATIVE
    return True


def check_states(
    optimizer: Any, pairs: Iterable[tuple[str, dict[str, Any], dict[str, Any], Any]], state: dict[Any, Any]
) -> None:
    """Refuse states that are not whole or of another shape: torch would load them and then fail to use them."""
    for label, mine, theirs, _ in pairs:
        state_keys = optimizer.stepper_of(mine).state_keys
        valid = None if state_keys is None else ", ".join(sorted(state_keys))
        names = names_of(mine) or range(len(mine["params"]))
        for own_name, p, key in zip(names, mine["params"], theirs["params"], strict=True):
            held, where = state.get(key, {}), f"parameter {own_name!r} in {label}"
            if wrong := _fault(held, theirs, state_keys):
                problem = f"the state of {where} is not one that an optimizer saves."
                raise refusal(optimizer, problem, found=wrong, valid=valid, fix=_DAMAGED)
            checked = {name for name in held if name != "step"} if state_keys else {"anchor"}
            for name, value in held.items():
                if isinstance(value, Tensor) and name in checked and value.shape != p.shape:
                    found, shape = str(tuple(value.shape)), str(tuple(p.shape))
                    raise refusal(
                        optimizer, f"{name} of {where} has another shape.", found=found, valid=shape, fix=REBUILD
                    )


def _fault(held: Any, group: dict[str, Any], state_keys: frozenset[str] | None) -> str:
    """Return what makes a parameter's state unusable in its group, or ''; all but an anchor may be absent.

    Of a class whose ``state_keys`` are unknown, only the anchor is.
    """
    if not isinstance(held, dict):
        return "no dict"
    needed = ["anchor"] if "toward" in group and pulls(group) else []
    if state_keys is not None:
        needed += ["step", "exp_avg", "exp_avg_sq"] if {"exp_avg", "exp_avg_sq"} & set(held) else []
        needed += ["max_exp_avg_sq"] if set(held) - {"anchor"} and group.get("amsgrad") else []
    lacking = [f"no {name}" for name in needed if name not in held]
    odd = [f"{k}={value!r}" for k, value in held.items() if not _is_state(k, value)] if state_keys else []
    return ", ".join(lacking or odd[:1])


def _is_state(name: str, value: Any) -> bool:
    if name in ("step", "radius"):  # the step is a number before torch 1.12
        return _is_like(name, value, 0.0) and value >= 0
    return isinstance(value, Tensor) or (name == "momentum_buffer" and value is None)


def plain(value: Any) -> Any:
    """Return a setting as plain data, to compare it."""
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
