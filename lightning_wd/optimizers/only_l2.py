"""What the classes share whose groups are all of style ``l2``: ``AdamL2`` and ``SGDL2``."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from lightning_wd.optimizers.base import DecayGroups

__all__ = ["OnlyL2", "without_style"]


class OnlyL2(DecayGroups):
    """Mixin of a class whose groups are all of style ``l2``."""

    styles: ClassVar[tuple[str, ...]] = ("l2",)

    def __init__(self, params: Any, *args: Any, **settings: Any) -> None:
        super().__init__(params, *args, **{"style": "l2", **settings})  # each group refuses another style


def without_style(cls: type) -> inspect.Signature:
    """Return the signature of a class without ``style``, for a subclass that has only one."""
    signature = inspect.signature(cls)
    return signature.replace(parameters=[p for name, p in signature.parameters.items() if name != "style"])
