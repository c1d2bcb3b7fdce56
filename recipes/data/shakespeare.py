"""Tiny Shakespeare: 1,115,394 characters, for a model that predicts the next one (Karpathy's char-rnn)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from data.download import Source, ensure
from data.loader import eval_loader, train_loader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_wd.errors import ConfigError


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Pieces of a text as (characters, the characters after them), read by the batch.

    Args:
        tokens: the text, shape (N,).
        block_size: characters in a piece.
        stride: distance between the starts of neighbouring pieces.

    >>> Windows(torch.arange(6), block_size=2, stride=2).__getitems__([0, 1])
    (tensor([[0, 1],
            [2, 3]]), tensor([[1, 2],
            [3, 4]]))
    """

    def __init__(self, tokens: Tensor, block_size: int, stride: int) -> None:
        self.pieces = tokens.unfold(0, block_size + 1, stride)  # a view: nothing is copied

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pieces[index, :-1], self.pieces[index, 1:]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        pieces = self.pieces[torch.tensor(indices)].long()
        return pieces[:, :-1], pieces[:, 1:]


class Shakespeare(L.LightningDataModule):
    """The first 90 % of the text for training, the rest for both validation and test.

    Training windows begin anywhere; an epoch has as many as fill the text once. Validation windows lie side by side, so
    each character but the first is predicted once.

    Args:
        root: folder of ``input.txt``, which is downloaded if absent, and checked.
        batch_size: windows in a batch on each process.
        block_size: characters in a window.
        num_workers: loader processes; 0 is fastest: a batch is one index operation in memory.
        train_size: characters to train on, the first of the training text; None for all.

    Raises:
        DataError: the file is truncated or altered, or missing and cannot be downloaded (in ``prepare_data``).
        ConfigError: a block is longer than the validation text or the training text, or the training text is shorter
            than ``train_size`` (in ``setup``).
    """

    sources = (
        Source(
            "input.txt",
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
    )

    vocab_size = 65

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        block_size: int = 64,
        num_workers: int = 0,
        train_size: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    @property
    def block_size(self) -> int:
        """Characters in a window."""
        return self.hparams["block_size"]  # type: ignore[no-any-return]

    def prepare_data(self) -> None:
        ensure(self.hparams["root"], self.sources)

    def setup(self, stage: str) -> None:
        text = (Path(self.hparams["root"]).expanduser() / self.sources[0].name).read_text(encoding="utf-8")
        self.vocabulary = sorted(set(text))
        code = {character: index for index, character in enumerate(self.vocabulary)}
        tokens = torch.tensor([code[character] for character in text], dtype=torch.uint8)
        cut = len(tokens) * 9 // 10
        block_size = self.hparams["block_size"]
        if not 1 <= block_size < len(tokens) - cut:
            raise ConfigError(
                f"data.block_size={block_size} does not fit the text.",
                found=f"{len(tokens) - cut} characters of validation text",
                fix=f"write data.block_size=<1 to {len(tokens) - cut - 1}>",
            )
        wanted = cut if self.hparams["train_size"] is None else self.hparams["train_size"]
        if not block_size < wanted <= cut:
            raise ConfigError(
                f"data.train_size={wanted} does not fit the training text.",
                found=f"{cut} characters, in windows of {block_size} and the one after",
                fix=f"write data.train_size=<{block_size + 1} to {cut}>",
            )
        self.train = Windows(tokens[:wanted], block_size, stride=1)
        self.val = Windows(tokens[cut:], block_size, stride=block_size)

    def decode(self, tokens: Tensor) -> str:
        """Return the text of tokens of shape (N,)."""
        return "".join(self.vocabulary[token] for token in tokens.tolist())

    def train_dataloader(self) -> DataLoader[Any]:
        samples = max(1, len(self.train) // self.hparams["block_size"])
        return train_loader(self, self.train, samples)

    def val_dataloader(self) -> DataLoader[Any]:
        return eval_loader(self, self.val)

    def test_dataloader(self) -> DataLoader[Any]:
        return eval_loader(self, self.val)
