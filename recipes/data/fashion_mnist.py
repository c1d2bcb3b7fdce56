"""Fashion-MNIST: 60,000 + 10,000 images 28x28 of clothes in 10 classes (Xiao et al., https://arxiv.org/abs/1708.07747)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from data.download import Source
from data.images import Images, unreadable
from torch import Tensor

_URL = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
_SHA256 = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}


class FashionMNIST(Images):
    """The four official gzip IDX files."""

    sources = tuple(Source(name, _URL + name, sha256) for name, sha256 in _SHA256.items())
    mean = (0.2860,)  # computed once from the 60,000 training images
    std = (0.3530,)
    padding = 2
    in_channels = 1
    in_features = 28 * 28

    def read(self, root: Path, train: bool) -> tuple[Tensor, Tensor]:
        part = "train" if train else "t10k"
        images = read_idx(root / f"{part}-images-idx3-ubyte.gz")
        labels = read_idx(root / f"{part}-labels-idx1-ubyte.gz")
        return images.unsqueeze(1), labels.long()


def read_idx(path: Path) -> Tensor:
    """Return the bytes of a gzip IDX file in the shape that its header gives.

    Raises:
        DataError: not gzip, not IDX, or not as long as its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes())
        zeros, kind, ndim = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{ndim}I", content, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise unreadable(path, str(error)) from error
    values = content[4 + 4 * ndim :]
    if zeros or kind != 8 or len(values) != math.prod(shape):  # 8: unsigned bytes
        raise unreadable(path, f"{len(values)} values under the header {content[:4].hex()} of shape {shape}")
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).view(shape)
