"""What each rule of a mask did in a plan: one that does nothing is refused, one that does too much causes a warning."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from lightning_wd.errors import MaskError, explain, listed, nearest
from lightning_wd.mask.matching import compile_name, is_a
from lightning_wd.mask.module_tree import Tree
from lightning_wd.mask.plan import Row
from lightning_wd.mask.rules import PROPERTIES, Rule

__all__ = ["RuleUse", "check_uses", "unmatched"]

log = logging.getLogger(__name__)


@dataclass
class RuleUse:
    """What one rule did in a plan."""

    rule: Rule
    matches: int = 0  # how many names it matched
    decides: bool = False  # whether it decided a property of any tensor
    earlier: Rule | None = None  # the first rule that decided before it what it would decide
    styled: bool | None = None  # whether anything that takes its style or toward decays; None where nothing takes it
    decayed: list[Row] = field(default_factory=list)  # the rows that it makes decay
    spared: list[Row] = field(default_factory=list)  # those of them that the mask's base leaves out


def check_uses(uses: Sequence[RuleUse], base: str | None, tree: Tree) -> None:
    """Raise a MaskError for the first rule that does nothing, and warn of rules that decay what the base leaves out."""
    for use in uses:
        _check_use(use, tree)
    for use in uses:
        count = len(use.spared)
        if 0 < count < len(use.decayed):  # a rule for such parameters alone, as for ``*.bias``, is meant
            log.warning(
                explain(
                    f"mask rule ({use.rule}) decays {count} parameter{'s' * (count > 1)} that base '{base}' leaves "
                    f"out, beside {len(use.decayed) - count} that it decays.",
                    found=listed(f"{row.name} ({row.kind})" for row in use.spared),
                    fix=f"put {{name: {use.spared[0].name!r}, wd_mult: 0}} before it, or narrow its conditions; to "
                    "decay them on purpose, give them a rule of their own before it",
                )
            )


def unmatched(rule: Rule, tree: Tree, what: str = "mask") -> MaskError:
    """Return the error for a rule, of ``what``, that matches no parameter, with the nearest pattern that does."""
    names = list(dict.fromkeys(found.name for found in tree.tensors))
    if rule.name is not None and not any(map(compile_name(rule.name), names)):
        close = _nearest_pattern(rule.name, names)
    else:
        close = next(filter(None, (_nearest_class(kind, tree) for kind in rule.module_types)), None)
    alone = list(rule.conditions) == ["name"]
    trains = [first.param.requires_grad for first, *_ in tree.by_tensor()]
    frozen = trains.count(False)
    return MaskError(
        f"{what} {f'pattern {rule.name!r}' if alone else f'rule ({rule})'} matched no parameter.",
        found=f"{trains.count(True)} trainable" + f" and {frozen} frozen" * bool(frozen) + " parameters, 0 matches",
        nearest=close,
        fix="correct the pattern, or remove it" if alone else "correct the rule, or remove it",
    )


def _check_use(use: RuleUse, tree: Tree) -> None:
    """Raise a MaskError where a rule, or a part of it, does nothing."""
    rule = use.rule
    if not use.matches:
        raise unmatched(rule, tree)
    for kind in rule.module_types:
        owners = {type(found.module) for found in tree.tensors}
        if not any(is_a(owner, kind) for owner in owners):
            raise MaskError(
                f"mask rule ({rule}) names a class that owns no parameter: {_class_name(kind)!r}.",
                found=", ".join(sorted({owner.__name__ for owner in owners})),
                nearest=_nearest_class(kind, tree),
                fix="correct it, or remove it from module_types",
            )
    if not rule.settings:
        raise MaskError(
            f"mask rule ({rule}) sets nothing.",
            found=f"{use.matches} match{'es' * (use.matches > 1)}, but none of {', '.join(PROPERTIES)}",
            fix="give the rule wd_mult=0 to exclude them, or remove it",
        )
    if use.earlier is not None and not use.decides:
        raise MaskError(
            f"mask rule ({rule}) has no effect: earlier rules decide everything that it matches.",
            found=f"the rule ({use.earlier}) before it",
            fix="write the narrower rule first, or remove this one",
        )
    if use.styled is False:
        what, value = ("style", rule.style) if rule.style is not None else ("toward", rule.toward)
        raise MaskError(
            f"the {what} {value!r} of mask rule ({rule}) has no effect: nothing that it matches decays.",
            fix=f"give the rule a wd_mult, or remove its {what}",
        )


def _class_name(kind: type | str) -> str:
    return kind.__name__ if isinstance(kind, type) else kind.rpartition(".")[2]


def _nearest_class(kind: type | str, tree: Tree) -> str | None:
    owners = (cls for found in tree.tensors for cls in type(found.module).__mro__)
    classes = Counter(cls.__name__ for cls in owners if cls not in (nn.Module, object))
    name = _class_name(kind)
    close = nearest(name, classes)
    return f"{close!r} ({classes[close]} parameters)" if close and close != name else None


def _nearest_pattern(pattern: str, names: list[str]) -> str | None:
    """Return the likeliest pattern that was meant, with what it matches; one that matches every name says nothing."""
    words = sorted({part for name in names for part in (*name.split("."), *name.replace(".", "_").split("_"))})
    bare = [part.strip("*?^$\\()") for part in pattern.removeprefix("regex:").split(".")]
    meant = {part: part if part in words else nearest(part, words) for part in bare if part}
    spelt = pattern  # with each misspelt word corrected
    for part, word in meant.items():
        spelt = spelt.replace(part, word or part)
    candidates = [spelt, *([f"{spelt}.*"] if "." in pattern else [])]
    candidates += [form.format(word) for word in meant.values() if word for form in ("*.{}.*", "*.{}", "*{}*")]
    for candidate in candidates:
        hits = [name for name in names if compile_name(candidate)(name)]
        if hits and (len(hits) < len(names) or len(names) == 1):
            more = len(hits) > 1
            return f"{candidate!r} ({len(hits)} match{'es' * more}: {hits[0]}{', ...' * more})"
    return None
