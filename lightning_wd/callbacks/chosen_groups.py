"""The parameter groups that a user chooses by globs on their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from lightning_wd.errors import ConfigError, nearest

__all__ = ["as_globs", "check_globs", "chosen"]


def as_globs(groups: Any) -> list[str]:
    """Return a user's ``groups`` as a list of globs."""
    if isinstance(groups, str) or not groups or not all(isinstance(glob, str) and glob for glob in groups):
        raise ConfigError(
            f"groups must be a list of globs on group names but got {groups!r}.",
            found=type(groups).__name__,
            fix=f"write groups={[groups if groups and isinstance(groups, str) else 'decay']}",
        )
    return list(groups)


def chosen(globs: Sequence[str] | None, names: Sequence[str]) -> list[bool]:
    """Return for each name whether a glob matches it; None matches all.

    >>> chosen(["decay*"], ["decay", "no_decay", "decay_x0.1"])
    [True, False, True]
    """
    return [globs is None or any(fnmatch.fnmatchcase(name, glob) for glob in globs) for name in names]


def check_globs(globs: Sequence[str] | None, names: Sequence[str], decaying: Sequence[str]) -> None:
    """Refuse a glob that matches no group, or only groups that do not decay."""
    for glob in globs or ():
        matched = [name for name in names if fnmatch.fnmatchcase(name, glob)]
        if not matched:
            close = nearest(glob, names)
            raise ConfigError(
                f"DecaySchedule groups {glob!r} matches no parameter group.",
                found=", ".join(names),
                nearest=close,
                fix=f"write groups={[close or names[0]]}",
            )
        if not set(matched) & set(decaying):
            raise ConfigError(
                f"DecaySchedule groups {glob!r} matches only groups without decay, which stay at zero.",
                found=", ".join(matched),
                valid=decaying or "none: no group decays",
                fix=f"remove {glob!r}, or let a rule of the mask give them a weight decay",
            )
