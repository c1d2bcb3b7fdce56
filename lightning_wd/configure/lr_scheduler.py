"""The learning-rate schedule a user asks for, and how it is built on an optimizer."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from lightning_wd import schedules
from lightning_wd.configure.budget import Budget
from lightning_wd.configure.checked_mapping import CheckedMapping, as_keywords, show_keys
from lightning_wd.errors import (
    CheckpointMismatchError,
    ConfigError,
    as_typed,
    choice,
    flag,
    keys,
    nearest,
    number,
    warn,
)
from lightning_wd.optimizers.checkpoint import Difference, carry_on, settle
from lightning_wd.optimizers.param_groups import write

__all__ = ["LRSchedule", "LRSchedulerConfig", "ScheduleRequest"]

_NOT_SETTINGS = ("optimizer", "last_epoch", "verbose")
_NEXT_TO_NOTHING = 1e-3  # of the peak
_NEED_CODE = ("LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler")
LIGHTNING_KEYS = ("interval", "frequency", "monitor", "strict")

# shape -> its settings with their defaults; steps are whole numbers, or fractions of the run below 1
SHAPES: dict[str, dict[str, float]] = {
    "none": {},
    "constant": {"warmup_steps": 0},
    "warmup_cosine": {"warmup_steps": 0.05, "min_lr_factor": 0.0},
    "cosine_restarts": {"first_cycle_epochs": 10, "cycle_mult": 2, "min_lr_factor": 0.0},
    "wsd": {"warmup_steps": 0.05, "decay_steps": 0.2, "min_lr_factor": 0.0},
}
_RENAMED = {"warmup": "warmup_steps"}
_ALIASES = dict.fromkeys(("eta_min", "min_lr"), "write lr_scheduler.min_lr_factor, a factor of lr: lowest rate / lr")
_ALIASES |= {
    key: f"pass it to wd.configure_optimizers or OptimizerOverride: (..., {key}=...)"
    for key in ("total_steps", "steps_per_epoch")
}


class LRSchedulerConfig(CheckedMapping):
    """The learning-rate schedule a user asks for: what the Hydra group ``lr_scheduler`` instantiates to.

    Args:
        name: a shape of this package (``none``, ``constant``, ``warmup_cosine``, ``cosine_restarts``, ``wsd``), or the
            dotted path of a class in ``torch.optim.lr_scheduler``.
        interval: ``step`` (every optimizer step, the default) or ``epoch``.
        frequency: how many intervals lie between two steps of the schedule, >= 1.
        monitor: the metric that ``ReduceLROnPlateau`` watches.
        **settings: the shape's own keys, or the keywords of the torch class; None is the default.

    Raises:
        ConfigError: an unknown name or key, or a value out of range.

    Example:
        >>> LRSchedulerConfig(name="warmup_cosine", warmup_steps=100)["min_lr_factor"]
        0.0
    """

    group = "lr_scheduler"

    def _fill(
        self,
        *,
        name: str = "none",
        interval: str | None = None,
        frequency: int = 1,
        monitor: str | None = None,
        strict: bool = True,
        **settings: Any,
    ) -> None:
        lightning = {"interval": interval, "frequency": frequency, "monitor": monitor, "strict": strict}
        _check_lightning(lightning)
        ours = isinstance(name, str) and name in SHAPES
        settings = {key: value for key, value in settings.items() if value is not None}
        checked = _check_shape(name, settings) if ours else _check_torch_scheduler(name, settings)
        dict.update(self, name=name, **lightning, **checked)

    @classmethod
    def of(cls, value: object) -> LRSchedulerConfig:
        """Return ``value`` as a checked config; a ``_target_`` in a mapping is read as the name."""
        if isinstance(value, cls):
            return value
        keywords = as_keywords(cls, value, "lr_scheduler")
        if "_target_" in keywords:
            keywords["name"] = keywords.pop("_target_")
        return cls(**keywords)

    @property
    def settings(self) -> dict[str, Any]:
        """The shape's own keys, or the keywords of the torch class."""
        return {key: value for key, value in self.items() if key not in ("name", *LIGHTNING_KEYS)}


class LRSchedule(LRScheduler):
    """Set ``lr_t = base_lr * eta_t`` for each group, with ``eta_t`` from :mod:`lightning_wd.schedules`.

    The shape and its settings are in ``state_dict``. On resume the checkpoint's win with a warning, or the configured
    ones do, or a difference is an error, as the optimizer's ``on_resume`` says. In a run that is longer or shorter than
    the saved one, ``total_steps`` is the run's own, with a warning.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        shape: ``constant``, ``warmup_cosine``, ``cosine_restarts`` or ``wsd``.
        settings: the arguments of the shape's function besides the step.
        asked: what they were resolved from, which may be parts of the run.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        >>> schedule = LRSchedule(optimizer, "constant", {"warmup_steps": 3})
        >>> schedule.get_last_lr()
        [0.25]
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        shape: str,
        settings: Mapping[str, float],
        asked: Mapping[str, float] | None = None,
    ) -> None:
        self.shape = shape
        self.settings = dict(settings)
        self.asked = dict(settings if asked is None else asked)
        super().__init__(optimizer)

    def eta(self, t: int) -> float:
        """Return the multiplier of the peak learning rate after ``t`` completed steps."""
        return float(getattr(schedules, self.shape)(t, **self.settings))

    def cycle(self, t: int) -> tuple[int, float, float]:
        """Return the index, first step and length of the cycle of ``cosine_restarts`` that holds step ``t``."""
        first, mult = int(self.settings["first_cycle_steps"]), self.settings["cycle_mult"]
        return schedules.restart_cycle(t, first_cycle_steps=first, cycle_mult=mult)

    def get_lr(self) -> list[Any]:
        """Return each group's learning rate for the next step."""
        eta = self.eta(self.last_epoch)
        return [lr * eta for lr in self.base_lrs]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position, and the settings as the optimizer's ``on_resume`` says.

        Raises:
            CheckpointMismatchError: the settings differ and ``on_resume`` is ``error``; or the state is that of another
                class, which cannot be used here, and ``on_resume`` is not ``config``.
        """
        configured = {key: getattr(self, key) for key in ("shape", "settings", "asked", "base_lrs")}
        saved = state_dict.get("settings", {}).get("total_steps")
        same_class = "shape" in state_dict
        if same_class:
            state_dict = self._carried_on(state_dict)
        theirs = _built_as(state_dict, unknown=f"a state with {', '.join(state_dict)}")
        if not same_class:
            state_dict = {key: state_dict[key] for key in ("last_epoch", "_step_count") if key in state_dict}
        own = _settle(self.optimizer, theirs, f"{self.shape} {self.settings}", same_class=same_class)
        super().load_state_dict(state_dict)
        if own:
            self.__dict__.update(configured)
        if own or self.settings.get("total_steps") != saved:
            self._write()

    def follow(self, settings: Mapping[str, float]) -> None:
        """Go on with other settings, from where the schedule is."""
        if settings != self.settings:
            self.settings = dict(settings)
            self._write()

    def _write(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            write(group, "lr", lr)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _carried_on(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the state of a schedule of this shape with the steps of this run.

        Under a trainer they are known at the first step only: then :meth:`ScheduleRequest.follow` says it.
        """
        saved, steps = state["settings"].get("total_steps"), self.settings.get("total_steps")
        if state["shape"] != self.shape or saved is None or steps is None:
            return state
        reading = getattr(self.optimizer, "first_step", None)
        if reading is not None:
            reading.saved_steps = saved
        elif saved != steps:
            carry_on("the learning-rate schedule", saved, steps, getattr(self.optimizer, "on_resume", "checkpoint"))
        settings = self.settings if state.get("asked") == self.asked else {**state["settings"], "total_steps": steps}
        return {**state, "settings": settings}


class _Checked:
    """Mixin for a scheduler of torch: its state says what it was built as, and a state of another one is noticed."""

    described: ClassVar[str]
    optimizer: torch.optim.Optimizer

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "described": self.described}  # type: ignore[misc]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load torch's state if ``on_resume`` allows: it brings the checkpoint's settings and learning rates back."""
        saved = {key: value for key, value in state_dict.items() if key != "described"}
        theirs = _built_as(state_dict, unknown=self.described)
        rates, own_rates = saved.get("base_lrs"), getattr(self, "base_lrs", None)
        if getattr(self.optimizer, "on_resume", "checkpoint") == "config":
            found = "" if rates in (None, own_rates) else f"base_lrs {rates} in the checkpoint, {own_rates} configured"
            if theirs != self.described:
                found = f"{theirs} in the checkpoint, {self.described} configured"
            if found:
                with as_typed(getattr(self.optimizer, "typed", {})):
                    raise CheckpointMismatchError(
                        "on_resume=config cannot replace the learning rates that this schedule restores.",
                        found=found,
                        valid="the checkpoint's learning rates and schedule",
                        fix="use a schedule of the pack (lr_scheduler=warmup_cosine, ...), or on_resume=checkpoint",
                    )
        same_class = theirs.partition("(")[0] == self.described.partition("(")[0]
        _settle(self.optimizer, theirs, self.described, same_class=same_class)
        super().load_state_dict(saved)  # type: ignore[misc]


def _built_as(state: Mapping[str, Any], unknown: str) -> str:
    """Return what a saved schedule was built as."""
    return f"{state['shape']} {state['settings']}" if "shape" in state else str(state.get("described", unknown))


def _settle(optimizer: torch.optim.Optimizer, theirs: str, ours: str, *, same_class: bool) -> bool:
    """Return whether the configured schedule is used, as ``on_resume`` says where it is not the checkpoint's."""
    lost = ("", "") if same_class else ("the checkpoint's is of another class", "write lr_scheduler as it was")
    differences = [Difference(f"{theirs} in the checkpoint, {ours} configured", *lost)] if theirs != ours else []
    with as_typed(getattr(optimizer, "typed", {})):
        return settle("the learning-rate schedule", differences, getattr(optimizer, "on_resume", "checkpoint"))


def _check_on_load(scheduler: LRScheduler, keywords: Mapping[str, Any]) -> None:
    """Let a scheduler of torch compare what it loads with its class and plain settings: ``StepLR(step_size=3)``."""
    cls = type(scheduler)
    plain = {k: v for k, v in sorted(keywords.items()) if isinstance(v, (bool, int, float, str, list, tuple))}
    described = f"{cls.__name__}({', '.join(f'{key}={value!r}' for key, value in plain.items())})"
    scheduler.__class__ = type(cls.__name__, (_Checked, cls), {"described": described, "__module__": cls.__module__})


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
            _check_lightning(lightning)
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
            _warn_below_peak(self.make, settings, budget)
            return {"scheduler": LRSchedule(optimizer, self.make, settings, self.keywords), **lightning}
        scheduler = self._make(optimizer, multipliers, budget)
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
                _warn_below_peak(scheduler.shape, settings, budget)
            scheduler.follow(settings)
        elif isinstance(scheduler, OneCycleLR):
            if scheduler.last_epoch == 0 and self.make is OneCycleLR:
                fresh = self._make(scheduler.optimizer, multipliers, budget)
                scheduler.__class__, scheduler.__dict__ = type(fresh), vars(fresh)
            self._check_end(scheduler, budget)
        elif resumed:
            _warn_ended(scheduler)

    def _end(self, scheduler: LRScheduler, budget: Budget) -> int:
        """Return where a schedule stands when the run ends, in its own steps."""
        needed_by, lightning = f"lr_scheduler '{self.make}'", {"interval": "step", **self.lightning}
        return scheduler.last_epoch + round(budget.left(needed_by) / _interval(budget, needed_by, lightning))

    def _settings(self, budget: Budget) -> dict[str, float]:
        """Return the settings of a shape of this package, in steps of the schedule."""
        return _resolve_shape(str(self.make), self.keywords, budget, {"interval": "step", **self.lightning})

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
            keywords["total_steps"] = _schedule_steps(budget, f"lr_scheduler {name}", self.lightning)
        try:
            scheduler = make(optimizer, **keywords)
        except ConfigError:
            raise
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"lr_scheduler {name} cannot be built: {error}.", fix="correct its arguments") from error
        if self.peak() is None and isinstance(scheduler, (OneCycleLR, CyclicLR)):
            raise ConfigError(
                f"lr_scheduler {name} sets its own peak learning rate, which must be known before the optimizer is "
                "built.",
                fix=f"pass functools.partial({type(scheduler).__name__}, max_lr=...), or the mapping "
                f"{{'name': '{type(scheduler).__name__}', 'max_lr': ...}}",
            )
        if isinstance(scheduler, LRScheduler):
            _check_on_load(scheduler, keywords)
        return scheduler


def _check_lightning(mapping: Mapping[str, Any]) -> None:
    """Check the keys of Lightning's own ``lr_scheduler`` mapping."""
    keys("lr_scheduler", mapping, (*LIGHTNING_KEYS, "name"), typed="lr_scheduler.{}")
    if mapping.get("interval") is not None:
        choice("lr_scheduler.interval", mapping["interval"], ("step", "epoch"))
    number("lr_scheduler.frequency", mapping.get("frequency", 1), minimum=1, whole=True)
    flag("lr_scheduler.strict", mapping.get("strict", True))
    if not isinstance(mapping.get("monitor"), (str, type(None))):
        raise ConfigError(
            f"lr_scheduler.monitor must be a metric's name but got {mapping['monitor']!r}.",
            fix="write lr_scheduler.monitor=val/loss",
        )


def _interval(budget: Budget, needed_by: str, lightning: Mapping[str, Any]) -> float:
    """Return how many optimizer steps lie between two steps of the schedule."""
    frequency = lightning.get("frequency", 1)
    if lightning.get("interval") == "epoch":
        return float(budget.steps_per_epoch(needed_by) * frequency)
    return budget.between(frequency)


def _schedule_steps(budget: Budget, needed_by: str, lightning: Mapping[str, Any]) -> int:
    """Return how many steps the schedule takes in the whole run."""
    return max(1, round(budget.total_steps(needed_by) / _interval(budget, needed_by, lightning)))


def _resolve_shape(
    shape: str, settings: Mapping[str, Any], budget: Budget, lightning: Mapping[str, Any]
) -> dict[str, float]:
    """Turn fractions and epochs into whole steps of the schedule."""
    needed_by = f"lr_scheduler '{shape}'"
    resolved: dict[str, float] = {}
    for key, value in settings.items():
        if key == "first_cycle_epochs":
            steps = value * budget.steps_per_epoch(needed_by) / _interval(budget, needed_by, lightning)
            resolved["first_cycle_steps"] = max(1, round(steps))
        elif key.endswith("_steps"):
            part = 0 < value < 1
            resolved[key] = round(value * _schedule_steps(budget, needed_by, lightning)) if part else int(value)
        else:
            resolved[key] = float(value)
    if "total_steps" in inspect.signature(getattr(schedules, shape)).parameters:
        resolved["total_steps"] = _schedule_steps(budget, needed_by, lightning)
    return resolved


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


def _warn_below_peak(shape: str, settings: Mapping[str, float], budget: Budget) -> None:
    """Warn of a warm-up, with the decay at the end, that is longer than the run."""
    total = settings.get("total_steps", budget.total_steps(shape) if budget.knows_total() else math.inf)
    used = settings.get("warmup_steps", 0) + settings.get("decay_steps", 0)
    if used > total:
        warnings.warn(
            f"lr_scheduler '{shape}' warms up and decays for {used} steps, but the run has {total}: the peak learning "
            "rate is never reached. Shorten lr_scheduler.warmup_steps, or write it as a fraction of the run.",
            UserWarning,
            stacklevel=2,
        )


def scheduler_class(name: str) -> type[LRScheduler]:
    """Return a class of ``torch.optim.lr_scheduler`` by name or dotted path; nothing else is ever imported."""
    classes = _torch_classes()
    leaf = str(name).removeprefix("torch.optim.lr_scheduler.")
    if leaf not in classes or leaf in _NEED_CODE:
        close = nearest(leaf, [*SHAPES, *classes])
        raise ConfigError(
            f"lr_scheduler {name!r} is not a schedule of this package or a class of torch.optim.lr_scheduler.",
            valid=[*SHAPES, "torch.optim.lr_scheduler.<class>"],
            nearest=f"torch.optim.lr_scheduler.{close}" if close in classes else close,
            fix="write one of these names; a schedule that needs code is given in Python as a callable "
            "`optimizer -> scheduler`",
        )
    return classes[leaf]


def _torch_classes() -> dict[str, type[LRScheduler]]:
    public = {key: value for key, value in vars(torch.optim.lr_scheduler).items() if not key.startswith("_")}
    return {key: cls for key, cls in public.items() if isinstance(cls, type) and issubclass(cls, LRScheduler)}


def _check_shape(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    known = SHAPES[name]
    valid = ["name", *known, *LIGHTNING_KEYS]
    keys(f"lr_scheduler '{name}'", settings, valid, typed="lr_scheduler.{}", renamed=_RENAMED, aliases=_ALIASES)
    checked: dict[str, Any] = {}
    for key, value in {**known, **settings}.items():
        where, factor = f"lr_scheduler.{key}", key == "min_lr_factor"
        least, most = (1.0 if key == "cycle_mult" else 0.0), (1.0 if factor else float("inf"))
        amount = number(where, value, minimum=least, at_most=most, exclusive=key == "first_cycle_epochs")
        if key.endswith("_steps") and amount >= 1 and not amount.is_integer():
            raise ConfigError(
                f"{where} must be a whole number of steps, or a fraction of the run below 1, but got {value!r}.",
                fix=f"write {where}={round(amount)} or {where}=0.05",
            )
        checked[key] = int(amount) if amount.is_integer() and not factor else amount
    return checked


def _check_torch_scheduler(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    cls = scheduler_class(name)
    parameters = inspect.signature(cls).parameters
    known = [key for key in parameters if key not in _NOT_SETTINGS]
    keys(f"lr_scheduler {cls.__name__}", settings, [*known, *LIGHTNING_KEYS], typed="lr_scheduler.{}")
    for key, value in settings.items():
        if key in known and parameters[key].annotation in (int, float, "int", "float"):
            # torch looks at these only when it first divides by them
            number(f"lr_scheduler.{key}", value, exclusive=key in ("step_size", "T_max", "T_0"))
    return dict(settings)


def _setting_types() -> dict[str, Any]:
    """Return every setting of a shape with its type, and every keyword of torch's classes."""
    classes = [cls for key, cls in _torch_classes().items() if key not in _NEED_CODE]
    torchs = dict.fromkeys((key for cls in classes for key in inspect.signature(cls).parameters), Any)
    shapes = {key: float | None for settings in SHAPES.values() for key in settings}
    return {key: kind for key, kind in {**shapes, **torchs}.items() if key not in _NOT_SETTINGS}


show_keys(LRSchedulerConfig, _setting_types())
