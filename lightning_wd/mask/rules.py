"""What a user may say about parameters: one :class:`Rule` at a time, and a :class:`Mask` of rules over a preset."""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from lightning_wd.decay import check_number, check_style
from lightning_wd.errors import ConfigError, MaskError, explain, nearest
from lightning_wd.mask.names import whole_shape

__all__ = ["PRESETS", "Mask", "Rule", "as_mask"]

PRESETS = ("standard", "no_embeddings", "matrices", "all", "none")


@dataclass(frozen=True)
class Rule:
    """Settings for the parameters that meet every condition of the rule; with no condition it meets all of them.

    A group's coefficient is ``weight_decay * decay`` and its learning rate ``lr * Rule.lr``. A property that the rule
    leaves at None is left to later rules and then to the base, so an lr-only rule on ``*.head.*`` does not make the
    head's bias decay. A rule with a decay does, and :func:`lightning_wd.plan_decay` warns of it.

    Args:
        decay: multiplies the coefficient, >= 0; 0 excludes.
        name: glob on the full parameter name (``*`` crosses dots, case counts), or ``regex:`` and a pattern that is
            searched anywhere in the name. A leading ``*.`` also matches at the root: ``*.head.*`` matches
            ``head.weight``.
        module_types: classes of the module that owns the parameter (subclasses count): types, class names, or
            dotted paths. A parametrized layer owns its parametrized tensors.
        ndim: exact number of dimensions.
        predicate: ``predicate(name, parameter, module) -> bool``, where ``module`` owns the parameter.
        lr: multiplies the learning rate, >= 0.
        style: decay style of these parameters, one of :data:`lightning_wd.decay.STYLES`.
        reason: what the plan says about these parameters; by default, the rule's own conditions.

    Raises:
        MaskError: a value that no rule can have.

    Example:
        >>> Rule(0.1, name="*.head.weight", lr=10)
        Rule(decay=0.1, name='*.head.weight', lr=10.0)
        >>> Rule(name="regex:(")
        Traceback (most recent call last):
        ...
        lightning_wd.errors.MaskError: mask pattern 'regex:(' is not a regular expression.
          found: missing ), unterminated subpattern at position 0
          fix: correct the pattern, or write a glob such as '*.head.*'
    """

    decay: float | None = None
    _: KW_ONLY
    name: str | None = None
    module_types: tuple[type | str, ...] = ()
    ndim: int | None = None
    predicate: Callable[[str, Tensor, nn.Module], bool] | None = None
    lr: float | None = None
    style: str | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        given = () if self.module_types is None else self.module_types
        types = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
        object.__setattr__(self, "module_types", types)
        try:
            for key in ("decay", "lr"):
                if getattr(self, key) is not None:
                    object.__setattr__(self, key, check_number(f"mask rule's {key}", getattr(self, key)))
            if self.style is not None:
                check_style(self.style, where="mask rule's style")
        except ConfigError as error:
            raise MaskError(str(error)) from None
        for key, valid, expected in (
            ("name", isinstance(self.name, str) and self.name, "a glob such as '*.head.*'"),
            ("module_types", all(isinstance(t, (type, str)) and t for t in types), "classes or class names"),
            ("ndim", type(self.ndim) is int and self.ndim >= 0, "a whole number >= 0"),
            ("predicate", callable(self.predicate), "a function of (name, parameter, module)"),
            ("reason", isinstance(self.reason, str), "text"),
        ):
            value = getattr(self, key)
            if value is not None and not valid:
                raise MaskError(
                    explain(
                        f"mask rule's {key} must be {expected} but got {value!r}.",
                        found=type(value).__name__,
                        fix=f"correct {key}, or remove it from the rule",
                    )
                )
        self._pattern  # noqa: B018  a bad regular expression is an error now, not when the model is planned

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Rule:
        """Build a rule from a mapping with Rule's own field names, as YAML has it.

        Raises:
            MaskError: a key that is not a field.

        >>> Rule.from_mapping({"name": "*.head.weight", "decay": 0.1})
        Rule(decay=0.1, name='*.head.weight')
        """
        _check_keys("mask rule", mapping, [f.name for f in fields(cls)])
        return cls(**mapping)

    @property
    def conditions(self) -> dict[str, Any]:
        """The conditions that the rule sets, as the user wrote them."""
        return {
            k: v for k in ("name", "module_types", "ndim", "predicate") if (v := getattr(self, k)) not in (None, ())
        }

    @property
    def settings(self) -> dict[str, Any]:
        """The properties that the rule sets."""
        return {k: v for k in ("decay", "lr", "style") if (v := getattr(self, k)) is not None}

    def __repr__(self) -> str:
        given = {k: v for f in fields(self) if (v := getattr(self, k := f.name)) not in (None, (), "")}
        return f"Rule({', '.join(f'{k}={v!r}' for k, v in given.items())})"

    def __str__(self) -> str:
        shown = {k: _shown(v) for k, v in self.conditions.items()}
        return ", ".join(f"{k} {v}" for k, v in shown.items()) or "every parameter"

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


def compile_name(name: str) -> Callable[[str], Any]:
    """Return a function that is None on names the pattern does not match.

    >>> compile_name("*.head.*")("head.weight") is not None
    True
    """
    if name.startswith("regex:"):
        try:
            return re.compile(name[len("regex:") :]).search
        except re.error as error:
            raise MaskError(
                explain(
                    f"mask pattern {name!r} is not a regular expression.",
                    found=str(error),
                    fix="correct the pattern, or write a glob such as '*.head.*'",
                )
            ) from None
    root = name.startswith("*.")
    body = re.compile(fnmatch.translate(name[2:] if root else name))
    if not root:
        return body.match
    return re.compile(r"(?:.*\.)?" + body.pattern, re.DOTALL).match


def is_a(cls: type, kind: type | str) -> bool:
    """Whether ``cls`` is ``kind`` or derives from it; ``kind`` may be a class name or a dotted path.

    >>> is_a(nn.Linear, "Linear"), is_a(nn.Linear, "torch.nn.Linear"), is_a(nn.Linear, "torch.nn.Conv1d")
    (True, True, False)
    """
    if isinstance(kind, type):
        return issubclass(cls, kind)
    path, _, leaf = kind.rpartition(".")
    if not path:
        return any(c.__name__ == leaf for c in cls.__mro__)
    # A class in use has been imported, so its path can be looked up without importing what a config file names.
    alias = getattr(sys.modules.get(path), leaf, None)
    return any(c is alias or f"{c.__module__}.{c.__qualname__}" == kind for c in cls.__mro__)


@dataclass(frozen=True)
class Mask:
    """Which parameters decay: the user's rules first, then the base's; per property the first match wins.

    ============== ================================================================================================
    base           what decays
    ============== ================================================================================================
    standard       all but: what hooks and marks exempt, biases, norm layers, weight_norm magnitudes, vectors and
                   scalars, state-space parameters, tables of positions, tokens
    no_embeddings  as standard, without embeddings
    matrices       as standard, but tables of positions and tokens decay too: only the shape counts
    all            everything
    none           nothing
    None           nothing is placed: each parameter needs a rule
    ============== ================================================================================================

    Args:
        rules: Rules, or mappings with Rule's field names.
        base: the preset under the rules, or None.
        layer_decay: in (0, 1]: layer k of n runs at ``lr * layer_decay ** (n - k)``; None for one rate everywhere.

    Raises:
        MaskError: an unknown base, a misspelt key, or two rules with equal conditions that set the same property.

    Example:
        >>> Mask([{"name": "*.head.*", "lr": 10}, {"name": "*.head.weight", "decay": 0.1}]).rules
        (Rule(name='*.head.*', lr=10.0), Rule(decay=0.1, name='*.head.weight'))
    """

    rules: tuple[Rule, ...] = ()
    base: str | None = "standard"
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        if self.base is not None and self.base not in PRESETS:
            close = nearest(self.base, PRESETS)
            raise MaskError(
                explain(
                    f"mask base {self.base!r} is unknown.",
                    valid=PRESETS,
                    nearest=close,
                    fix=f"write base={close or 'standard'}, or leave base null where rules place every parameter",
                )
            )
        object.__setattr__(self, "rules", _as_rules(self.rules))
        for i, first in enumerate(self.rules):
            for second in self.rules[i + 1 :]:
                both = sorted(first.settings.keys() & second.settings.keys())
                if both and first.conditions == second.conditions:
                    raise MaskError(
                        explain(
                            f"mask has two rules for {first} that both set {both[0]}.",
                            found=f"{first!r} and {second!r}",
                            fix="keep one of them; the first would always win",
                        )
                    )
        if self.layer_decay is not None:
            try:
                value = check_number("layer_decay", self.layer_decay, exclusive=True)
            except ConfigError as error:
                raise MaskError(str(error)) from None
            if value > 1:
                raise MaskError(
                    explain(f"layer_decay must be in (0, 1] but got {value!r}.", fix="write layer_decay=0.75")
                )
            object.__setattr__(self, "layer_decay", value)

    @classmethod
    def standard(cls) -> Mask:
        """Biases, norm layers, vectors, and what hooks name do not decay; the rest does."""
        return cls()

    @classmethod
    def no_embeddings(cls) -> Mask:
        """As standard, and embeddings do not decay."""
        return cls(base="no_embeddings")

    @classmethod
    def matrices(cls) -> Mask:
        """As standard, but tables of positions and tokens decay: the shape alone counts, as in nanoGPT."""
        return cls(base="matrices")

    @classmethod
    def all(cls) -> Mask:
        """Everything decays, biases and norm layers included."""
        return cls(base="all")

    @classmethod
    def none(cls) -> Mask:
        """Nothing decays."""
        return cls(base="none")

    @classmethod
    def layerwise(cls, decay: float, rules: Sequence[Rule | Mapping[str, Any]] = (), base: str = "standard") -> Mask:
        """Layer-wise learning rates for fine-tuning: layer k of n runs at ``lr * decay ** (n - k)``.

        Args:
            decay: in (0, 1]; 0.65 to 0.8 is usual.
            rules: the user's rules, whose ``lr`` wins over the layer's.
            base: the preset under the rules.

        References:
            Clark et al., ELECTRA, https://arxiv.org/abs/2003.10555; Bao et al., BEiT, https://arxiv.org/abs/2106.08254.
        """
        return cls(tuple(rules), base, layer_decay=decay)  # type: ignore[arg-type]  # __post_init__ converts mappings


def as_mask(mask: Mask | str | Mapping[str, Any] | None) -> Mask:
    """Return the Mask that ``mask`` means: None is standard, text a preset, a mapping Mask's own arguments.

    Raises:
        MaskError: none of these, or a misspelt key.

    >>> as_mask("no_embeddings").base
    'no_embeddings'
    """
    if mask is None:
        return Mask()
    if isinstance(mask, Mask):
        return mask
    if isinstance(mask, str):
        return Mask(base=mask)
    if isinstance(mask, Mapping):
        _check_keys("mask", mask, [f.name for f in fields(Mask)])
        return Mask(**mask)
    raise MaskError(
        explain(
            f"mask must be a Mask, a preset's name or a mapping but got {mask!r}.",
            found=type(mask).__name__,
            valid=PRESETS,
            fix="write mask='standard', or Mask([Rule(...)])",
        )
    )


def _as_rules(rules: Any) -> tuple[Rule, ...]:
    if rules is None:
        return ()
    if isinstance(rules, (str, bytes, Mapping, Rule)) or not isinstance(rules, Sequence):
        raise MaskError(
            explain(
                f"mask rules must be a list of rules but got {rules!r}.",
                found=type(rules).__name__,
                fix="put the rule in brackets: rules='[{name: \"*.head.weight\", decay: 0.1}]'",
            )
        )
    made = []
    for rule in rules:
        if not isinstance(rule, (Rule, Mapping)):
            raise MaskError(
                explain(
                    f"mask rule must be a Rule or a mapping but got {rule!r}.",
                    found=type(rule).__name__,
                    fix='write {name: "*.head.weight", decay: 0.1}',
                )
            )
        made.append(rule if isinstance(rule, Rule) else Rule.from_mapping(rule))
    return tuple(made)


def _check_keys(what: str, mapping: Mapping[Any, Any], valid: Sequence[str]) -> None:
    for key in mapping:
        if key not in valid:
            close = nearest(key, valid)
            raise MaskError(
                explain(
                    f"{what} has an unknown key {key!r}.",
                    found=", ".join(map(str, mapping)),
                    valid=valid,
                    nearest=close,
                    fix=f"rename {key!r} to {close!r}" if close else f"remove {key!r}",
                )
            )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return value.__name__ if hasattr(value, "__name__") else repr(value)
