"""The learning-rate schedule a user asks for: its keys and values, checked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from lightning_wd.configure.checked_mapping import CheckedMapping, as_keywords, show_keys
from lightning_wd.errors import ConfigError, choice, flag, keys, nearest, number
from lightning_wd.schedules import FALLS

__all__ = ["LIGHTNING_KEYS", "SHAPES", "LRSchedulerConfig", "check_lightning", "scheduler_class"]

_NOT_SETTINGS = ("optimizer", "last_epoch", "verbose")
_NEED_CODE = ("LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler")
LIGHTNING_KEYS = ("interval", "frequency", "monitor", "strict")

# shape -> its settings with their defaults; steps are whole numbers, or fractions of the run below 1
SHAPES: dict[str, dict[str, Any]] = {
    "none": {},
    "constant": {"warmup_steps": 0},
    "warmup_cosine": {"warmup_steps": 0.05, "min_lr_factor": 0.0},
    "warmup_linear": {"warmup_steps": 0.05, "min_lr_factor": 0.0},
    "warmup_one_minus_sqrt": {"warmup_steps": 0.05, "min_lr_factor": 0.0},
    "cosine_restarts": {"first_cycle_epochs": 10, "cycle_mult": 2, "min_lr_factor": 0.0},
    "wsd": {"warmup_steps": 0.05, "decay_steps": 0.2, "decay_shape": "linear", "min_lr_factor": 0.0},
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
        name: a shape of this package (``none``, ``constant``, ``warmup_cosine``, ``warmup_linear``,
            ``warmup_one_minus_sqrt``, ``cosine_restarts``, ``wsd``), or the dotted path of a class in
            ``torch.optim.lr_scheduler``.
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
        check_lightning(lightning)
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


def check_lightning(mapping: Mapping[str, Any]) -> None:
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
        if key == "decay_shape":
            checked[key] = choice(where, value, FALLS)
            continue
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
    defaults = {key: default for settings in SHAPES.values() for key, default in settings.items()}
    shapes = {key: str | None if isinstance(default, str) else float | None for key, default in defaults.items()}
    return {key: kind for key, kind in {**shapes, **torchs}.items() if key not in _NOT_SETTINGS}


show_keys(LRSchedulerConfig, _setting_types())
