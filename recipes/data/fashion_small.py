"""A small Fashion-MNIST for studies of hundreds of runs: few training images, 14x14, quickly overfitted."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from data.fashion_mnist import FashionMNIST
from data.loader import Tensors, eval_loader
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader

from lightning_wd.errors import ConfigError


class FashionSmall(FashionMNIST):
    """Fashion-MNIST at half the resolution, the first images of the training split only, not augmented.

    A process reads the files once, so the cells of a sweep share the images. On a GPU they stay in its memory, unless
    there are loader processes, which cannot read there.

    Args:
        root: folder of the official files; absent ones are downloaded into it, all are checked.
        batch_size: images in a batch on each process.
        num_workers: loader processes; 0 is fastest: a batch is one index operation in memory.
        train_size: training images, >= 1.
        val_size: training images set aside for validation, in a random split.
        classes: the labels whose images are kept in each part; None for all.
        seed: of the split, >= 0; the order depends on the run's own seed.
    """

    in_features = 14 * 14

    def __init__(
        self,
        root: str,
        batch_size: int = 50,
        num_workers: int = 0,
        train_size: int = 1000,
        val_size: int = 5000,
        classes: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(root, batch_size, num_workers, val_size, augment=False, classes=classes, seed=seed)
        self.save_hyperparameters(logger=False)

    def read(self, root: Path, train: bool) -> tuple[Tensor, Tensor]:
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        on_gpu = device.type == "cuda" and not self.hparams["num_workers"]
        return _read_halved(root, train, device if on_gpu else torch.device("cpu"))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            found, wanted = len(self.train), self.hparams["train_size"]
            if not 1 <= wanted <= found:
                raise ConfigError(
                    f"data.train_size={wanted} does not fit the training split.",
                    found=f"{found} images",
                    fix=f"write data.train_size=<1 to {found}>",
                )
            self.train = Tensors(*(tensor[:wanted] for tensor in self.train.tensors))

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._large_batches(self.val)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._large_batches(self.test)

    def _large_batches(self, rows: Tensors) -> DataLoader[tuple[Tensor, ...]]:
        """Evaluate in batches that suit a net of 14,000 weights."""
        return eval_loader(self, rows, batch_size=1000)


@functools.cache
def _read_halved(root: Path, train: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    images, labels = FashionMNIST.read(FashionMNIST(str(root)), root, train)
    return avg_pool2d(images.float(), 2).round_().byte().to(device), labels.to(device)
