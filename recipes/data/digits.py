"""scikit-learn's bundled handwritten digits: 1,797 images 8x8 in 10 classes. No download."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from data.loader import Tensors, eval_loader, train_loader
from sklearn.datasets import load_digits
from step_seed import mix
from torch import Tensor
from torch.utils.data import DataLoader

SPLIT = (1257, 180, 360)  # training, validation, test


class Digits(L.LightningDataModule):
    """Images as 64 numbers in [0, 1], in a fixed random split.

    Args:
        batch_size: images in a batch on each process.
        num_workers: loader processes; 0 is fastest: a batch is one index operation in memory.
        label_noise: fraction of the training images, in [0, 1], whose label is replaced by a random one (which is the
            right one for a tenth of them); those of validation and test stay right.
        classes: the labels whose images are kept in each part; None for all.
        seed: of the split and the noise, >= 0; the order depends on the run's own seed.
    """

    in_features, num_classes = 64, 10

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        label_noise: float = 0.0,
        classes: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    def setup(self, stage: str) -> None:
        images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
        random = torch.Generator().manual_seed(mix(self.hparams["seed"]))
        order = torch.randperm(len(images), generator=random)
        train = order[: SPLIT[0]]
        spoilt = train[: round(self.hparams["label_noise"] * SPLIT[0])]
        labels[spoilt] = torch.randint(self.num_classes, (len(spoilt),), generator=random)
        parts = torch.split(order, list(SPLIT))
        self.train, self.val, self.test = (
            Tensors(images[part].float() / 16, labels[part]).of_classes(self.hparams["classes"]) for part in parts
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return train_loader(self, self.train)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return eval_loader(self, self.val)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return eval_loader(self, self.test)
