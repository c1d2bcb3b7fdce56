"""Errors of the package, and the one way their messages are built.

Every message has the same parts, each on its own line: what was wrong, what was found, what is valid,
the nearest valid name, and how to fix it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["CheckpointMismatchError", "ConfigError", "MaskError", "explain", "nearest"]


class ConfigError(ValueError):
    """A setting that cannot be honoured: an unknown key, a value out of range, two amounts at once."""


class MaskError(ValueError):
    """A mask that does not fit the model: a rule that matches nothing, a parameter that no rule places."""


class CheckpointMismatchError(RuntimeError):
    """An optimizer state that belongs to another style, another optimizer, or other groups or members."""


def nearest(name: object, valid: Iterable[str]) -> str | None:
    """Return the valid name closest to ``name``, or None when nothing is close.

    >>> nearest("weight_decy", ["lr", "weight_decay", "betas"])
    'weight_decay'
    >>> nearest("zzz", ["lr", "betas"]) is None
    True
    """
    found = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.6)
    return found[0] if found else None


def explain(
    problem: str,
    *,
    found: str | None = None,
    valid: Iterable[str] | str | None = None,
    nearest: str | None = None,
    fix: str,
) -> str:
    """Build an error message: the problem, then one indented line for each part that is known.

    Args:
        problem: one sentence that names the culprit.
        found: what was found in its place.
        valid: the valid values, as text or as names to list.
        nearest: the valid name closest to the culprit.
        fix: what to type instead.

    >>> print(explain("name 'adamx' is unknown.", valid=["adamw", "sgdw"], nearest="adamw", fix="write adamw"))
    name 'adamx' is unknown.
      valid: adamw, sgdw
      nearest: 'adamw'
      fix: write adamw
    """
    lines = [problem]
    if found is not None:
        lines.append(f"found: {found}")
    if valid is not None:
        lines.append(f"valid: {valid if isinstance(valid, str) else ', '.join(valid)}")
    if nearest is not None:
        lines.append(f"nearest: '{nearest}'")
    lines.append(f"fix: {fix}")
    return "\n  ".join(lines)
