"""What the image sets share: a seeded split, whole batches, normalisation and augmentation on the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import lightning as L
import torch
from data.download import DataError, Source, ensure
from data.loader import Tensors, eval_loader, train_loader
from step_seed import mix, run_seed
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_wd.errors import ConfigError


class Images(L.LightningDataModule):
    """Images in memory as bytes; batches become normalised floats on the device, flipped and shifted in training.

    Args:
        root: folder of the official files; absent ones are downloaded into it, all are checked.
        batch_size: images in a batch on each process.
        num_workers: loader processes; 0 is fastest: a batch is one index operation in memory.
        val_size: training images set aside for validation, in a random split.
        augment: whether training images are flipped and shifted.
        classes: the labels whose images are kept in each part; None for all.
        seed: of the split, >= 0; order and augmentation depend on the run's own seed.

    Raises:
        DataError: a file is truncated or altered, or missing and cannot be downloaded (in ``prepare_data``).
        ConfigError: no images are left for training or validation (in ``setup``).
    """

    sources: ClassVar[tuple[Source, ...]]
    mean: ClassVar[tuple[float, ...]]  # of each channel of the training images, in [0, 1]
    std: ClassVar[tuple[float, ...]]
    padding: ClassVar[int]  # the largest shift in pixels
    in_channels: ClassVar[int]
    in_features: ClassVar[int]  # numbers in an image
    num_classes: ClassVar[int] = 10

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        num_workers: int = 0,
        val_size: int = 5000,
        augment: bool = True,
        classes: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    def read(self, root: Path, train: bool) -> tuple[Tensor, Tensor]:
        """Return all training or test images, uint8 of shape (N, C, H, W), and their labels, int64 of shape (N,)."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        ensure(self.hparams["root"], self.sources)

    def setup(self, stage: str) -> None:
        root, classes = Path(self.hparams["root"]).expanduser(), self.hparams["classes"]
        if stage in ("fit", "validate"):
            images, labels = self.read(root, train=True)
            val_size = self.hparams["val_size"]
            if not 1 <= val_size < len(images):
                raise ConfigError(
                    f"data.val_size={val_size} does not split the training images.",
                    found=f"{len(images)} images",
                    fix=f"write data.val_size=<1 to {len(images) - 1}>",
                )
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(mix(self.hparams["seed"])))
            val, train = order[:val_size], order[val_size:]
            self.train, self.val = (Tensors(images[i], labels[i]).of_classes(classes) for i in (train, val))
        if stage == "test":
            self.test = Tensors(*self.read(root, train=False)).of_classes(classes)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return train_loader(self, self.train)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return eval_loader(self, self.val)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return eval_loader(self, self.test)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = batch
        trainer = self.trainer
        if trainer is not None and trainer.training and self.hparams["augment"]:
            # seeded for this batch, so that a resumed run repeats it; drawn on the CPU, so alike on every device
            noise = torch.Generator().manual_seed(
                mix(run_seed(), trainer.fit_loop.total_batch_idx + 1, trainer.global_rank)
            )
            images = flip_and_shift(images, self.padding, noise)
        return normalise(images, self.mean, self.std), labels


def flip_and_shift(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Mirror half of the images, and shift each by up to ``padding`` pixels in each direction, filling with zeros.

    Args:
        images: shape (B, C, H, W).
        padding: the largest shift, >= 0.
        generator: on the CPU.
    """
    size, _, height, width = images.shape
    flipped = torch.rand(size, generator=generator) < 0.5
    corners = torch.randint(2 * padding + 1, (2, size), generator=generator)
    flipped, (top, left) = flipped.to(images.device), corners.to(images.device)
    images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    windows = torch.nn.functional.pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(size, device=images.device), :, top, left]


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return ``(images / 255 - mean) / std`` for each channel, as float32.

    >>> normalise(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), mean=(0.5,), std=(0.25,)).flatten()
    tensor([-2.,  2.])
    """
    shape = (1, -1, 1, 1)
    center = torch.tensor(mean, device=images.device).mul_(255).view(shape)
    scale = torch.tensor(std, device=images.device).mul_(255).view(shape)
    return images.float().sub_(center).div_(scale)


def unreadable(path: Path, found: str) -> DataError:
    """Return the error for a file whose bytes do not fit its format."""
    return DataError(f"{path} cannot be read.", found=found, fix=f"delete {path} to download it again")
