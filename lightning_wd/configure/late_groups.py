"""Parameters that join an optimizer after it was built, in groups that the mask has split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_wd._private import inner_schedulers, per_group_lists
from lightning_wd.configure.configure_optimizers import give_matrices_to_muon
from lightning_wd.configure.first_step import read_again
from lightning_wd.mask import DecayPlan, Mask, plan_decay
from lightning_wd.optimizers.base import DecayGroups
from lightning_wd.optimizers.muon import MuonAdamW
from lightning_wd.optimizers.param_groups import as_float, group_style, peak_lr

__all__ = ["unfreeze"]


def unfreeze(
    optimizer: Optimizer,
    schedulers: Iterable[Any],
    module: nn.Module,
    names: Iterable[str],
    mask: Mask | None,
    epoch: int,
) -> list[str]:
    """Unfreeze parameters and add them to an optimizer and its schedulers; return the names of their groups.

    A group has the run's peak learning rate times the mask's multiplier, at the schedule's present point.

    Args:
        optimizer, module: the module holds the parameters, the optimizer does not yet.
        schedulers: those of the run; the ones that drive the optimizer get an entry for each new group.
        names: of the parameters, without prefixes of wrappers.
        mask: splits them; None is the mask of the optimizer's configuration, else ``standard``.
        epoch: ends the names of the groups: ``decay_epoch_3``.
    """
    read_again(optimizer)
    plan, config = (getattr(optimizer, name, None) for name in ("decay_plan", "decay_config"))
    first, ours = optimizer.param_groups[0], isinstance(optimizer, DecayGroups)
    style = plan.style if plan is not None else group_style(optimizer, first) if ours else None
    if mask is None and config is not None:
        mask = config.mask
    whole = plan_decay(module, mask, style, include_frozen=True)
    wanted = set(names)
    rows = tuple(row for row in whole if wanted.intersection(row.names))
    lr, weight_decay = _reference(optimizer, plan)
    groups = DecayPlan(rows, style).groups(lr=lr, weight_decay=weight_decay)
    if isinstance(optimizer, MuonAdamW):
        groups = give_matrices_to_muon(groups, module, whole)
    for row in rows:
        row.param.requires_grad_(True)
        if plan is not None:  # bring the optimizer's plan up to date
            mine = plan[row.name]
            mine.wd_mult, mine.lr_mult, mine.style, mine.settings = row.wd_mult, row.lr_mult, row.style, row.settings
            mine.reason, mine.group = f"{row.reason}; unfrozen at epoch {epoch}", f"{row.group}_epoch_{epoch}"
    before = len(optimizer.param_groups)
    for group in groups:
        _fit(group, first, ours)
        group["name"] = f"{group['name']}_epoch_{epoch}"
        optimizer.add_param_group(group)
    for scheduler in schedulers:
        _extend(scheduler, optimizer, before)
    return [group["name"] for group in groups]


def _reference(optimizer: Optimizer, plan: DecayPlan | None) -> tuple[float, float]:
    """Return the peak learning rate and the weight decay that a group with wd_mult = lr_mult = 1 has in this run.

    Without the plan that made the groups they are those of the first group, and of the first that decays.
    """
    lr, weight_decay = optimizer.defaults["lr"], optimizer.defaults.get("weight_decay", 0.0)
    if plan is None:
        known = [(1.0, 1.0, group) for group in optimizer.param_groups if group["params"]]
    else:
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        known = [
            (row.lr_mult, row.wd_mult * (row.style == plan.style), groups[id(row.param)])
            for row in plan
            if id(row.param) in groups and not row.settings
        ]
    lr = next((peak_lr(group) / factor for factor, _, group in known if factor), lr)
    amounts = [(group.get("base_weight_decay", group.get("weight_decay")), factor) for _, factor, group in known]
    weight_decay = next((as_float(amount) / factor for amount, factor in amounts if amount and factor), weight_decay)
    return as_float(lr), as_float(weight_decay)


def _fit(group: dict[str, Any], first: dict[str, Any], ours: bool) -> None:
    """Give a new group the first group's position in the schedule."""
    ratio = _ratio(group, first)
    rates, others = ("lr", "initial_lr", "max_lr", "min_lr"), ("momentum", "betas", "base_momentum", "max_momentum")
    group |= {key: as_float(first[key]) * ratio for key in rates if key in first}
    group |= {key: first[key] for key in others if key in first}  # a schedule may drive these too
    if not ours:
        del group["base_lr"]
        group.pop("style", None)
    if "param_names" not in first:
        group["params"] = [p for _, p in group["params"]]


def _ratio(group: dict[str, Any], first: dict[str, Any]) -> float:
    """Return the peak learning rate of a group over that of the first."""
    peak = peak_lr(first)
    return peak_lr(group) / peak if peak else 1.0


def _extend(scheduler: Any, optimizer: Optimizer, before: int) -> None:
    """Give a scheduler entries for the groups that its optimizer has beyond the first ``before``."""
    if getattr(scheduler, "optimizer", None) is not optimizer:
        return
    first, *_ = optimizer.param_groups
    for name, values in per_group_lists(scheduler):
        if len(values) == before:
            scaled = isinstance(values[0], (int, float)) and "momentum" not in name
            ratios = [_ratio(group, first) for group in optimizer.param_groups[before:]]
            values += [values[0] * ratio if scaled else values[0] for ratio in ratios]
    for inner in inner_schedulers(scheduler):
        _extend(inner, optimizer, before)
