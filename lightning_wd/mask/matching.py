"""Whether a name or a class is one that a rule means."""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Callable
from typing import Any

from lightning_wd.errors import MaskError

__all__ = ["compile_name", "is_a"]


def compile_name(name: str) -> Callable[[str], Any]:
    """Compile a rule's ``name`` to a function that returns None for names it does not match.

    >>> compile_name("*.head.*")("head.weight") is not None
    True
    """
    if name.startswith("regex:"):
        try:
            return re.compile(name[len("regex:") :]).search
        except re.error as error:
            raise MaskError(
                f"mask pattern {name!r} is not a regular expression.",
                found=str(error),
                fix="correct the pattern, or write a glob such as '*.head.*'",
            ) from None
    parents = r"(?s:.*\.)?" if name.startswith("*.") else ""
    return re.compile(parents + fnmatch.translate(name.removeprefix("*."))).match


def is_a(cls: type, kind: type | str) -> bool:
    """Whether ``cls`` is ``kind`` or derives from it; ``kind`` may be a class name or a dotted path.

    >>> from torch import nn
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
