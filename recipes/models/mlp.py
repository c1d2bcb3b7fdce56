"""A multilayer perceptron with LayerNorm, for images given as vectors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import lightning as L
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

import lightning_wd as wd


class MLP(L.LightningModule):
    """Linear, LayerNorm, ReLU, dropout for each hidden layer, then a linear head.

    Args:
        in_features: numbers in an image.
        hidden: width of each hidden layer.
        num_classes: number of classes.
        dropout: probability of dropping a hidden unit.
        optimizer: what ``lightning_wd.configure_optimizers`` takes.
        lr_scheduler: likewise.
    """

    def __init__(
        self,
        in_features: int = 64,
        hidden: Sequence[int] = (128, 128),
        num_classes: int = 10,
        dropout: float = 0.0,
        optimizer: Any = None,
        lr_scheduler: Any = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # train.py logs the whole config, redacted
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU(), nn.Dropout(dropout)]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
        self.accuracy = nn.ModuleDict({f"{s}_acc": MulticlassAccuracy(num_classes, average="micro") for s in STAGES})

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.accuracy[f"{stage}_acc"](logits, labels)
        train = stage == "train"
        self.log(f"{stage}/loss", loss, on_step=train, on_epoch=not train, prog_bar=True, sync_dist=not train)
        self.log(f"{stage}/acc", self.accuracy[f"{stage}_acc"], on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, "test")

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, self.hparams.optimizer, self.hparams.lr_scheduler)


STAGES = ("train", "val", "test")
