"""The one reading of a parameter group: label, style, peak learning rate and ``d_t``, whoever wrote the optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_wd.errors import ConfigError
from lightning_wd.optimizers.constructor import keywords_of
from lightning_wd.optimizers.identify import identify
from lightning_wd.styles import step_fraction

__all__ = [
    "as_float",
    "configured_weight_decay",
    "fraction",
    "group_label",
    "group_name",
    "group_names",
    "group_style",
    "peak_fraction",
    "peak_lr",
    "stepper_of",
    "write",
]


def as_float(value: Any) -> float:
    """Return a number or a 0-dim tensor as a float; ``float`` alone warns of one that requires a gradient."""
    return float(value.item()) if isinstance(value, Tensor) else float(value)


def write(group: dict[str, Any], key: str, value: float) -> None:
    """Write a number into a group, into the tensor where it holds one.

    >>> group = {"lr": torch.tensor(0.1), "weight_decay": 0.1}
    >>> lr = group["lr"]
    >>> write(group, "lr", 0.5), write(group, "weight_decay", 0.5)
    (None, None)
    >>> lr, group["weight_decay"]
    (tensor(0.5000), 0.5)
    """
    if isinstance(group[key], Tensor):
        group[key].fill_(value)
    else:
        group[key] = value


def configured_weight_decay(group: dict[str, Any]) -> float | None:
    """Return ``lam`` as configured, whatever a schedule has made of it; None where the group has none.

    >>> configured_weight_decay({"weight_decay": 0.01, "base_weight_decay": 0.1})
    0.1
    """
    amount = group.get("base_weight_decay", group.get("weight_decay"))
    return None if amount is None else as_float(amount)


def group_label(group: dict[str, Any], index: int) -> str:
    """Return how messages call a group: by its name, else by its position.

    >>> group_label({"name": "decay"}, 0), group_label({}, 1)
    ("group 'decay'", 'group 1')
    """
    return f"group {group['name']!r}" if "name" in group else f"group {index}"


def group_name(group: dict[str, Any], index: int) -> str:
    """Return the group's ``name``, or ``group_<index>``."""
    return str(group.get("name", f"group_{index}"))


def group_names(optimizers: list[torch.optim.Optimizer]) -> list[list[str]]:
    """Return a name for each group of each optimizer, with the optimizer's number in front where there are several.

    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> group_names([torch.optim.SGD([{"params": [w], "name": "decay"}], lr=1.0)])
    [['decay']]
    """
    several = len(optimizers) > 1
    return [
        [f"{f'optimizer_{o}_' if several else ''}{group_name(group, i)}" for i, group in enumerate(opt.param_groups)]
        for o, opt in enumerate(optimizers)
    ]


def stepper_of(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> torch.optim.Optimizer:
    """Return the optimizer that steps a group: one within a MultiOptimizer, else ``optimizer`` itself."""
    find = getattr(optimizer, "stepper_of", None)
    stepper: torch.optim.Optimizer = optimizer if find is None else find(group)
    return stepper


def group_style(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> str | None:
    """Return the decay style of a group; None where its decay is no style at its number, or nobody knows.

    What another library's class does is found by :func:`~lightning_wd.optimizers.identify.identify`.

    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> [group_style(o, o.param_groups[0]) for o in (torch.optim.AdamW([w]), torch.optim.SGD([w]))]
    ['decoupled', 'l2']
    """
    if getattr(stepper_of(optimizer, group), "keeps_own_decay", False):  # made by decoupled(): nobody knows that decay
        return "none" if group["style"] == "none" else None
    if "style" in group:
        return str(group["style"])
    if "weight_decay" not in group:
        return "none"
    cls = type(optimizer)
    try:
        found = identify(cls, **{key: group[key] for key in keywords_of(cls) if key in group})
    except ConfigError:  # its constructor wants more than its groups say
        return None
    return found.style if found.style != "unknown" and found.multiple in (0, 1) else None


def peak_lr(group: dict[str, Any]) -> float:
    """Return ``lr0``: the group's ``base_lr``, else the largest rate that a scheduler or the group names."""
    if "base_lr" in group:
        return as_float(group["base_lr"])
    return max(as_float(group[key]) for key in ("max_lr", "initial_lr", "lr") if key in group)


def fraction(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> float | Tensor | None:
    """Return ``d_t`` of the group now; None where decay is no fixed fraction (L2) or the rule is not known.

    It is a tensor where lr or weight_decay is one: reading it would wait for the device.

    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> [fraction(o, o.param_groups[0]) for o in (torch.optim.AdamW([w], 0.1, weight_decay=0.5), torch.optim.SGD([w]))]
    [0.05, None]
    """
    style = group_style(optimizer, group)
    if style is None or style == "l2":
        return None
    if style == "none":
        return 0.0
    lr, lam = group["lr"], group["weight_decay"]
    d: float | Tensor = step_fraction(style, weight_decay=lam, lr=lr, base_lr=peak_lr(group))
    return d


def peak_fraction(group: dict[str, Any]) -> float:
    """Return ``d_t`` of one of this package's groups at its peak learning rate.

    >>> peak_fraction({"style": "decoupled", "weight_decay": 0.5, "lr": 0.0, "base_lr": 0.1})
    0.05
    """
    peak = group["base_lr"]
    lam = as_float(group["weight_decay"])
    return float(step_fraction(group["style"], weight_decay=lam, lr=peak, base_lr=peak))
