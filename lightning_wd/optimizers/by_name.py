"""Optimizers by the names of the configs: those of the pack, and any other class by its dotted path."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from lightning_wd.errors import ConfigError, choice
from lightning_wd.optimizers.adamw import AdamL2, AdamW
from lightning_wd.optimizers.constructor import keywords_of, parameters_of
from lightning_wd.optimizers.decoupled import decoupled
from lightning_wd.optimizers.dotted_path import import_optimizer
from lightning_wd.optimizers.muon import Muon
from lightning_wd.optimizers.sgdw import SGDL2, SGDW

__all__ = [
    "DOTTED_PATH",
    "OPTIMIZERS",
    "REQUIRED",
    "Entry",
    "entry",
    "hyperparameters_of",
    "optimizer_class",
    "steppers",
]

DOTTED_PATH = "the dotted path of a class, as in timm.optim.Lion"
REQUIRED = inspect.Parameter.empty  # the default of a keyword that has none
_NOT_HYPERPARAMETERS = "self params lr weight_decay style cautious_wd decoupled_weight_decay toward".split()


class Entry(NamedTuple):
    """What stands behind an optimizer's name."""

    cls: type[Optimizer]  # where some group's decay is decoupled
    l2: type[Optimizer]  # where every group is l2
    lr: float | None  # default learning rate
    typical: str  # the key in `decay.typical`: adagrad is Adagrad and Adafactor, whose lr is ten times Adam's
    defaults: Mapping[str, Any] = MappingProxyType({})  # keywords whose default here is not the class's


def _entry(cls: type[Optimizer], lr: float | None, typical: str = "adam") -> Entry:
    made = decoupled(cls)  # type: ignore[arg-type]  # classes are hashable
    return Entry(made, made.l2_form or made, lr, typical)


OPTIMIZERS = {
    "adamw": Entry(AdamW, AdamL2, 1e-3, "adam"),
    "sgdw": Entry(SGDW, SGDL2, 5e-2, "sgd", {"momentum": 0.9}),
    "adam_l2": Entry(AdamW, AdamL2, 1e-3, "adam"),
    "sgd_l2": Entry(SGDW, SGDL2, 5e-2, "sgd", {"momentum": 0.9}),
    "nadamw": _entry(torch.optim.NAdam, 1e-3),
    "radamw": _entry(torch.optim.RAdam, 1e-3),
    "rmspropw": _entry(torch.optim.RMSprop, 1e-3),
    "adagradw": _entry(torch.optim.Adagrad, 1e-2, "adagrad"),
    "adamaxw": _entry(torch.optim.Adamax, 2e-3),
    "adafactor": _entry(torch.optim.Adafactor, 1e-2, "adagrad"),
    "muon": Entry(Muon, Muon, 1e-3, "muon"),
}


def entry(name: object, where: str = "optimizer.name") -> Entry:
    """Return what stands behind a name of the pack, or behind the dotted path of a ``torch.optim.Optimizer`` class.

    A class gets decoupled decay by :func:`lightning_wd.decoupled`; its learning rate is its own default. ``where`` is
    how messages call the setting.

    Raises:
        ConfigError: an unknown name, a path that leads to no such class, or a class that cannot be decoupled or takes
            no parameter groups or no learning rate.

    >>> entry("adagradw").cls.__name__, entry("torch.optim.Adadelta").cls.__name__
    ('AdagradW', 'AdadeltaW')
    >>> entry("torch.optim.Adam").cls is AdamW
    True
    """
    if isinstance(name, str) and "." in name:
        return _entry_at(name)
    cls = name if isinstance(name, type) else type(name)
    if issubclass(cls, Optimizer):
        raise ConfigError(
            f"{where} must be text but got {'the class' if cls is name else 'an instance of'} {cls.__name__}.",
            valid=[*OPTIMIZERS, DOTTED_PATH],
            fix=f"write '{cls.__module__}.{cls.__qualname__}', and its settings beside it",
        )
    return OPTIMIZERS[choice(where, name, OPTIMIZERS, also=DOTTED_PATH)]


@functools.cache
def _entry_at(path: str) -> Entry:
    cls = import_optimizer(path)
    named = next((name for name, known in OPTIMIZERS.items() if cls in (known.cls, known.l2)), None)
    if named is not None:
        raise ConfigError(f"{path} has a name of its own here.", nearest=named, fix=f"write {named}")
    first = next(iter(parameters_of(cls)), "nothing")
    if first in ("nothing", "model", "optimizer", "base_optimizer") or first.startswith("named"):
        raise ConfigError(
            f"{path} takes {first!r} first, not groups of parameters: a mask cannot split what it trains.",
            fix="name an optimizer that takes parameter groups, as those of torch.optim do",
        )
    lr = keywords_of(cls).get("lr")
    if lr is None:
        raise ConfigError(
            f"{path} takes no lr, which units, schedules and rules need.",
            found=f"keywords {', '.join(keywords_of(cls))}",
            fix="name an optimizer with a learning rate",
        )
    return _entry(cls, float(lr.default) if isinstance(lr.default, (int, float)) else None)


def optimizer_class(name: object, style: str, where: str = "optimizer.name") -> type[Optimizer]:
    """Return the class that a name stands for, in the form for a decay style.

    >>> optimizer_class("sgdw", "l2").__name__, optimizer_class("torch.optim.SGD", "decoupled").__name__
    ('SGDL2', 'SGDW')
    """
    found = entry(name, where)
    return found.l2 if style == "l2" else found.cls


def steppers(name: str) -> tuple[str, ...]:
    """Return what steps a model whose optimizer is configured by this name.

    >>> steppers("sgdw"), steppers("muon")
    (('sgdw',), ('adamw', 'muon'))
    """
    return ("adamw", "muon") if name == "muon" else (name,)


def hyperparameters_of(cls: type[Optimizer]) -> dict[str, Any]:
    """Return the keywords of an optimizer besides those that every config has, with their defaults.

    One without a default has :data:`REQUIRED`.

    >>> hyperparameters_of(optimizer_class("adagradw", "decoupled"))["eps"]
    1e-10
    """
    return {key: p.default for key, p in keywords_of(cls).items() if key not in _NOT_HYPERPARAMETERS}
