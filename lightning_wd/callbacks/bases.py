"""The base classes of this package's callbacks, which are callbacks of ``lightning`` and of ``pytorch_lightning``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_wd._lightning import both

__all__ = ["Callback", "Checkpoint"]

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback, Checkpoint
else:
    # private names, or LightningCLI would offer these bases among the callbacks
    class _Callback(*both("lightning.pytorch.callbacks.Callback")):
        """A callback that both Trainers, and both LightningCLIs, take as their own."""

    class _Checkpoint(*both("lightning.pytorch.callbacks.Checkpoint")):
        """A callback that both Trainers run last, as their own checkpoint callbacks."""

    Callback, Checkpoint = _Callback, _Checkpoint
