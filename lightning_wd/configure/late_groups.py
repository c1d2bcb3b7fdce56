"""Parameters that join an optimizer after it was built, in groups that the mask has split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_wd._private import attached_trainer, inner_schedulers, per_group_lists
from lightning_wd.configure.saved_anchors import with_saved_anchors
from lightning_wd.errors import ConfigError, listed
from lightning_wd.mask import DecayPlan, Mask, as_mask
from lightning_wd.mask.plan import Row
from lightning_wd.mask.planner import plan_checked
from lightning_wd.optimizers.base import DecayGroups
from lightning_wd.optimizers.multi import MultiOptimizer
from lightning_wd.optimizers.param_groups import as_float, configured_weight_decay, group_style, peak_lr

__all__ = ["LateGroups", "base_values", "unfreeze"]


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
    whole, wanted, before = _whole_plan(optimizer, module, mask), set(names), len(optimizer.param_groups)
    rows = [row for row in whole if wanted.intersection(row.names)]
    for row in rows:
        row.param.requires_grad_(True)
    groups = _split(optimizer, whole, rows, f"epoch_{epoch}", f"unfrozen at epoch {epoch}")
    for group in groups:
        optimizer.add_param_group(group)
    for scheduler in schedulers:
        _extend(scheduler, optimizer, before)
    return [group["name"] for group in groups]


class LateGroups:
    """Takes the groups that anyone adds to an optimizer of ``configure_optimizers``.

    Parameters without names get theirs, a group without ``weight_decay`` is split by the mask, and the schedule goes
    on in the new groups. An ``lr`` is the rate at this point of the schedule; the default is the run's.

    Args:
        module: holds the parameters.
        schedulers: those of the optimizer.
    """

    def __init__(self, module: nn.Module, schedulers: Iterable[Any]) -> None:
        self._module, self._schedulers = module, list(schedulers)

    def __call__(self, optimizer: Any, group: dict[str, Any]) -> None:
        """Add a group.

        Raises:
            ConfigError: a parameter that the module lacks, or that the optimizer holds already.
        """
        before = len(optimizer.param_groups)
        for part in self._parts(optimizer, group):
            optimizer.append_group(part)
        for scheduler in self._schedulers:
            _extend(scheduler, optimizer, before)

    def _parts(self, optimizer: Any, group: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the groups to add; one that is complete, or that torch refuses, as it is."""
        params = group.get("params", set())
        if isinstance(params, set):
            return [group]
        given = [params] if isinstance(params, Tensor) else list(params)
        group = {**group, "params": given}
        if not given or ("weight_decay" in group and all(isinstance(p, tuple) for p in given)):
            return [group]
        tensors = [p[-1] if isinstance(p, tuple) else p for p in given]
        whole = _whole_plan(optimizer, self._module, None)
        rows = {id(row.param): row for row in whole}
        held = {id(p) for present in optimizer.param_groups for p in present["params"]}
        wrong = [p for p in tensors if id(p) in held or id(p) not in rows]
        if wrong:
            raise ConfigError(
                f"a group that is added to {type(optimizer).__name__} must hold new parameters of "
                f"{type(self._module).__name__}.",
                found=f"{sum(id(p) in held for p in wrong)} that the optimizer has already, "
                f"{sum(id(p) not in rows for p in wrong)} that the module lacks",
                fix="add each parameter of the module once",
            )
        trainer = attached_trainer(self._module)
        when = "late" if trainer is None else f"epoch_{trainer.current_epoch}"
        if "weight_decay" in group:
            return [{"name": when, **group, "params": [(rows[id(p)].name, p) for p in tensors]}]
        names, tag, number = [str(present.get("name")) for present in optimizer.param_groups], when, 2
        while any(name.endswith(tag) for name in names):
            tag, number = f"{when}_{number}", number + 1
        for p in tensors if "optimizer" in group else ():
            rows[id(p)].optimizer = group["optimizer"]
        parts = _split(
            optimizer,
            whole,
            [rows[id(p)] for p in tensors],
            tag,
            f"added at {when.replace('_', ' ')}" if trainer else "added later",
            lr=group.get("lr"),
        )
        own = {key: value for key, value in group.items() if key not in ("params", "name", "lr", "base_lr")}
        label = f"{group['name']}_" if "name" in group else ""
        return [{**part, **own, "name": label + part["name"]} for part in parts]


def _whole_plan(optimizer: Optimizer, module: nn.Module, mask: Mask | None) -> DecayPlan:
    """Return the plan of all parameters, frozen ones as if they were trained."""
    plan, config = (getattr(optimizer, name, None) for name in ("decay_plan", "decay_config"))
    ours = isinstance(optimizer, DecayGroups)
    style = plan.style if plan is not None else group_style(optimizer, optimizer.param_groups[0]) if ours else None
    if mask is None and config is not None:
        mask = config.mask
    name = None if config is None else config["name"]
    toward = optimizer.defaults["toward"] if ours else "zero"
    planned = plan_checked(module, as_mask(mask), style, toward=toward, optimizer=name, include_frozen=True)
    return with_saved_anchors(planned)


def _split(
    optimizer: Optimizer,
    whole: DecayPlan,
    rows: Iterable[Row],
    tag: str,
    why: str,
    lr: Any = None,
) -> list[dict[str, Any]]:
    """Return groups for some rows of a plan, which ``tag`` names, and bring the optimizer's own plan up to date.

    They have the learning rate ``lr`` now, or by default the run's times the mask's multiplier.
    """
    rows = tuple(rows)
    plan: DecayPlan | None = getattr(optimizer, "decay_plan", None)
    rate, weight_decay = base_values(optimizer, plan)
    part = DecayPlan(rows, whole.style, whole.optimizer, whole.toward)
    if (carried := getattr(optimizer, "carried", None)) is not None:
        carried.carry_rules(part, rate)
    groups = part.groups_of_checked(rate, rate, weight_decay, _halves(optimizer, rate))
    if plan is not None:
        plan.extend(row for row in rows if row.name not in plan)
    for row in rows if plan is not None else ():
        mine = plan[row.name]  # type: ignore[index]
        mine.wd_mult, mine.lr_mult, mine.style, mine.settings = row.wd_mult, row.lr_mult, row.style, row.settings
        mine.optimizer, mine.toward, mine.by = row.optimizer, row.toward, row.by
        mine.reason, mine.group = f"{row.reason}; {why}", f"{row.group}_{tag}"
    for group in groups:
        _fit(group, optimizer, plan, lr)
        group["name"] = f"{group['name']}_{tag}"
    return groups


def base_values(optimizer: Optimizer, plan: DecayPlan | None) -> tuple[float, float]:
    """Return the peak learning rate and the weight decay that a group with wd_mult = lr_mult = 1 has in this run.

    Without the plan that made the groups they are those of the first group, and of the first that decays.
    """
    lr, weight_decay = optimizer.defaults["lr"], optimizer.defaults.get("weight_decay", 0.0)
    if plan is None:
        known = [(1.0, 1.0, group) for group in optimizer.param_groups if group["params"]]
    else:
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        config = getattr(optimizer, "decay_config", None)
        apart = [] if config is None else [name for name, own in config.halves.items() if own]
        known = [
            (row.lr_mult, row.wd_mult * (row.style == plan.style), groups[id(row.param)])
            for row in plan
            if id(row.param) in groups
            and not {"lr", "weight_decay"} & row.settings.keys()
            and row.optimizer not in apart
        ]
    lr = next((peak_lr(group) / factor for factor, _, group in known if factor), lr)
    amounts = [(configured_weight_decay(group), factor) for _, factor, group in known]
    weight_decay = next((amount / factor for amount, factor in amounts if amount and factor), weight_decay)
    return as_float(lr), as_float(weight_decay)


def _halves(optimizer: Optimizer, rate: float) -> dict[str, dict[str, float]]:
    """Return the own ``lr`` and ``weight_decay`` of optimizers within; ``rate`` is the run's peak."""
    config, carried = getattr(optimizer, "decay_config", None), getattr(optimizer, "carried", None)
    if carried is not None:
        return carried.halves(rate)  # type: ignore[no-any-return]
    return {} if config is None else config.halves


def _fit(group: dict[str, Any], optimizer: Optimizer, plan: DecayPlan | None, lr: Any) -> None:
    """Give a new group the first group's position in the schedule; ``lr`` is its rate there, None the mask's."""
    first, ours = optimizer.param_groups[0], isinstance(optimizer, DecayGroups)
    if not isinstance(optimizer, MultiOptimizer):
        _refuse_another(group, optimizer, plan)
    ratio = _ratio(group, first)
    if lr is not None:
        ratio = as_float(lr) / (as_float(first["lr"]) or peak_lr(first) or 1.0)
        group["base_lr"] = (peak_lr(first) or 1.0) * ratio
    rates = ("lr", "initial_lr", "max_lr", "min_lr")
    others = ("momentum", "betas", "base_momentum", "max_momentum", "swa_lr")
    group |= {key: as_float(first[key]) * ratio for key in rates if key in first}
    for key in others:  # a schedule may drive these too
        like = _unruled(group, optimizer, plan, key)
        if key not in group and key in like:
            group[key] = like[key]
    if lr is not None:
        group["lr"] = lr
    if not ours:
        del group["base_lr"]
        group.pop("style", None)
        group.pop("toward", None)
    if "param_names" not in first:
        group["params"] = [p for _, p in group["params"]]


def _refuse_another(group: dict[str, Any], optimizer: Optimizer, plan: DecayPlan | None) -> None:
    """Refuse a group of another optimizer than the only one of the run."""
    name = group.pop("optimizer", None)
    if name is not None and (plan is None or name != plan.optimizer):
        raise ConfigError(
            f"group {group['name']!r} is of {name}, but this run has {type(optimizer).__name__} alone.",
            found=listed(name for name, _ in group["params"]),
            fix="write the rule with that optimizer into optimizer.mask, which the run is built from",
        )


def _unruled(group: dict[str, Any], optimizer: Optimizer, plan: DecayPlan | None, key: str) -> dict[str, Any]:
    """Return the first group of the same optimizer whose ``key`` no rule has set."""
    ruled = {id(row.param) for row in plan or () if key in row.settings}
    alike = [g for g in optimizer.param_groups if group.get("optimizer") in (None, g.get("optimizer"))]
    return next((g for g in alike if not any(id(p) in ruled for p in g["params"])), {})


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
