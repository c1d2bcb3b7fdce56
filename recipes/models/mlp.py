"""A multilayer perceptron with LayerNorm, for images given as vectors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from models.classifier import Classifier
from torch import nn


class MLP(Classifier):
    """Linear, LayerNorm, ReLU, dropout for each hidden layer, then a linear head.

    Args:
        in_features: numbers in an image.
        hidden: width of each hidden layer.
        num_classes: number of classes.
        dropout: probability of dropping a hidden unit.
        optimizer: what ``lightning_wd.configure_optimizers`` takes.
        lr_scheduler: what :func:`lightning_wd.configure_optimizers` takes as its schedule.
    """

    def __init__(
        self,
        in_features: int = 64,
        hidden: Sequence[int] = (256, 256),
        num_classes: int = 10,
        dropout: float = 0.0,
        optimizer: Any = None,
        lr_scheduler: Any = None,
    ) -> None:
        super().__init__(num_classes)
        self.save_hyperparameters(logger=False)  # train.py logs the whole config without secrets
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU(), nn.Dropout(dropout)]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
