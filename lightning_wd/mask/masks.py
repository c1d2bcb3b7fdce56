"""A :class:`Mask`: the user's rules over a preset."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lightning_wd.errors import MaskError, as_typed, checked_keywords, choice, keys, number, spelled
from lightning_wd.mask.evidence import EXEMPT
from lightning_wd.mask.rules import Rule, plain_rule

__all__ = ["Mask", "as_mask", "plain_mask"]

PRESETS = tuple(EXEMPT)


@checked_keywords(MaskError)
@dataclass(frozen=True)
class Mask:
    """Which parameters decay: the user's rules first, then the base's; per property the first match wins.

    ============== ================================================================================================
    base           what decays
    ============== ================================================================================================
    standard       all but: what hooks and marks exempt, biases, norm layers, magnitudes of weight_norm and DoRA,
                   vectors and scalars that are no adapters, scales and parameters of distributions, state-space
                   parameters, position tables, tokens
    no_embeddings  as standard, without embeddings
    matrices       as standard, but position tables and tokens decay too: only the shape counts
    adapters       only those adapters of peft whose zero is the base model, such as LoRA's A and B
    all            everything
    none           nothing
    None           nothing is placed: each parameter needs a rule
    ============== ================================================================================================

    Args:
        rules: Rules, or mappings with Rule's field names.
        base: the preset under the rules, or None.
        layer_decay: in (0, 1]: layer k of n runs at ``lr * layer_decay ** (n - k)``; None for one rate everywhere.

    Raises:
        MaskError: an unknown base, an unknown key, or two rules with equal conditions that set the same property.

    Example:
        >>> Mask([{"name": "*.head.*", "lr_mult": 10}, {"name": "*.head.weight", "wd_mult": 0.1}]).rules
        (Rule(name='*.head.*', lr_mult=10.0), Rule(name='*.head.weight', wd_mult=0.1))
    """

    rules: tuple[Rule, ...] = ()
    base: str | None = "standard"
    layer_decay: float | None = None

    def __init__(
        self,
        rules: Sequence[Rule | Mapping[str, Any]] | None = (),
        base: str | None = "standard",
        layer_decay: float | None = None,
    ) -> None:
        if base is not None:
            choice("mask.base", base, (*PRESETS, "null"), error=MaskError)
        if layer_decay is not None:
            layer_decay = number("mask.layer_decay", layer_decay, exclusive=True, at_most=1, error=MaskError)
        own = {"rules": _as_rules(rules), "base": None if base == "null" else base, "layer_decay": layer_decay}
        self.__dict__.update(own)  # past the frozen dataclass's __setattr__
        for first, second in itertools.combinations(self.rules, 2):
            both = sorted({*first.properties} & {*second.properties})
            if both and first.conditions == second.conditions:
                raise MaskError(
                    f"mask has two rules for {first} that both set the {both[0]}.",
                    found=f"{first!r} and {second!r}",
                    fix="keep one of them; the first would always win",
                )

    @classmethod
    def standard(cls) -> Mask:
        """Biases, norm layers, vectors, scales, and what the model's own hooks name do not decay; the rest does."""
        return cls()

    @classmethod
    def no_embeddings(cls) -> Mask:
        """As standard, and embeddings do not decay."""
        return cls(base="no_embeddings")

    @classmethod
    def matrices(cls) -> Mask:
        """As standard, but position tables and tokens decay too: only the shape counts, as in nanoGPT."""
        return cls(base="matrices")

    @classmethod
    def adapters(cls) -> Mask:
        """Only those adapters of peft decay whose zero is the base model: LoRA's A and B, OFT's R, ..."""
        return cls(base="adapters")

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
            rules: the user's rules; where one sets ``lr_mult`` or ``lr``, the layer's factor does not apply.
            base: the preset under the rules.

        References:
            Clark et al., ELECTRA, https://arxiv.org/abs/2003.10555; Bao et al., BEiT, https://arxiv.org/abs/2106.08254.
        """
        return cls(rules, base, layer_decay=decay)


def as_mask(mask: Mask | str | Mapping[str, Any] | None) -> Mask:
    """Return ``mask`` as a Mask: None is standard, text the name of a preset, a mapping Mask's own arguments.

    Raises:
        MaskError: none of these, or an unknown key.

    >>> as_mask("no_embeddings").base
    'no_embeddings'
    """
    if isinstance(mask, Mask):
        return mask
    given = {} if mask is None else {"base": mask} if isinstance(mask, str) else mask
    if not isinstance(given, Mapping):
        raise MaskError(
            f"mask must be a Mask, a preset's name or a mapping but got {mask!r}.",
            found=type(mask).__name__,
            valid=PRESETS,
            fix="write mask='standard', or Mask([Rule(...)])",
        )
    keys("mask", given, [field.name for field in fields(Mask)], error=MaskError)
    return Mask(**given)


def plain_mask(mask: Mask) -> dict[str, Any]:
    """Return a mask of rules without predicates as plain data."""
    layer_decay = {} if mask.layer_decay is None else {"layer_decay": mask.layer_decay}
    return {"base": mask.base, "rules": [plain_rule(rule) for rule in mask.rules], **layer_decay}


def _as_rules(rules: Any) -> tuple[Rule, ...]:
    if rules is None:
        return ()
    if isinstance(rules, str) or not isinstance(rules, Sequence):
        raise MaskError(
            f"mask.rules must be a list of rules but got {rules!r}.",
            found=type(rules).__name__,
            fix="put the rule in brackets: rules='[{name: \"*.head.weight\", wd_mult: 0.1}]'",
        )
    made: list[Rule] = []
    for i, rule in enumerate(rules):
        with as_typed(dict.fromkeys(("rule", "mask rule"), f"{spelled('mask')}.rules[{i}]")):
            if not isinstance(rule, (Rule, Mapping)):
                raise MaskError(
                    f"mask rule must be a Rule or a mapping but got {rule!r}.",
                    found=type(rule).__name__,
                    fix='write {name: "*.head.weight", wd_mult: 0.1}',
                )
            made.append(rule if isinstance(rule, Rule) else Rule(**{str(key): rule[key] for key in rule}))
    return tuple(made)
