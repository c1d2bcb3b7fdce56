"""The learning-rate schedule a user asks for, and how it is built on an optimizer."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from lightning_wd import schedules
from lightning_wd.configure.plain import PlainConfig, as_keywords, unknown_name
from lightning_wd.configure.steps import Budget
from lightning_wd.decay import check_number
from lightning_wd.errors import CheckpointMismatchError, ConfigError, explain, nearest

__all__ = ["LRSchedule", "LRSchedulerConfig", "ScheduleRequest"]

_NEED_CODE = ("LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler")
_TARGET = "lightning_wd.LRSchedulerConfig"
LIGHTNING_KEYS = ("interval", "frequency", "monitor", "strict")


# shape -> its settings with their defaults; steps are whole numbers, or fractions of the run below 1
SHAPES: dict[str, dict[str, float]] = {
    "none": {},
    "constant": {"warmup_steps": 0},
    "warmup_cosine": {"warmup_steps": 0.05, "eta_min": 0.0},
    "cosine_restarts": {"first_cycle_epochs": 10, "cycle_mult": 2, "eta_min": 0.0},
    "wsd": {"warmup_steps": 0.05, "decay_steps": 0.2, "eta_min": 0.0},
}


class LRSchedulerConfig(PlainConfig):
    """The learning-rate schedule a user asks for: what the Hydra group ``lr_scheduler`` instantiates to.

    Args:
        name: a shape of this package (``none``, ``constant``, ``warmup_cosine``, ``cosine_restarts``, ``wsd``), or the
            dotted path of a class in ``torch.optim.lr_scheduler``.
        interval: ``step`` (every optimizer step, the default) or ``epoch``.
        frequency: how many intervals lie between two steps of the schedule, >= 1.
        monitor: the metric that ``ReduceLROnPlateau`` watches.
        **settings: the shape's own keys, or the keywords of the torch class.

    Raises:
        ConfigError: an unknown name or key, or a value out of range.

    Example:
        >>> LRSchedulerConfig(name="warmup_cosine", warmup_steps=100)["eta_min"]
        0.0
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._fill(**self.read(args, settings))

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
        self.update(name=name, **lightning)
        ours = isinstance(name, str) and name in SHAPES
        self.update(_check_shape(name, settings) if ours else _check_torch_scheduler(name, settings))

    @classmethod
    def of(cls, value: object) -> LRSchedulerConfig:
        """Return ``value`` as a checked config; a ``_target_`` in a mapping is read as the name."""
        keywords = as_keywords(cls, value, "lr_scheduler")
        target = keywords.pop("_target_", _TARGET)
        return cls(**keywords) if target == _TARGET else cls(**{**keywords, "name": target})

    @property
    def settings(self) -> dict[str, Any]:
        """The shape's own keys, or the keywords of the torch class."""
        return {key: value for key, value in self.items() if key not in ("name", *LIGHTNING_KEYS)}


class LRSchedule(LRScheduler):
    """Set ``lr_t = base_lr * eta_t`` for each group, with ``eta_t`` from :mod:`lightning_wd.schedules`.

    The shape and its settings are in ``state_dict``. On resume the checkpoint's win with a warning, or the configured
    ones do, or a difference is an error, as the optimizer's ``on_resume`` says.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        shape: ``constant``, ``warmup_cosine``, ``cosine_restarts`` or ``wsd``.
        settings: the arguments of the shape's function besides the step.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        >>> schedule = LRSchedule(optimizer, "constant", {"warmup_steps": 3})
        >>> schedule.get_last_lr()
        [0.25]
    """

    def __init__(self, optimizer: torch.optim.Optimizer, shape: str, settings: Mapping[str, float]) -> None:
        self.shape = shape
        self.settings = dict(settings)
        super().__init__(optimizer)

    def eta(self, t: int) -> float:
        """Return the multiplier of the peak learning rate after ``t`` completed steps."""
        function: Callable[..., float] = getattr(schedules, self.shape)
        return function(t, **self.settings)

    def get_lr(self) -> list[Any]:
        """Return each group's learning rate for the next step."""
        eta = self.eta(self.last_epoch)
        return [lr * eta for lr in self.base_lrs]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position, and the settings as ``on_resume`` says.

        Raises:
            CheckpointMismatchError: the settings differ and ``on_resume`` is ``error``; or the state is that of another
                class, which cannot win here, and ``on_resume`` is not ``config``.
        """
        configured = {"shape": self.shape, "settings": self.settings, "base_lrs": self.base_lrs}
        saved = {key: state_dict.get(key) for key in configured}
        on_resume = getattr(self.optimizer, "on_resume", "checkpoint")
        if any(saved[key] != configured[key] for key in ("shape", "settings")):
            foreign = saved["shape"] is None
            theirs = f"a state with {', '.join(state_dict)}" if foreign else f"{saved['shape']} {saved['settings']}"
            text = explain(
                "the learning-rate schedule of the checkpoint differs from the configured one.",
                found=f"checkpoint {theirs}, configured {self.shape} {self.settings}",
                fix="on_resume=config takes the configured one, "
                + ("or write lr_scheduler as it was" if foreign else "on_resume=checkpoint the checkpoint's"),
            )
            if on_resume == "error" or (foreign and on_resume != "config"):
                raise CheckpointMismatchError(text)
            winner = "configured one" if on_resume == "config" else "checkpoint's"
            warnings.warn(f"{text}\n  now: the {winner} is used", UserWarning, stacklevel=2)
            if foreign:
                state_dict = {key: state_dict[key] for key in ("last_epoch", "_step_count") if key in state_dict}
        super().load_state_dict(state_dict)
        if on_resume == "config":
            self.__dict__.update(configured)
            for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
                group["lr"] = lr
            self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


@dataclass(frozen=True)
class ScheduleRequest:
    """A schedule that was asked for and is not built yet: a shape of ours, a torch class, or any callable."""

    make: str | Callable[..., Any]
    keywords: dict[str, Any]
    lightning: dict[str, Any]

    @classmethod
    def of(cls, value: object) -> ScheduleRequest | None:
        """Read every accepted form: a config, a mapping, a partial, a callable, or Lightning's own mapping.

        Raises:
            ConfigError: a scheduler that is already built (on another optimizer), or what is none of these.
        """
        lightning: dict[str, Any] = {}
        if isinstance(value, Mapping) and "scheduler" in value:
            lightning = {str(key): item for key, item in value.items() if key != "scheduler"}
            _check_lightning(lightning)
            value = value["scheduler"]
        if isinstance(value, (LRScheduler, ReduceLROnPlateau)):
            raise ConfigError(
                explain(
                    f"lr_scheduler is a {type(value).__name__} that was already built on another optimizer.",
                    fix=f"pass a callable: functools.partial({type(value).__name__}, ...)",
                )
            )
        if callable(value) and not isinstance(value, PlainConfig):
            keywords = dict(value.keywords) if isinstance(value, functools.partial) else {}
            make = value.func if isinstance(value, functools.partial) and not value.args else value
            if make is value:
                keywords = {}
            named = {key: keywords.pop(key) for key in LIGHTNING_KEYS if key in keywords}
            return cls(make, keywords, {**named, **lightning})
        config = LRSchedulerConfig.of(value)
        if config["name"] == "none":
            return None
        make = config["name"] if config["name"] in SHAPES else scheduler_class(config["name"])
        given = {key: config[key] for key in LIGHTNING_KEYS if config[key] is not None}
        return cls(make, config.settings, {**given, **lightning})

    def peak(self) -> Any:
        """Return the peak learning rate that the schedule brings itself (``max_lr``), or None."""
        return self.keywords.get("max_lr") if self.make in (OneCycleLR, CyclicLR) else None

    @property
    def rebases(self) -> bool:
        """Whether a checkpoint's learning rates can be replaced by the configured ones."""
        return isinstance(self.make, str)

    def build(self, optimizer: torch.optim.Optimizer, multipliers: list[float], budget: Budget) -> dict[str, Any]:
        """Build the schedule on an optimizer and return Lightning's ``lr_scheduler`` mapping.

        Args:
            optimizer: its groups hold their peaks in ``base_lr``.
            multipliers: each group's learning-rate multiplier.
            budget: the steps of the run, asked only where the schedule needs them.
        """
        lightning = dict(self.lightning)
        scheduler: Any
        keywords: dict[str, Any] = {}  # an LRSchedule keeps its own in its state
        if isinstance(self.make, str):
            lightning.setdefault("interval", "step")
            per_epoch, frequency = lightning["interval"] == "epoch", lightning.get("frequency", 1)
            settings = _resolve_shape(self.make, self.keywords, budget, per_epoch=per_epoch, frequency=frequency)
            scheduler = LRSchedule(optimizer, self.make, settings)
        else:
            keywords.update(self.keywords)
            name = getattr(self.make, "__name__", "lr_scheduler")
            if self.make in (OneCycleLR, CyclicLR):
                keywords["max_lr"] = [group["base_lr"] for group in optimizer.param_groups]
                if isinstance(keywords.get("base_lr"), (int, float)):  # CyclicLR's foot
                    keywords["base_lr"] = [keywords["base_lr"] * multiplier for multiplier in multipliers]
            if self.make is OneCycleLR and not {"total_steps", "epochs", "steps_per_epoch"} & keywords.keys():
                needed_by = f"lr_scheduler {name}"
                unit = budget.steps_per_epoch(needed_by) if lightning.get("interval") == "epoch" else 1
                steps = budget.total_steps(needed_by) / unit / lightning.get("frequency", 1)
                keywords["total_steps"] = max(1, round(steps))
            try:
                scheduler = self.make(optimizer, **keywords)
            except ConfigError:
                raise
            except (TypeError, ValueError, ZeroDivisionError) as error:
                raise ConfigError(
                    explain(f"lr_scheduler {name} cannot be built: {error}.", fix="correct its arguments")
                ) from error
            if self.peak() is None and isinstance(scheduler, (OneCycleLR, CyclicLR)):
                raise ConfigError(
                    explain(
                        f"lr_scheduler {name} brings its own peak learning rate, from which decay is reckoned, and "
                        "which is not known before the optimizer is built.",
                        fix=f"pass functools.partial({type(scheduler).__name__}, max_lr=...), or the mapping "
                        f"{{'name': '{type(scheduler).__name__}', 'max_lr': ...}}",
                    )
                )
        plateau = isinstance(scheduler, ReduceLROnPlateau)
        if plateau and not lightning.get("monitor"):
            raise ConfigError(
                explain("ReduceLROnPlateau needs the metric to watch.", fix="write lr_scheduler.monitor=val/loss")
            )
        lightning.setdefault("interval", "epoch" if plateau else "step")
        for group in optimizer.param_groups:
            group["lr_scheduler"] = _described(scheduler, keywords)
        return {"scheduler": scheduler, **lightning}


def _described(scheduler: Any, keywords: Mapping[str, Any]) -> str:
    """Return a schedule's class and plain settings as text, for a checkpoint to be compared with.

    >>> _described(torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], lr=1.0), 3), {"step_size": 3})
    'StepLR(step_size=3)'
    """
    plain = {
        key: value for key, value in sorted(keywords.items()) if isinstance(value, (bool, int, float, str, list, tuple))
    }
    return f"{type(scheduler).__name__}({', '.join(f'{key}={value!r}' for key, value in plain.items())})"


def _check_lightning(keys: Mapping[str, Any]) -> None:
    """Check the keys of Lightning's own ``lr_scheduler`` mapping."""
    for key in keys:
        if key not in (*LIGHTNING_KEYS, "name"):
            raise ConfigError(unknown_name("lr_scheduler key", key, LIGHTNING_KEYS))
    interval, frequency = keys.get("interval"), keys.get("frequency", 1)
    if interval not in (None, "step", "epoch"):
        raise ConfigError(unknown_name("lr_scheduler.interval", interval, ("step", "epoch")))
    if not isinstance(frequency, int) or isinstance(frequency, bool) or frequency < 1:
        raise ConfigError(
            explain(
                f"lr_scheduler.frequency must be a whole number >= 1 but got {frequency!r}.",
                fix="write lr_scheduler.frequency=1",
            )
        )
    if not isinstance(keys.get("strict", True), bool):
        raise ConfigError(
            explain(
                f"lr_scheduler.strict must be true or false but got {keys['strict']!r}.",
                fix="write lr_scheduler.strict=true",
            )
        )
    if not isinstance(keys.get("monitor"), (str, type(None))):
        raise ConfigError(
            explain(
                f"lr_scheduler.monitor must be a metric's name but got {keys['monitor']!r}.",
                fix="write lr_scheduler.monitor=val/loss",
            )
        )


def _resolve_shape(
    shape: str, settings: Mapping[str, Any], budget: Budget, *, per_epoch: bool, frequency: int
) -> dict[str, float]:
    """Turn fractions and epochs into whole steps of the schedule."""
    needed_by = f"lr_scheduler '{shape}'"
    unit = (budget.steps_per_epoch(needed_by) if per_epoch else 1) * frequency

    def total() -> int:
        return max(1, round(budget.total_steps(needed_by) / unit))

    resolved: dict[str, float] = {}
    for key, value in settings.items():
        if key == "first_cycle_epochs":
            epoch = 1 if per_epoch else budget.steps_per_epoch(needed_by)
            resolved["first_cycle_steps"] = max(1, round(value * epoch / frequency))
        elif key.endswith("_steps"):
            resolved[key] = round(value * total()) if 0 < value < 1 else int(value)
        else:
            resolved[key] = float(value)
    if "total_steps" in inspect.signature(getattr(schedules, shape)).parameters:
        resolved["total_steps"] = total()
        used = resolved["warmup_steps"] + resolved.get("decay_steps", 0)
        if used > total():
            warnings.warn(
                f"{needed_by} warms up and decays for {used} steps, but the run has {total()}: the peak learning rate "
                "is never reached. Shorten lr_scheduler.warmup_steps, or write it as a fraction of the run.",
                UserWarning,
                stacklevel=2,
            )
    return resolved


def scheduler_class(name: str) -> type[LRScheduler]:
    """Return a class of ``torch.optim.lr_scheduler`` by name or dotted path; nothing else is ever imported.

    Raises:
        ConfigError: there is no such class; the nearest name is given.
    """
    classes = {
        key: value
        for key, value in vars(torch.optim.lr_scheduler).items()
        if isinstance(value, type) and issubclass(value, LRScheduler) and not key.startswith("_")
    }
    leaf = str(name).removeprefix("torch.optim.lr_scheduler.")
    if leaf not in classes or leaf in _NEED_CODE:
        close = nearest(leaf, [*SHAPES, *classes])
        raise ConfigError(
            explain(
                f"lr_scheduler {name!r} is not a schedule of this package or a class of torch.optim.lr_scheduler.",
                valid=[*SHAPES, "torch.optim.lr_scheduler.<class>"],
                nearest=f"torch.optim.lr_scheduler.{close}" if close in classes else close,
                fix="write one of these names; a schedule that needs code is given in Python as a callable "
                "`optimizer -> scheduler`",
            )
        )
    return classes[leaf]


def _check_shape(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    known = SHAPES[name]
    for key in settings:
        if key not in known:
            close = nearest(key, [*known, *LIGHTNING_KEYS])
            raise ConfigError(
                explain(
                    f"lr_scheduler.{key} is not a setting of '{name}'.",
                    valid=["name", *known, *LIGHTNING_KEYS],
                    nearest=close,
                    fix=f"write lr_scheduler.{close}=..." if close else f"remove lr_scheduler.{key}",
                )
            )
    checked: dict[str, Any] = {}
    for key, value in {**known, **settings}.items():
        where = f"lr_scheduler.{key}"
        number = check_number(
            where, value, minimum=1.0 if key == "cycle_mult" else 0.0, exclusive=key == "first_cycle_epochs"
        )
        if key == "eta_min" and number > 1:
            raise ConfigError(
                explain(
                    f"{where} is a multiplier of the peak lr, in [0, 1], but got {value!r}.", fix=f"write {where}=0.1"
                )
            )
        if key.endswith("_steps") and number >= 1 and not number.is_integer():
            raise ConfigError(
                explain(
                    f"{where} must be a whole number of steps, or a fraction of the run below 1, but got {value!r}.",
                    fix=f"write {where}={round(number)} or {where}=0.05",
                )
            )
        checked[key] = int(number) if number.is_integer() and key != "eta_min" else number
    return checked


def _check_torch_scheduler(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    cls = scheduler_class(name)
    parameters = inspect.signature(cls).parameters
    known = [key for key in parameters if key not in ("optimizer", "last_epoch", "verbose")]
    for key, value in settings.items():
        if key not in known:
            close = nearest(key, [*known, *LIGHTNING_KEYS])
            raise ConfigError(
                explain(
                    f"lr_scheduler.{key} is not an argument of {cls.__name__}.",
                    valid=[*known, *LIGHTNING_KEYS],
                    nearest=close,
                    fix=f"write lr_scheduler.{close}=..." if close else f"remove lr_scheduler.{key}",
                )
            )
        if parameters[key].annotation in (int, float, "int", "float"):
            # torch looks at these only when it first divides by them
            check_number(f"lr_scheduler.{key}", value, minimum=0.0, exclusive=key in ("step_size", "T_max", "T_0"))
    return dict(settings)
