"""Refusals: a rule that matches nothing, that says nothing, a parameter that no rule places; and one warning."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence

from torch import nn

from lightning_wd.errors import MaskError, explain, nearest
from lightning_wd.mask.names import Tree
from lightning_wd.mask.plan import Row
from lightning_wd.mask.rules import Mask, Rule, compile_name, is_a

__all__ = ["check_effective", "check_placed", "check_rules", "check_styles", "warn_spared"]

log = logging.getLogger(__name__)


def check_rules(rules: Sequence[Rule], counts: Sequence[int], rows: Sequence[Row], tree: Tree) -> None:
    """Raise a MaskError for the first rule that matched no parameter, names a class in vain, or sets nothing."""
    for rule, count in zip(rules, counts, strict=True):
        if not count:
            pattern = rule.name is not None and len(rule.conditions) == 1
            frozen = sum(row.frozen for row in rows)
            found = f"{len(rows) - frozen} trainable" + (f" and {frozen} frozen" if frozen else "")
            message = explain(
                f"mask {f'pattern {rule.name!r}' if pattern else f'rule ({rule})'} matched no parameter.",
                found=f"{found} parameters, 0 matches",
                fix="correct the pattern, or remove the rule" if pattern else "correct the rule, or remove it",
            )
            close = _nearest(rule, tree)
            raise MaskError(message.replace("\n  fix: ", f"\n  nearest: {close}\n  fix: ") if close else message)
        owners = {type(found.module) for found in tree.tensors} if len(rule.module_types) > 1 else ()
        for kind in rule.module_types[: len(owners)]:
            if not any(is_a(owner, kind) for owner in owners):
                close = _nearest_class(kind, tree)
                message = explain(
                    f"mask rule ({rule}) names a class that owns no parameter: {_class_name(kind)!r}.",
                    found=", ".join(sorted({owner.__name__ for owner in owners})),
                    fix="correct it, or remove it from module_types",
                )
                raise MaskError(message.replace("\n  fix: ", f"\n  nearest: {close}\n  fix: ") if close else message)
        if not rule.settings:
            raise MaskError(
                explain(
                    f"mask rule ({rule}) sets nothing.",
                    found=f"{count} match{'es' if count > 1 else ''}, but neither decay, lr nor style",
                    fix="give the rule decay=0 to exclude them, or remove it",
                )
            )


def check_effective(rules: Sequence[Rule], winners: Mapping[int, int | None]) -> None:
    """Raise a MaskError for the first rule that earlier ones leave nothing to decide."""
    for later, earlier in sorted(winners.items()):
        if earlier is not None:
            raise MaskError(
                explain(
                    f"mask rule ({rules[later]}) has no effect: earlier rules decide everything that it matches.",
                    found=f"the rule ({rules[earlier]}) before it",
                    fix="write the narrower rule first, or remove this one",
                )
            )


def check_styles(rules: Sequence[Rule], styled: Mapping[int, bool]) -> None:
    """Raise a MaskError for the first rule whose style only parameters without decay would take."""
    for position, decays in sorted(styled.items()):
        if not decays:
            rule = rules[position]
            raise MaskError(
                explain(
                    f"the style {rule.style!r} of mask rule ({rule}) has no effect: nothing that it matches decays.",
                    fix="give the rule a decay, or remove its style",
                )
            )


def check_placed(unplaced: Sequence[str]) -> None:
    """Raise a MaskError that names the parameters no rule placed."""
    if unplaced:
        raise MaskError(
            explain(
                f"{len(unplaced)} parameter{'s are' if len(unplaced) > 1 else ' is'} placed by no rule (base is null).",
                found=", ".join(unplaced[:5]) + (", ..." if len(unplaced) > 5 else ""),
                fix="add a last rule for the rest, such as Rule(1.0), or give the mask a base such as 'standard'",
            )
        )


def warn_spared(mask: Mask, decayed: Mapping[int, Sequence[tuple[Row, bool]]]) -> None:
    """Warn of each rule that decays, beside what decays anyway, parameters that the base leaves out.

    A rule for such parameters alone, as for ``*.bias``, is meant.

    Args:
        mask: the rules and their base.
        decayed: by the position of a rule, the rows that it makes decay, each with whether the base leaves it out.
    """
    for position, rows in sorted(decayed.items()):
        spared = [row for row, left_out in rows if left_out]
        if not spared or len(spared) == len(rows):
            continue
        shown = ", ".join(f"{row.name} ({row.kind})" for row in spared[:5]) + (", ..." if len(spared) > 5 else "")
        log.warning(
            explain(
                f"mask rule ({mask.rules[position]}) decays {len(spared)} parameter{'s' * (len(spared) > 1)} that "
                f"base '{mask.base}' leaves out, beside {len(rows) - len(spared)} that it decays.",
                found=shown,
                fix=f"put {{name: {spared[0].name!r}, decay: 0}} before it, or narrow its conditions; to decay them on "
                "purpose, give them a rule of their own before it",
            )
        )


def _nearest(rule: Rule, tree: Tree) -> str | None:
    """Return the nearest pattern or class name that does match, with how much it matches."""
    names = list(dict.fromkeys(found.name for found in tree.tensors))
    if rule.name is not None and not any(map(compile_name(rule.name), names)):
        return _nearest_pattern(rule.name, names)
    return next(filter(None, (_nearest_class(kind, tree) for kind in rule.module_types)), None)


def _class_name(kind: type | str) -> str:
    return kind.__name__ if isinstance(kind, type) else kind.rpartition(".")[2]


def _nearest_class(kind: type | str, tree: Tree) -> str | None:
    classes: dict[str, int] = {}
    for found in tree.tensors:
        for cls in type(found.module).__mro__:
            if cls not in (nn.Module, object):
                classes[cls.__name__] = classes.get(cls.__name__, 0) + 1
    name = _class_name(kind)
    close = nearest(name, classes)
    return f"{close!r} ({classes[close]} parameters)" if close and close != name else None


def _nearest_pattern(pattern: str, names: list[str]) -> str | None:
    words = sorted({part for name in names for part in (*name.split("."), *name.replace(".", "_").split("_"))})
    given = [part for part in pattern.removeprefix("regex:").split(".") if part.strip("*?[]^$\\()")]
    for part in given:
        bare = part.strip("*?^$\\()")
        # The likeliest slip first: the right word without the dots and stars around it, then a misspelt word.
        for word in dict.fromkeys(w for w in (bare if bare in words else None, nearest(bare, words)) if w):
            whole = pattern.replace(bare, word)
            tries = [whole] if word != bare else []
            for candidate in (*tries, f"*.{word}.*", f"*.{word}", f"*{word}*"):
                hits = [name for name in names if compile_name(candidate)(name)]
                if hits:
                    shown = ", ".join(itertools.islice(hits, 1)) + (", ..." if len(hits) > 1 else "")
                    return f"{candidate!r} ({len(hits)} match{'es' if len(hits) > 1 else ''}: {shown})"
    return None
