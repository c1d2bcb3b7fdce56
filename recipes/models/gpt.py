"""A decoder-only transformer as GPT-2: LayerNorm before each block, and a head tied to the embedding."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torchmetrics import MeanMetric

import lightning_wd as wd
from lightning_wd.errors import choice

# layers, heads, width
PRESETS = {
    "tiny": (2, 2, 64),
    "tiny_wide": (2, 4, 128),
    "tiny_wider": (2, 8, 256),
    "mini": (4, 4, 128),
    "small": (6, 6, 384),
    "gpt2": (12, 12, 768),  # 124M with GPT-2's 50,257 tokens and blocks of 1,024
}


class Block(nn.Module):
    """``x <- x + attention(norm(x)); x <- x + mlp(norm(x))``."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self._attention(self.norm1(x)))
        mixed: Tensor = x + self.drop(self.mlp(self.norm2(x)))
        return mixed

    def _attention(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return projected


class GPT(L.LightningModule):
    """Token and position embeddings, blocks of causal attention and MLP, LayerNorm, and the token embedding as head.

    The loss is the mean of ``-log p(next token)``, in nats per token.

    Args:
        preset: ``tiny``, ``tiny_wide``, ``tiny_wider``, ``mini``, ``small`` or ``gpt2``: layers, heads and width.
        vocab_size: number of different tokens.
        block_size: the longest input, in tokens.
        dropout: probability of dropping a value after the embeddings, in attention and on each residual branch.
        optimizer: what ``lightning_wd.configure_optimizers`` takes.
        lr_scheduler: what :func:`lightning_wd.configure_optimizers` takes as its schedule.

    Raises:
        ConfigError: an unknown preset.

    >>> GPT("tiny", vocab_size=65, block_size=8)(torch.zeros(2, 8, dtype=torch.long)).shape
    torch.Size([2, 8, 65])
    """

    def __init__(
        self,
        preset: str = "mini",
        vocab_size: int = 65,
        block_size: int = 64,
        dropout: float = 0.0,
        optimizer: Any = None,
        lr_scheduler: Any = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        layers, heads, width = PRESETS[choice("model.preset", preset, PRESETS)]
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(block_size, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        self._initialise(layers)
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()

    def _initialise(self, layers: int) -> None:
        """Initialise as GPT-2: N(0, 0.02), divided by ``sqrt(2 * layers)`` before the residual stream."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("proj.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def configure_model(self) -> None:
        """Under ``trainer=fsdp2``, shard each block by itself, and the rest with the root."""
        if self.device_mesh is None or isinstance(next(self.parameters()), DTensor):
            return
        for module in (*self.blocks, self):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token, shape (B, T, vocab_size), for tokens of shape (B, T)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.drop(self.tokens(tokens) + self.positions(positions))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, following = batch
        return nn.functional.cross_entropy(self(tokens).flatten(0, 1), following.flatten())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, mean: MeanMetric) -> None:
        mean.update(self._loss(batch), weight=batch[0].numel())
        self.log(f"{stage}/loss", mean, on_step=False, on_epoch=True, prog_bar=True)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_loss)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_loss)

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, self.hparams["optimizer"], self.hparams["lr_scheduler"])
