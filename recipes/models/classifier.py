"""What the image models share: the loss, the accuracy of each part of the data, and the optimizer of the config."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

import lightning_wd as wd


class Classifier(L.LightningModule):
    """Trains ``net``, which a subclass sets, by cross-entropy; logs loss and accuracy.

    Args:
        num_classes: number of classes.
    """

    net: nn.Sequential

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.train_acc, self.val_acc, self.test_acc = (
            MulticlassAccuracy(num_classes, average="micro", validate_args=False) for _ in range(3)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape (B, num_classes)."""
        logits: Tensor = self.net(images)
        return logits

    def _loss(self, batch: tuple[Tensor, Tensor], accuracy: MulticlassAccuracy) -> Tensor:
        images, labels = batch
        logits = self(images)
        accuracy.update(logits, labels)
        return nn.functional.cross_entropy(logits, labels)

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, accuracy: MulticlassAccuracy) -> None:
        loss = self._loss(batch, accuracy)
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        self.log(f"{stage}/acc", accuracy, on_step=False, on_epoch=True, prog_bar=True)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch, self.train_acc)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/acc", self.train_acc, prog_bar=True)  # not in each step, where a log costs 1 ms

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_acc)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_acc)

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, self.hparams["optimizer"], self.hparams["lr_scheduler"])
