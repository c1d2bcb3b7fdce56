"""Three convolutions with BatchNorm: the smallest net on which the studies' claims can be seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from models.classifier import Classifier
from torch import Tensor, nn


class ConvNet(Classifier):
    """``relu(norm(conv(x)))`` three times, the second and third at half the size, average pooling and a linear head.

    Args:
        widths: channels of the three convolutions.
        in_channels: channels of an image.
        num_classes: number of classes.
        optimizer: what ``lightning_wd.configure_optimizers`` takes.
        lr_scheduler: what :func:`lightning_wd.configure_optimizers` takes as its schedule.

    >>> ConvNet(widths=[4, 4, 8])(torch.zeros(2, 1, 14, 14)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 32),
        in_channels: int = 1,
        num_classes: int = 10,
        optimizer: Any = None,
        lr_scheduler: Any = None,
    ) -> None:
        super().__init__(num_classes)
        self.save_hyperparameters(logger=False)
        layers: list[nn.Module] = []
        before = in_channels
        for after, stride in zip(widths, (1, 2, 2), strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes))
        self.to(memory_format=torch.channels_last)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.last_loss = loss.detach()
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", self.last_loss)  # once an epoch: logging each step takes as long as a convolution
