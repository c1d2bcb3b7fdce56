"""From a schedule that is asked for to one on an optimizer, in the steps of the run."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import CyclicLR, LinearLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from lightning_wd import schedules
from lightning_wd._private import inner_schedulers
from lightning_wd.configure.budget import Budget
from lightning_wd.configure.checked_mapping import CheckedMapping
from lightning_wd.configure.lr_schedule import LRSchedule, check_on_load
from lightning_wd.configure.lr_scheduler_config import (
    LIGHTNING_KEYS,
    SHAPES,
    LRSchedulerConfig,
    check_lightning,
    scheduler_class,
)
from lightning_wd.errors import ConfigError, warn
from lightning_wd.optimizers.constructor import missing_keywords

__all__ = ["ScheduleRequest"]

_NEXT_TO_NOTHING = 1e-3  # of the peak


@dataclass(frozen=True)
class ScheduleRequest:
    """A schedule that was asked for and is not built yet: a shape of ours, a torch class, or any callable."""

    make: str | Callable[..., Any]
    keywords: dict[str, Any]
    lightning: dict[str, Any]

    @classmethod
    def of(cls, value: object) -> ScheduleRequest | None:
        """Read every accepted form: a config, a mapping, a partial, a callable, or Lightning's own mapping."""
        lightning: dict[str, Any] = {}
        if isinstance(value, Mapping) and "scheduler" in value:
            lightning = {str(key): item for key, item in value.items() if key != "scheduler"}
            check_lightning(lightning)
            value = value["scheduler"]
        if isinstance(value, (LRScheduler, ReduceLROnPlateau)):
            raise ConfigError(
                f"lr_scheduler is a {type(value).__name__} that was already built on another optimizer.",
                fix=f"pass a callable: functools.partial({type(value).__name__}, ...)",
            )
        if callable(value) and not isinstance(value, CheckedMapping):
            make: Any = value
            keywords: dict[str, Any] = {}
            if isinstance(value, functools.partial) and not value.args:
                make, keywords = value.func, dict(value.keywords)
            named = {key: keywords.pop(key) for key in LIGHTNING_KEYS if key in keywords}
            return cls(make, keywords, {**named, **lightning})
        config = LRSchedulerConfig.of(value)
        if config["name"] == "none":
            return None
        make = config["name"] if config["name"] in SHAPES else scheduler_class(config["name"])
        given = {key: config[key] for key in LIGHTNING_KEYS if config[key] is not None}
        if given["strict"]:  # Lightning's default; under manual optimization it warns of the key
            del given["strict"]
        return cls(make, config.settings, {**given, **lightning})

    def peak(self) -> Any:
        """Return the schedule's own peak learning rate (``max_lr``), or None."""
        return self.keywords.get("max_lr") if self.make in (OneCycleLR, CyclicLR) else None

    def build(self, optimizer: torch.optim.Optimizer, multipliers: list[float], budget: Budget) -> dict[str, Any]:
        """Build the schedule on an optimizer and return Lightning's ``lr_scheduler`` mapping.

        ``multipliers`` are the groups' learning-rate multipliers; ``budget`` is asked only for steps that are needed.
        """
        lightning = {"interval": "step", **self.lightning}
        if isinstance(self.make, str):
            settings = self._settings(budget)
            self._warn_below_peak(settings, budget)
            return {"scheduler": LRSchedule(optimizer, self.make, settings, self.keywords), **lightning}
        scheduler = self._make(optimizer, multipliers, budget)
        for each in (scheduler, *inner_schedulers(scheduler)):
            self._warn_of_torchs_warmup(each, budget)
        if isinstance(scheduler, ReduceLROnPlateau):
            lightning["interval"] = self.lightning.get("interval", "epoch")
            if not lightning.get("monitor"):
                raise ConfigError(
                    "ReduceLROnPlateau needs the metric to watch.", fix="write lr_scheduler.monitor=val/loss"
                )
            for group in optimizer.param_groups:  # as other schedulers do: it tells that the group is scheduled
                group.setdefault("initial_lr", group["lr"])
        return {"scheduler": scheduler, **lightning}

    def follow(self, scheduler: Any, multipliers: list[float], budget: Budget, *, resumed: bool) -> None:
        """Let a schedule that was given the steps of the run end where ``budget`` says now.

        After a resume the other settings are the checkpoint's.

        Raises:
            ConfigError: ``OneCycleLR`` would end before the run does, and raise in the middle of it.
        """
        if isinstance(scheduler, LRSchedule):
            settings = self._settings(budget)
            if "total_steps" in settings:
                settings["total_steps"] = max(1, self._end(scheduler, budget))
            if resumed and scheduler.asked != self.keywords:
                settings = {**scheduler.settings, **{k: v for k, v in settings.items() if k == "total_steps"}}
            if settings != scheduler.settings:
                self._warn_below_peak(settings, budget)
            scheduler.follow(settings)
        elif isinstance(scheduler, OneCycleLR):
            if scheduler.last_epoch == 0 and self.make is OneCycleLR:
                fresh = self._make(scheduler.optimizer, multipliers, budget)
                scheduler.__class__, scheduler.__dict__ = type(fresh), vars(fresh)
            self._check_end(scheduler, budget)
        elif resumed:
            _warn_ended(scheduler)

    def _settings(self, budget: Budget) -> dict[str, Any]:
        """Return the settings of a shape of this package, fractions and epochs in whole steps of the schedule."""
        needed_by = f"lr_scheduler '{self.make}'"
        resolved: dict[str, Any] = {}
        for key, value in self.keywords.items():
            if key == "first_cycle_epochs":
                steps = value * budget.steps_per_epoch(needed_by) / self._interval(budget, needed_by)
                resolved["first_cycle_steps"] = max(1, round(steps))
            elif key.endswith("_steps"):
                part = 0 < value < 1
                resolved[key] = round(value * self._steps(budget, needed_by)) if part else int(value)
            else:
                resolved[key] = value if isinstance(value, str) else float(value)
        if "total_steps" in inspect.signature(getattr(schedules, str(self.make))).parameters:
            resolved["total_steps"] = self._steps(budget, needed_by)
        return resolved

    def _steps(self, budget: Budget, needed_by: str) -> int:
        """Return how many steps the schedule takes in the whole run."""
        return max(1, round(budget.total_steps(needed_by) / self._interval(budget, needed_by)))

    def _end(self, scheduler: LRScheduler, budget: Budget) -> int:
        """Return where a schedule stands when the run ends, in its own steps."""
        needed_by = f"lr_scheduler '{self.make}'"
        return scheduler.last_epoch + round(budget.left(needed_by) / self._interval(budget, needed_by))

    def _interval(self, budget: Budget, needed_by: str) -> float:
        """Return how many optimizer steps lie between two steps of the schedule."""
        frequency = self.lightning.get("frequency", 1)
        if self.lightning.get("interval") == "epoch":
            return float(budget.steps_per_epoch(needed_by) * frequency)
        return budget.between(frequency)

    def _warn_below_peak(self, settings: Mapping[str, Any], budget: Budget) -> None:
        """Warn of a warm-up, with the decay at the end, that is longer than the run."""
        used = settings.get("warmup_steps", 0) + settings.get("decay_steps", 0)
        what = "warms up and decays" if "decay_steps" in settings else "warms up"
        fix = "shorten lr_scheduler.warmup_steps, or write it as a fraction of the run"
        self._warn_too_long(f"lr_scheduler '{self.make}' {what}", used, budget, fix)

    def _warn_of_torchs_warmup(self, scheduler: Any, budget: Budget) -> None:
        """Warn of a warm-up of torch's that is longer than the run."""
        steps, fix = 0.0, ""
        if isinstance(scheduler, LinearLR) and scheduler.start_factor < scheduler.end_factor:
            steps, fix = scheduler.total_iters, "shorten its total_iters"
        elif isinstance(scheduler, OneCycleLR):
            steps = self.keywords.get("pct_start", 0.3) * scheduler.total_steps
            fix = "leave out its total_steps, epochs and steps_per_epoch: it then has the steps of the run"
        elif isinstance(scheduler, CyclicLR):
            steps, fix = self.keywords.get("step_size_up", 2000), "write lr_scheduler.step_size_up=<part of the run>"
        self._warn_too_long(f"{type(scheduler).__name__} warms up", steps, budget, fix)

    def _warn_too_long(self, what: str, used: float, budget: Budget, fix: str) -> None:
        if used and budget.knows_total():
            with contextlib.suppress(ConfigError):  # the length of an epoch is unknown: no reason to refuse the run
                total = self._steps(budget, "")
                if used > total:
                    warn(
                        f"{what} for {used:g} steps, but the run has {total}: the peak learning rate is never reached.",
                        fix=fix,
                    )

    def _check_end(self, scheduler: OneCycleLR, budget: Budget) -> None:
        if not budget.knows_total():
            return
        needed = self._end(scheduler, budget)
        if needed > scheduler.total_steps:
            done = scheduler.last_epoch
            raise ConfigError(
                f"OneCycleLR ends after {scheduler.total_steps} steps, before the run does.",
                found=f"{done} steps done, {needed - done} more to come",
                fix="resume with the max_epochs or max_steps that the run had, use a schedule of this package "
                "(lr_scheduler=warmup_cosine), which is carried on, or start a new run from the weights"
                if done
                else f"leave out total_steps, or write lr_scheduler.total_steps={needed}",
            )

    def _make(self, optimizer: torch.optim.Optimizer, multipliers: list[float], budget: Budget) -> Any:
        """Build a torch class, or call the user's callable."""
        make: Any = self.make
        keywords, name = dict(self.keywords), getattr(make, "__name__", "lr_scheduler")
        if make in (OneCycleLR, CyclicLR):
            keywords["max_lr"] = [group["base_lr"] for group in optimizer.param_groups]
            if isinstance(keywords.get("base_lr"), (int, float)):  # CyclicLR's foot
                keywords["base_lr"] = [keywords["base_lr"] * multiplier for multiplier in multipliers]
        if make is OneCycleLR and not {"total_steps", "epochs", "steps_per_epoch"} & keywords.keys():
            keywords["total_steps"] = self._steps(budget, f"lr_scheduler {name}")
        try:
            scheduler = make(optimizer, **keywords)
        except ConfigError:
            raise
        except (TypeError, ValueError, ZeroDivisionError) as error:
            lacks = missing_keywords(make, keywords) if isinstance(make, type) else []
            fix = "correct its arguments"
            if lacks:
                fix = f"write {', '.join(f'lr_scheduler.{key}=<value>' for key in lacks)}"
            elif "cycle_momentum" in str(error):
                fix = "write lr_scheduler.cycle_momentum=false"
            raise ConfigError(f"lr_scheduler {name} cannot be built: {error}".rstrip(".") + ".", fix=fix) from error
        if self.peak() is None and isinstance(scheduler, (OneCycleLR, CyclicLR)):
            raise ConfigError(
                f"lr_scheduler {name} sets its own peak learning rate, which must be known before the optimizer is "
                "built.",
                fix=f"pass functools.partial({type(scheduler).__name__}, max_lr=...), or the mapping "
                f"{{'name': '{type(scheduler).__name__}', 'max_lr': ...}}",
            )
        if isinstance(scheduler, LRScheduler):
            check_on_load(scheduler, keywords)
        return scheduler


def _warn_ended(scheduler: Any) -> None:
    """Warn where a resumed run goes on after the end of torch's schedule, at next to no learning rate."""
    end = getattr(scheduler, "total_iters", getattr(scheduler, "T_max", math.inf))
    peaks = [group.get("base_lr") or 1.0 for group in scheduler.optimizer.param_groups]
    rates = [float(lr) for lr in scheduler.get_last_lr()] if scheduler.last_epoch >= end else peaks
    if all(rate <= _NEXT_TO_NOTHING * peak for rate, peak in zip(rates, peaks, strict=False)):
        warn(
            f"{type(scheduler).__name__} has ended: the resumed run goes on at a learning rate of {max(rates):.3g}.",
            found=f"{scheduler.last_epoch} steps of the schedule done, and it was made for {end}",
            fix="use a schedule of this package (lr_scheduler=warmup_cosine), which is carried on, or start a new run "
            "from the weights",
        )
