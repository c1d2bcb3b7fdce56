"""A user's :class:`Rule` about some parameters."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from lightning_wd.errors import MaskError, keys, number
from lightning_wd.mask.matching import compile_name, is_a
from lightning_wd.mask.module_tree import whole_shape
from lightning_wd.styles import RENAMED, check_style, check_toward

__all__ = ["PROPERTIES", "Rule", "plain_rule"]

# What a rule can set -> the property that it decides; each hyperparameter is a property of its own.
PROPERTIES = {
    "wd_mult": "weight decay",
    "weight_decay": "weight decay",
    "lr_mult": "learning rate",
    "lr": "learning rate",
    "style": "style",
    "toward": "toward",
    "optimizer": "optimizer",
}
_TYPO = 0.75  # how like a rule's own key another one is that is no hyperparameter: weight_decy, but not lr_decay
# Names of other libraries for a rule's settings.
_RENAMED = {old: new for old, new in {**RENAMED, "decay": "wd_mult"}.items() if new in PROPERTIES}
_RENAMED |= dict.fromkeys(("pattern", "params", "param", "names", "parameters", "match", "regex"), "name")
_RENAMED |= dict.fromkeys(("type", "types", "module_type", "modules", "cls", "classes", "layer_types"), "module_types")
_RENAMED |= dict.fromkeys(("lr_scale", "lr_multiplier", "lr_factor"), "lr_mult")
_RENAMED |= dict.fromkeys(("wd_scale", "decay_mult", "weight_decay_mult", "weight_decay_multiplier"), "wd_mult")
_ALIASES = dict.fromkeys(("exclude", "no_decay", "no_weight_decay"), "write wd_mult: 0 to exclude")


@dataclass(frozen=True, init=False)
class Rule:
    """Settings for the parameters that meet every condition of the rule; a rule without conditions meets all of them.

    For each property (weight decay, learning rate, style, toward, optimizer, each hyperparameter) the first rule that
    sets it wins; weight decay and learning rate by a multiplier of the configured value or by a value of their own.
    What a rule leaves at None is left to later rules, then to the mask's base: a rule with only ``lr_mult`` on
    ``*.head.*`` does not make the head's bias decay. A rule that sets the weight decay does, and
    :func:`lightning_wd.plan_decay` warns about it.

    Args:
        name: glob on the full parameter name (``*`` crosses dots, case counts), or ``regex:`` and a pattern that is
            searched anywhere in the name. A leading ``*.`` also matches at the root: ``*.head.*`` matches
            ``head.weight``.
        module_types: types, class names or dotted paths of the module that owns the parameter; subclasses count. A
            parametrized layer owns its parametrized tensors.
        ndim: exact number of dimensions.
        predicate: ``predicate(name, parameter, module) -> bool``, where ``module`` owns the parameter.
        wd_mult: multiplies the weight decay, >= 0; 0 excludes.
        lr_mult: multiplies the learning rate, >= 0.
        weight_decay: in place of the configured one, >= 0, in the unit of the parameters' style; excludes ``wd_mult``.
        lr: peak learning rate in place of the configured one, >= 0; excludes ``lr_mult``, and ``layer_decay`` does not
            multiply it.
        style: decay style of these parameters, one of :data:`lightning_wd.styles.STYLES`.
        toward: what these parameters decay towards: ``zero``, ``init`` or the path of a checkpoint.
        optimizer: what steps these parameters, a name of this package or the dotted path of a class; they keep the
            configured ``lr`` and ``weight_decay`` unless a rule sets them.
        reason: what the plan says about these parameters; by default, the rule's own conditions.
        **hyperparameters: keywords of the optimizer that steps these parameters, such as ``betas`` or ``momentum``.
            :func:`lightning_wd.configure_optimizers`, which knows that optimizer, refuses what it does not take.

    Raises:
        MaskError: an unknown keyword, or a value that no rule can have.

    Example:
        >>> Rule(name="*.head.weight", wd_mult=0.1, lr_mult=10)
        Rule(name='*.head.weight', wd_mult=0.1, lr_mult=10.0)
        >>> Rule(name="*.head.weight", decay=0.1)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        lightning_wd.errors.MaskError: mask rule has no key 'decay'.
          valid: name, module_types, ndim, predicate, wd_mult, lr_mult, weight_decay, lr, ...
          fix: write wd_mult: 0.1, which multiplies the configured weight decay
    """

    name: str | None = None
    module_types: tuple[type | str, ...] = ()
    ndim: int | None = None
    predicate: Callable[[str, Tensor, nn.Module], bool] | None = None
    wd_mult: float | None = None
    lr_mult: float | None = None
    weight_decay: float | None = None
    lr: float | None = None
    style: str | None = None
    toward: str | None = None
    optimizer: str | None = None
    reason: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __new__(cls, *positional: Any, **settings: Any) -> Rule:
        """Raise a MaskError instead of a bare TypeError."""
        if positional:
            raise MaskError(
                "mask rule takes its settings by keyword only.",
                found=", ".join(map(repr, positional)),
                fix="write Rule(name='*.head.weight', wd_mult=0.1)",
            )
        valid, aliases = [f.name for f in fields(cls) if f.name != "hyperparameters"], {**_ALIASES}
        if isinstance(decays := settings.get("decay"), (bool, int, float)):
            aliases["decay"] = f"write wd_mult: {float(decays):g}, which multiplies the configured weight decay"
        no_hyperparameter = {*_RENAMED, *aliases, *(key for key in settings if not key.isidentifier())}
        no_hyperparameter |= {key for key in settings if difflib.get_close_matches(key, valid, cutoff=_TYPO)}
        wrong = [key for key in settings if key in no_hyperparameter]
        keys("mask rule", wrong, valid, renamed=_RENAMED, aliases=aliases, error=MaskError)
        return super().__new__(cls)

    def __init__(
        self,
        *,
        name: str | None = None,
        module_types: Sequence[type | str] | type | str | None = (),
        ndim: int | None = None,
        predicate: Callable[[str, Tensor, nn.Module], bool] | None = None,
        wd_mult: float | None = None,
        lr_mult: float | None = None,
        weight_decay: float | None = None,
        lr: float | None = None,
        style: str | None = None,
        toward: str | None = None,
        optimizer: str | None = None,
        reason: str = "",
        **hyperparameters: Any,
    ) -> None:
        given = () if module_types is None else module_types
        types = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
        own: dict[str, Any] = {
            "name": name,
            "module_types": types,
            "predicate": predicate,
            "style": style,
            "optimizer": optimizer,
        }
        numbers = {"ndim": ndim, "wd_mult": wd_mult, "lr_mult": lr_mult, "weight_decay": weight_decay, "lr": lr}
        for key, value in numbers.items():
            own[key] = None if value is None else number(f"rule.{key}", value, whole=key == "ndim", error=MaskError)
        own["toward"] = None if toward is None else check_toward("rule.toward", toward, style, MaskError)
        hyperparameters = {key: value for key, value in hyperparameters.items() if value is not None}
        # past the frozen dataclass's __setattr__
        self.__dict__.update(own, reason=reason, hyperparameters=hyperparameters)
        self._check()

    def _check(self) -> None:
        for multiplier, absolute in (("wd_mult", "weight_decay"), ("lr_mult", "lr")):
            factor, value = getattr(self, multiplier), getattr(self, absolute)
            if factor is not None and value is not None:
                raise MaskError(
                    f"mask rule has both {multiplier} and {absolute}.",
                    found=f"{multiplier}={factor:g}, {absolute}={value:g}",
                    fix=f"keep {multiplier} to multiply the configured value, or {absolute} to replace it",
                )
        if self.style is not None:
            check_style("rule.style", self.style, MaskError)
        for key, valid, expected in (
            ("name", isinstance(self.name, str) and self.name, "a glob such as '*.head.*'"),
            (
                "module_types",
                all(isinstance(t, (type, str)) and t for t in self.module_types),
                "classes or class names",
            ),
            ("predicate", callable(self.predicate), "a function of (name, parameter, module)"),
            ("optimizer", isinstance(self.optimizer, str) and self.optimizer, "a name such as 'sgdw' or a dotted path"),
            ("reason", isinstance(self.reason, str), "text"),
            *((key, _is_plain(value), "plain data") for key, value in self.hyperparameters.items()),
        ):
            value = self.hyperparameters.get(key, getattr(self, key, None))
            if value is not None and not valid:
                raise MaskError(
                    f"rule.{key} must be {expected} but got {value!r}.",
                    found=type(value).__name__,
                    fix=f"correct {key}, or remove it from the rule",
                )
        self._pattern  # noqa: B018  a bad regular expression is refused here, not when a model is planned

    @property
    def conditions(self) -> dict[str, Any]:
        """The conditions that the rule sets, as the user wrote them."""
        names = ("name", "module_types", "ndim", "predicate")
        return {key: value for key in names if (value := getattr(self, key)) not in (None, ())}

    @property
    def settings(self) -> dict[str, Any]:
        """What the rule sets."""
        own = {key: value for key in PROPERTIES if (value := getattr(self, key)) is not None}
        return {**own, **self.hyperparameters}

    @property
    def properties(self) -> list[str]:
        """The properties that the rule decides."""
        return [PROPERTIES.get(key, key) for key in self.settings]

    def __repr__(self) -> str:
        given = {**self.conditions, **self.settings, **({"reason": self.reason} if self.reason else {})}
        return f"Rule({', '.join(f'{key}={value!r}' for key, value in given.items())})"

    def __str__(self) -> str:
        return ", ".join(f"{key} {_shown(value)}" for key, value in self.conditions.items()) or "every parameter"

    def matches(self, name: str, parameter: Tensor, module: nn.Module) -> bool:
        """Whether the parameter meets every condition of the rule."""
        return (
            (self._pattern is None or self._pattern(name) is not None)
            and (self.ndim is None or len(whole_shape(parameter)) == self.ndim)
            and (not self.module_types or any(is_a(type(module), kind) for kind in self.module_types))
            and (self.predicate is None or bool(self.predicate(name, parameter, module)))
        )

    @cached_property
    def _pattern(self) -> Callable[[str], Any] | None:
        return None if self.name is None else compile_name(self.name)


def plain_rule(rule: Rule) -> dict[str, Any]:
    """Return a rule without a predicate as plain data, its classes as names."""
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in rule.settings.items()}
    plain = {**rule.conditions, **settings, **({"reason": rule.reason} if rule.reason else {})}
    if rule.module_types:
        kinds = rule.module_types
        plain["module_types"] = [k if isinstance(k, str) else f"{k.__module__}.{k.__qualname__}" for k in kinds]
    return plain


def _is_plain(value: Any) -> bool:
    """Whether a value is one that YAML has: a checkpoint and a config keep it as it is."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return value.__name__ if hasattr(value, "__name__") else repr(value)
