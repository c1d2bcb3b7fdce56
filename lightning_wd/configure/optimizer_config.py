"""The optimizer a user asks for, checked the moment it is said."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from lightning_wd.configure.plain import PlainConfig, as_keywords, plain_mapping, unknown_name
from lightning_wd.decay import AMOUNTS, Decay, check_number, check_style
from lightning_wd.errors import ConfigError, explain, nearest
from lightning_wd.mask import Mask, as_mask
from lightning_wd.optimizers import SGDL2, SGDW, AdamL2, AdamW, MuonAdamW, decoupled
from lightning_wd.optimizers.groups import ON_RESUME

__all__ = ["OptimizerConfig", "optimizer_class"]


class Family(NamedTuple):
    """What stands behind an optimizer's name."""

    cls: type[torch.optim.Optimizer]  # where a group's decay is decoupled
    l2: type[torch.optim.Optimizer]  # where every group is l2
    lr: float  # default learning rate
    typical: str  # the key in `decay.typical`
    defaults: Mapping[str, Any] = MappingProxyType({})  # keywords whose default here is not the class's


def _family(cls: type[torch.optim.Optimizer], lr: float) -> Family:
    made = decoupled(cls)  # type: ignore[arg-type]  # classes are hashable
    return Family(made, made, lr, "adam")


OPTIMIZERS = {
    "adamw": Family(AdamW, AdamL2, 1e-3, "adam"),
    "sgdw": Family(SGDW, SGDL2, 5e-2, "sgd", {"momentum": 0.9}),
    "adam_l2": Family(AdamW, AdamL2, 1e-3, "adam"),
    "sgd_l2": Family(SGDW, SGDL2, 5e-2, "sgd", {"momentum": 0.9}),
    "nadamw": _family(torch.optim.NAdam, 1e-3),
    "radamw": _family(torch.optim.RAdam, 1e-3),
    "rmspropw": _family(torch.optim.RMSprop, 1e-3),
    "adagradw": _family(torch.optim.Adagrad, 1e-2),
    "adamaxw": _family(torch.optim.Adamax, 2e-3),
    "adafactor": _family(torch.optim.Adafactor, 1e-2),
    "muon": Family(MuonAdamW, MuonAdamW, 1e-3, "adam"),
}
DECOUPLED_TWIN = {"adam_l2": "adamw", "sgd_l2": "sgdw"}
_OWN_KEYS = ("name", "lr", "weight_decay", "decay", "mask", "on_resume")
_DECAY_KEYS = ("style", "normalized", "timescale_epochs", "cautious", "typical")
_TARGET = "lightning_wd.OptimizerConfig"
_BELOW_ONE = ("momentum", "alpha", "betas[0]", "betas[1]")
_NOT_HYPERPARAMETERS = ("self", "params", "lr", "weight_decay", "style", "cautious", "decoupled_weight_decay")

# The default amount of each style in its own unit; `conf/optimizer/decay/*.yaml` say the same (a test holds it).
TYPICAL: dict[str, dict[str, float]] = {
    "decoupled": {"adam": 1e-2, "sgd": 5e-3},
    "independent": {"adam": 1e-5, "sgd": 2.5e-4},
    "constant": {"adam": 1e-5, "sgd": 2.5e-4},
    "corrected": {"adam": 1e-2, "sgd": 5e-3},
    "l2": {"adam": 1e-4, "sgd": 5e-4},
    "none": {"adam": 0.0, "sgd": 0.0},
}


class OptimizerConfig(PlainConfig):
    """The optimizer a user asks for: what the Hydra group ``optimizer`` instantiates to.

    It is a mapping of plain values, checked at once. ``save_hyperparameters()`` may keep it, and a plain mapping of the
    same keys is accepted wherever it is.

    Args:
        name: ``adamw``, ``sgdw``, ``adam_l2``, ``sgd_l2``, ``nadamw``, ``radamw``, ``rmspropw``, ``adagradw``,
            ``adamaxw``, ``adafactor`` or ``muon`` (hidden matrices by Muon, the rest by AdamW).
        lr: ``lr0 >= 0``, the peak learning rate.
        weight_decay: ``lam >= 0`` in the unit of the style; None where ``decay`` brings another amount. Neither given:
            the style's own typical amount.
        decay: ``style``, ``normalized``, ``timescale_epochs``, ``cautious`` (see :class:`lightning_wd.Decay`) and
            ``typical`` (the amounts the YAML files offer).
        mask: ``base`` and ``rules`` (see :class:`lightning_wd.Mask`), the name of a preset, or a Mask.
        on_resume: whose settings win when a checkpoint differs: ``checkpoint`` (with a warning), ``config``, or
            ``error``. Another decay style is refused, but for ``config``, which goes on in the configured one.
        **hyperparameters: the optimizer's own keywords, such as ``betas`` or ``momentum``.

    Raises:
        ConfigError: an unknown key or name, a value out of range, two amounts at once, a style that the optimizer
            cannot have.
        MaskError: a mask that cannot be read.

    Example:
        >>> config = OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.1, betas=[0.9, 0.95])
        >>> config["decay"]["style"], config["betas"]
        ('decoupled', [0.9, 0.95])
        >>> config.decay
        Decay(style='decoupled', weight_decay=0.1, normalized=None, timescale_epochs=None, cautious=False)
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._fill(**self.read(args, settings))

    @classmethod
    def of(cls, value: object) -> OptimizerConfig:
        """Return ``value`` as a checked config: a config, a mapping, a DictConfig, a name, or None for the defaults.

        Here, unlike in the constructor, the mask may hold code: this config goes no further than an optimizer.
        """
        keywords = as_keywords(cls, value, "optimizer")
        target = keywords.pop("_target_", _TARGET)
        if target != _TARGET:
            close = nearest(str(target).rpartition(".")[2].lower(), OPTIMIZERS)
            raise ConfigError(
                explain(
                    f"optimizer._target_ is {target!r}, which this function does not build.",
                    valid=_TARGET,
                    nearest=close,
                    fix=f"remove optimizer._target_ and write optimizer.name={close or 'adamw'}",
                )
            )
        mask = keywords.pop("mask", None)
        config = cls(**keywords)
        config["mask"] = _plain_mask(mask, code=True)
        return config

    def _fill(
        self,
        *,
        name: str = "adamw",
        lr: float | None = None,
        weight_decay: float | None = None,
        decay: Mapping[str, Any] | None = None,
        mask: Mapping[str, Any] | str | Mask | None = None,
        on_resume: str = "checkpoint",
        **hyperparameters: Any,
    ) -> None:
        if not isinstance(name, str) or name not in OPTIMIZERS:
            raise ConfigError(unknown_name("optimizer.name", name, OPTIMIZERS))
        family = OPTIMIZERS[name]
        decay = plain_mapping("optimizer.decay", {} if decay is None else decay, _DECAY_KEYS)
        decay.setdefault("style", "l2" if name in DECOUPLED_TWIN else "decoupled")
        _check_style_of(name, decay["style"])
        self["name"] = name
        self["lr"] = check_number("optimizer.lr", family.lr if lr is None else lr)
        self["weight_decay"], self["decay"] = _check_amounts(weight_decay, decay, family.typical)
        _ = self.decay  # refuses an amount that the style cannot have
        self["mask"] = _plain_mask(mask)
        if on_resume not in ON_RESUME:
            raise ConfigError(unknown_name("optimizer.on_resume", on_resume, ON_RESUME))
        self["on_resume"] = on_resume
        given = _check_hyperparameters(name, decay["style"], hyperparameters)
        self.update({**family.defaults, **given})

    @property
    def decay(self) -> Decay:
        """The style and the amount, as a :class:`lightning_wd.Decay`."""
        decay = self["decay"]
        return Decay(
            style=decay["style"],
            weight_decay=self["weight_decay"],
            normalized=decay.get("normalized"),
            timescale_epochs=decay.get("timescale_epochs"),
            cautious=decay.get("cautious", False),
        )

    @property
    def mask(self) -> Any:
        """The mask as :func:`lightning_wd.plan_decay` takes it."""
        return self["mask"]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The optimizer's own keywords, pairs of numbers as the tuples that torch has."""
        own = {key: value for key, value in self.items() if key not in _OWN_KEYS}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}


def optimizer_class(name: str, *, l2: bool) -> type[torch.optim.Optimizer]:
    """Return the optimizer class behind a configured name: the L2 one where every group is ``l2``."""
    return OPTIMIZERS[name].l2 if l2 else OPTIMIZERS[name].cls


def _check_style_of(name: str, style: object) -> None:
    check_style(style, where="optimizer.decay.style")
    twin = DECOUPLED_TWIN.get(name)
    if twin is not None and style not in ("l2", "none"):
        raise ConfigError(
            explain(
                f"optimizer={name} is the L2 form, and optimizer.decay.style {style!r} is decoupled.",
                valid=f"l2 or none with {name}; every style with {twin}",
                nearest=twin,
                fix=f"write optimizer={twin} optimizer/decay={style}",
            )
        )


def _check_amounts(weight_decay: Any, decay: dict[str, Any], family: str) -> tuple[float | None, dict[str, Any]]:
    """Return the checked ``weight_decay`` (where no amount is given, the style's typical one) and ``decay``."""
    typical = plain_mapping("optimizer.decay.typical", decay.get("typical") or {}, ("adam", "sgd"))
    values = {"optimizer.weight_decay": weight_decay}
    values |= {f"optimizer.decay.{amount}": decay.get(amount) for amount in AMOUNTS if amount != "weight_decay"}
    given = {
        where: check_number(where, value, exclusive=where.endswith("timescale_epochs"))
        for where, value in values.items()
        if value is not None
    }
    if len(given) > 1 and decay["style"] != "l2":  # l2 has an error of its own
        raise ConfigError(
            explain(
                "optimizer has more than one amount of decay.",
                found=", ".join(f"{where}={value!r}" for where, value in given.items()),
                valid=f"exactly one of {', '.join(values)}",
                fix="set the others to null, or select the group that brings one amount only: "
                "optimizer/decay=normalized or optimizer/decay=timescale",
            )
        )
    if "cautious" in decay and not isinstance(decay["cautious"], bool):
        raise ConfigError(
            explain(
                f"optimizer.decay.cautious must be true or false but got {decay['cautious']!r}.",
                fix="write optimizer.decay.cautious=true",
            )
        )
    if not given and decay["style"] != "none":
        amount = typical.get(family)
        amount = TYPICAL[decay["style"]][family] if amount is None else amount
        given["optimizer.weight_decay"] = check_number(f"optimizer.decay.typical.{family}", amount)
    checked = {key: given.get(f"optimizer.decay.{key}", value) for key, value in decay.items()}
    return given.get("optimizer.weight_decay"), checked


def _plain_mask(mask: Any, *, code: bool = False) -> Any:
    """Return the mask as plain data, its classes as names; functions in it are refused, or kept where ``code`` is.

    Raises:
        MaskError: a mask that cannot be read.
        ConfigError: a rule with a predicate, which no checkpoint can hold.
    """
    made = as_mask(mask)
    if any(rule.predicate is not None for rule in made.rules):
        if code:
            return made
        raise ConfigError(
            explain(
                "optimizer.mask has a rule with a predicate, and a function is no setting that a checkpoint keeps.",
                fix="build it in configure_optimizers: "
                "wd.configure_optimizers(self, {**self.hparams.optimizer, 'mask': wd.Mask([...])})",
            )
        )
    rules = []
    for rule in made.rules:
        said = {**rule.conditions, **rule.settings, **({"reason": rule.reason} if rule.reason else {})}
        if rule.module_types:
            said["module_types"] = [
                kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
                for kind in rule.module_types
            ]
        rules.append(said)
    plain = {"base": made.base, "rules": rules}
    return plain if made.layer_decay is None else {**plain, "layer_decay": made.layer_decay}


def _hyperparameter_defaults(cls: type[torch.optim.Optimizer]) -> dict[str, Any]:
    """Return the keywords that an optimizer's constructor takes besides those that every config has."""
    # a class of decoupled() brings a signature; AdamW's own is that of __new__, which takes anything
    signature = getattr(cls, "__signature__", None) or inspect.signature(cls.__init__)
    return {key: p.default for key, p in signature.parameters.items() if key not in _NOT_HYPERPARAMETERS}


def _check_hyperparameters(name: str, style: str, given: Mapping[str, Any]) -> dict[str, Any]:
    known = _hyperparameter_defaults(optimizer_class(name, l2=style == "l2"))
    unknown = [key for key in given if key not in known]
    if unknown:
        key = unknown[0]
        others = [other for other in OPTIMIZERS if key in _hyperparameter_defaults(OPTIMIZERS[other].cls)]
        close = nearest(key, [*_OWN_KEYS, *known])
        fix = f"write optimizer.{close}=..., or remove it" if close else f"remove optimizer.{key}"
        if others:
            fix = (
                f"'{key}' belongs to {', '.join(others)} and was left over by a merge: replace the group instead, with "
                f"`optimizer={name}` on the command line or `override /optimizer: {name}` in the defaults list "
                f"(nested: `override /optimizer@model.optimizer: {name}`), not `+optimizer@...`"
            )
        raise ConfigError(
            explain(
                f"optimizer.{key} is not a setting of {name}.",
                found=", ".join(f"{k}={given[k]!r}" for k in unknown),
                valid=[*_OWN_KEYS, *known],
                nearest=close,
                fix=fix,
            )
        )
    return {key: _check_hyperparameter(key, value, known[key]) for key, value in given.items()}


def _check_hyperparameter(key: str, value: Any, default: Any) -> Any:
    """Return a keyword's value in the form of its default, or raise a ConfigError."""
    where = f"optimizer.{key}"
    if isinstance(default, tuple):
        if not isinstance(value, (list, tuple)) or len(value) != len(default):
            raise ConfigError(
                explain(
                    f"{where} must be {len(default)} numbers but got {value!r}.",
                    fix=f"write '{where}={list(default)}'",
                )
            )
        return [_check_hyperparameter(f"{key}[{i}]", *pair) for i, pair in enumerate(zip(value, default, strict=True))]
    if isinstance(default, bool) or (default is None and "[" not in key):
        valid = [True, False] if isinstance(default, bool) else [True, False, None]
        if not any(value is choice for choice in valid):
            names = ["null" if choice is None else str(choice).lower() for choice in valid]
            raise ConfigError(
                explain(
                    f"{where} must be one of {', '.join(names)} but got {value!r}.", fix=f"write {where}={names[-1]}"
                )
            )
        return value
    if value is None and default is None:
        return value
    if isinstance(default, str):
        if not isinstance(value, str):
            raise ConfigError(explain(f"{where} must be text but got {value!r}.", fix=f"write {where}={default}"))
        return value
    number = check_number(where, value, minimum=-math.inf if (default or 0) < 0 else 0.0)
    if key in _BELOW_ONE and number >= 1:
        raise ConfigError(explain(f"{where} must lie in [0, 1) but got {value!r}.", fix=f"write {where}=0.9"))
    return int(number) if isinstance(default, int) and number.is_integer() else number
