"""``configure_optimizers``: decay + mask + optimizer + schedule -> what Lightning takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from lightning_wd._private import attached_trainer
from lightning_wd.configure.budget import Budget
from lightning_wd.configure.carried_run import CarriedRun
from lightning_wd.configure.checked_mapping import CheckedMapping
from lightning_wd.configure.checkpoint_content import keep_checkpoints_plain
from lightning_wd.configure.first_step import FirstStep, found_in_earlier_fit
from lightning_wd.configure.late_groups import LateGroups
from lightning_wd.configure.neighbours import check_neighbours, may_unfreeze, watch
from lightning_wd.configure.optimizer_config import OptimizerConfig
from lightning_wd.configure.rule_settings import check_rules
from lightning_wd.configure.saved_anchors import with_saved_anchors
from lightning_wd.configure.schedule_request import ScheduleRequest
from lightning_wd.decay import Decay
from lightning_wd.errors import ConfigError, MaskError, as_typed, checked_keywords, number, spelled, warn
from lightning_wd.mask import DecayPlan
from lightning_wd.mask.planner import plan_checked
from lightning_wd.optimizers import MultiOptimizer
from lightning_wd.optimizers.by_name import hyperparameters_of, optimizer_class, steppers

__all__ = ["build", "configure_optimizers"]


@checked_keywords()
def configure_optimizers(
    module: torch.nn.Module,
    optimizer: Any = None,
    lr_scheduler: Any = None,
    *,
    total_steps: int | None = None,
    steps_per_epoch: float | None = None,
    global_batch: int | None = None,
) -> dict[str, Any]:
    """Build the optimizer and the schedule of a module, with its parameters in decaying and non-decaying groups.

    Args:
        module: a LightningModule, or any ``nn.Module`` (Fabric, plain torch).
        optimizer: an :class:`OptimizerConfig`, the same keys as a mapping, an optimizer's name, or None for AdamW.
        lr_scheduler: an :class:`LRSchedulerConfig`, the same keys as a mapping, a schedule's name, a callable
            ``optimizer -> scheduler`` (such as ``functools.partial(StepLR, step_size=10)``), Lightning's own mapping
            around one, or None. Schedules step per optimizer step unless ``interval`` says otherwise.
            The ``max_lr`` of ``OneCycleLR`` and ``CyclicLR`` is then the peak learning rate, for the decay
            too, in place of ``optimizer.lr``; each group has it times its own multiplier.
        total_steps: optimizer steps of the run; read from the trainer where it knows them.
        steps_per_epoch: optimizer steps of an epoch; read from the trainer where it knows them.
        global_batch: rows that an optimizer step sees, for ``optimizer.reference``; read from the trainer and its
            training loader where they know it.

    Returns:
        ``{"optimizer": ...}``, and ``"lr_scheduler"`` if one was asked for: what Lightning's ``configure_optimizers``
        may return. ``optimizer.decay_plan`` keeps the plan, ``optimizer.decay_config`` the config. Groups that anyone
        adds to it later are named, split by the mask and scheduled. A warning names parameters that have gradients and
        are in no optimizer. Under a trainer a schedule-free optimizer is switched between its modes, by
        :class:`lightning_wd.callbacks.ScheduleFreeMode`.

    Raises:
        ConfigError: a setting that cannot be honoured, steps that are needed and not known, or Lightning's
            BackboneFinetuning beside it.
        MaskError: a mask that does not fit the module.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        >>> built = configure_optimizers(model, {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}, "constant")
        >>> [(g["name"], g["weight_decay"], len(g["params"])) for g in built["optimizer"].param_groups]
        [('decay', 0.1, 1), ('no_decay', 0.0, 3)]
    """
    built = build(
        module, optimizer, lr_scheduler, Budget(module, total_steps, steps_per_epoch, global_batch=global_batch)
    )
    keep_checkpoints_plain(module, optimizer, lr_scheduler)
    return built


def build(
    module: torch.nn.Module, optimizer: Any, lr_scheduler: Any, budget: Budget, found: float | None = None
) -> dict[str, Any]:
    """Build what :func:`configure_optimizers` returns, with the steps of a budget.

    ``found`` is the peak that a learning-rate finder found for this run, in place of ``optimizer.lr``.
    """
    typed = {**_typed(module, optimizer, "optimizer"), **_typed(module, lr_scheduler, "lr_scheduler")}
    with as_typed(typed):
        config = OptimizerConfig.of(optimizer)
        request = ScheduleRequest.of(lr_scheduler)
        check_neighbours(module, scheduled=request is not None)
        built = _configure(module, config, request, budget, found)
    built["optimizer"].typed = {**typed, "on_resume": f"{typed.get('optimizer', 'optimizer')}.on_resume"}
    return built


def _configure(
    module: torch.nn.Module,
    config: OptimizerConfig,
    request: ScheduleRequest | None,
    budget: Budget,
    found: float | None,
) -> dict[str, Any]:
    """Build for settings that were checked."""
    decay = config.decay
    if decay.normalized is not None and request is not None and request.make == "cosine_restarts":
        _warn_of_one_budget_for_all_cycles(module)
    peak = None if request is None else request.peak()
    tuned = config["lr"] if peak is None else _scalar_peak(peak)
    carried = None
    if config.reference is not None:
        before = found_in_earlier_fit(module, tuned)
        found = tuned if before is not None else found
        carried = CarriedRun(config, config.reference, tuned if before is None else before, budget)

    def lr_of_rule() -> float:
        return tuned if carried is None else carried.lr()

    def lr_here() -> float:
        return lr_of_rule() if found is None else found

    def amount(lr: float) -> float:
        coefficient = decay.coefficient(lr, *_steps_needed(decay, budget))
        return coefficient if carried is None else carried.weight_decay(coefficient, lr)

    def groups_at(lr: float, coefficient: float, *, raised: bool = False) -> list[dict[str, Any]]:
        halves = config.halves
        if carried is not None:
            carried.carry_rules(plan, lr)
            halves = carried.halves(lr)
        ruled = lr if raised else lr_of_rule()
        beside = None if ruled == lr else (ruled, amount(ruled))
        return plan.groups_of_checked(lr, lr, coefficient, halves, beside=beside)

    def at_peaks(groups: list[dict[str, Any]], lr: float) -> list[dict[str, Any]]:
        if isinstance(peak, Sequence):
            _set_peaks(groups, [value * (lr / tuned if tuned else 1.0) for value in peak])
        return groups

    planned = plan_checked(module, config.mask, decay.style, toward=decay.toward, optimizer=config["name"])
    unfrozen_later = may_unfreeze(getattr(attached_trainer(module), "callbacks", ()))
    plan = with_saved_anchors(planned, unfrozen_later=unfrozen_later)
    check_rules(plan, config, unfrozen_later=unfrozen_later)
    lr = lr_here()
    groups = groups_at(lr, amount(lr))
    multipliers = [group["lr"] / tuned if tuned else 1.0 for group in groups]  # of what the user has set
    at_peaks(groups, lr)
    with as_typed({key: f"{spelled('optimizer')}.{key}" for key in config.hyperparameters}):
        built = _build(config, plan, groups, lr, amount(lr))
    built.on_resume = config["on_resume"]
    built.decay_plan = plan
    built.decay_config = config
    built.carried = carried
    built.scheduled = request is not None
    returned = {"optimizer": built}
    if request is not None:
        returned["lr_scheduler"] = request.build(built, multipliers, budget)
    schedule = returned.get("lr_scheduler", {}).get("scheduler")
    if (trainer := attached_trainer(module)) is not None:
        from lightning_wd.configure.schedule_free_mode import switch_modes  # it loads lightning, which is here now

        switch_modes(trainer, built)
        follow = None if request is None else partial(request.follow, schedule, multipliers, budget)
        built.first_step = FirstStep(
            module,
            built,
            lr_here,
            amount,
            lambda lr, lam, **how: at_peaks(groups_at(lr, lam, **how), lr),
            budget,
            schedule,
            follow,
        )
    watch(built, module)
    built.admit = LateGroups(module, [] if schedule is None else [schedule])
    return returned


def _build(
    config: OptimizerConfig, plan: DecayPlan, groups: list[dict[str, Any]], lr: float, coefficient: float
) -> Any:
    """Build the config's optimizer, or several in one where the plan has several."""
    l2 = all(group["style"] == "l2" for group in groups)
    cls: Any = optimizer_class(config["name"], "l2" if l2 else "")
    keywords = config.hyperparameters
    own: dict[str, Any] = {key: getattr(config.decay, key) for key in ("style", "toward")}
    own["cautious_wd"] = config.decay.cautious
    try:
        if len({*plan.optimizers, *steppers(config["name"])}) > 1 or not _holds(cls, keywords, groups):
            its = {str(name): config.hyperparameters_for(str(name)) for name in plan.optimizers}
            return MultiOptimizer(groups, lr, coefficient, **own, hyperparameters=its)
        for group in groups:
            del group["optimizer"]
        own = {"toward": own["toward"]} if l2 else own
        return cls(groups, lr=lr, weight_decay=coefficient, **own, **keywords)  # defaults, for groups added later
    except (ConfigError, MaskError):
        raise
    except Exception as error:  # the class's own checks, of one setting against another and of the parameters
        raise ConfigError(
            f"optimizer {config['name']} cannot be built: {str(error).rstrip('.')}.",
            found=", ".join(f"optimizer.{key}={value!r}" for key, value in keywords.items()) or "its own defaults",
            fix="correct these settings, or name an optimizer that takes these parameters",
        ) from error


def _holds(cls: Any, keywords: Mapping[str, Any], groups: list[dict[str, Any]]) -> bool:
    """Whether an optimizer keeps each hyperparameter of a group in that group; else it needs an instance for it."""
    ruled = {key for group in groups for key in group if key in hyperparameters_of(cls)}
    return not ruled or ruled <= cls([torch.nn.Parameter(torch.ones(2, 2))], lr=1.0, **keywords).defaults.keys()


def _steps_needed(decay: Decay, budget: Budget) -> tuple[int | None, float | None]:
    """Return the steps of the run and of an epoch, each only where the amount needs it."""
    total = next((name for name in ("normalized", "timescale_runs") if getattr(decay, name) is not None), None)
    return (
        None if total is None else budget.total_steps(f"optimizer.decay.{total}"),
        None if decay.timescale_epochs is None else budget.steps_per_epoch("optimizer.decay.timescale_epochs"),
    )


def _typed(module: torch.nn.Module, given: Any, name: str) -> Mapping[str, str]:
    """Return how messages spell a config: as Hydra has it, else as the module's hyperparameters do."""
    if isinstance(given, CheckedMapping) and given.typed:
        return given.typed
    path = next(_paths(getattr(module, "hparams", None), given), "")
    return {name: path} if path else {}


def _paths(kept: Any, given: Any, path: str = "") -> Iterator[str]:
    """Yield the dotted names under which hyperparameters hold a config."""
    for key, value in kept.items() if isinstance(kept, Mapping) and isinstance(given, Mapping) else ():
        if value is given:
            yield f"{path}{key}"
        yield from _paths(value, given, f"{path}{key}.")


def _warn_of_one_budget_for_all_cycles(module: torch.nn.Module) -> None:
    callbacks = getattr(attached_trainer(module), "callbacks", [])
    if not any(getattr(callback, "schedules_decay", False) for callback in callbacks):
        warn(
            "optimizer.decay.normalized is computed for the whole run, but cosine_restarts needs it per cycle.",
            valid="lam_norm / sqrt(steps of the current cycle), restarting with each cycle (1711.05101, App. B.2)",
            fix="add callbacks=decay_restarts (DecaySchedule(shape='restarts'))",
        )


def _scalar_peak(peak: Any) -> float:
    values = list(peak) if isinstance(peak, Sequence) and not isinstance(peak, str) else [peak]
    if not values:
        raise ConfigError("lr_scheduler.max_lr is an empty list.", fix="write lr_scheduler.max_lr=0.1")
    return max(number("lr_scheduler.max_lr", value) for value in values)


def _set_peaks(groups: list[dict[str, Any]], peaks: Sequence[float]) -> None:
    """Give each group its own peak, from a schedule's list of them."""
    if len(peaks) != len(groups):
        raise ConfigError(
            f"lr_scheduler.max_lr has {len(peaks)} entries for {len(groups)} parameter groups.",
            found="groups " + ", ".join(str(group["name"]) for group in groups),
            fix="give one number: each group then has it times its own multiplier",
        )
    for group, peak in zip(groups, peaks, strict=True):
        group["lr"] = group["base_lr"] = float(peak)
