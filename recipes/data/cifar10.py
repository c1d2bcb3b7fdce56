"""CIFAR-10: 50,000 + 10,000 colour images 32x32 in 10 classes (Krizhevsky, 2009)."""

from __future__ import annotations

from pathlib import Path

import torch
from data.download import Source, read_members
from data.images import Images, unreadable
from torch import Tensor

_FOLDER = "cifar-10-batches-bin/"
_ROW = 1 + 3 * 32 * 32  # label, then the red, green and blue planes


class CIFAR10(Images):
    """The official archive in its binary version, read without being unpacked."""

    sources = (
        Source(
            "cifar-10-binary.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    )
    mean = (0.4914, 0.4822, 0.4465)  # of the 50,000 training images
    std = (0.2470, 0.2435, 0.2616)
    padding = 4
    in_channels = 3
    in_features = 3 * 32 * 32

    def read(self, root: Path, train: bool) -> tuple[Tensor, Tensor]:
        archive = root / self.sources[0].name
        names = [f"{_FOLDER}data_batch_{i}.bin" for i in range(1, 6)] if train else [f"{_FOLDER}test_batch.bin"]
        found = read_members(archive, names)
        content = b"".join(found[name] for name in names)
        if len(content) % _ROW:
            raise unreadable(archive, f"{len(content)} bytes, not a multiple of {_ROW}")
        rows = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, _ROW)
        return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].long()
