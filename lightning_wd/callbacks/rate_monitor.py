"""``RateMonitor``: Lightning's ``LearningRateMonitor``, for a Trainer that may have no logger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L

from lightning_wd._lightning import both

__all__ = ["RateMonitor"]

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import LearningRateMonitor
else:
    # both packages' own; a private name, or LightningCLI would offer it
    class _LearningRateMonitor(*both("lightning.pytorch.callbacks.LearningRateMonitor")):
        """A LearningRateMonitor of ``lightning`` and of ``pytorch_lightning``."""

    LearningRateMonitor = _LearningRateMonitor


class RateMonitor(LearningRateMonitor):
    """Log learning rate and weight decay as ``LearningRateMonitor`` does; nothing where there is no logger.

    Lightning's own raises there, so that a group of callbacks that holds it could not be used with ``logger=False``.

    Example:
        >>> trainer = L.Trainer(callbacks=[RateMonitor("step", log_weight_decay=True)], logger=False)
    """

    def on_train_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.loggers:
            super().on_train_start(trainer, *args, **kwargs)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.loggers:
            super().on_train_batch_start(trainer, *args, **kwargs)

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.loggers:
            super().on_train_epoch_start(trainer, *args, **kwargs)
