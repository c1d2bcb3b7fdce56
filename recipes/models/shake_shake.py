"""Shake-shake regularisation, 26 2x{32, 64, 96}d (Gastaldi, https://arxiv.org/abs/1705.07485).

The network of the AdamW paper (https://arxiv.org/abs/1711.05101): 11.6 million parameters at width 64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models.classifier import Classifier
from torch import Tensor, nn


class Shake(torch.autograd.Function):
    """``alpha * a + (1 - alpha) * b``; the backward pass draws another ``beta`` for ``alpha``; one for each image."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        alpha = torch.rand(len(a), 1, 1, 1, dtype=a.dtype, device=a.device)
        return b + alpha * (a - b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        beta = torch.rand(len(grad), 1, 1, 1, dtype=grad.dtype, device=grad.device)
        return beta * grad, (1 - beta) * grad


shake: Callable[[Tensor, Tensor], Tensor] = Shake.apply  # torch leaves it untyped


class Shortcut(nn.Module):
    """Two strided 1x1 paths, the second shifted by one pixel, concatenated: they see the even and the odd pixels."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(before, after // 2, 1, bias=False)
        self.conv2 = nn.Conv2d(before, after // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        shifted = nn.functional.pad(x, (-1, 1, -1, 1))
        # The stride is a slice: oneDNN's strided 1x1 convolution corrupts memory below 16 channels (its issue 6035).
        x, shifted = (y[..., :: self.stride, :: self.stride] for y in (x, shifted))
        joined: Tensor = self.norm(torch.cat([self.conv1(x), self.conv2(shifted)], dim=1))
        return joined


class Block(nn.Module):
    """``shortcut(x) + shake(branch1(x), branch2(x))``; in evaluation the mean of the branches."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.branch1 = self._branch(before, after, stride)
        self.branch2 = self._branch(before, after, stride)
        self.shortcut = nn.Identity() if before == after else Shortcut(before, after, stride)

    @staticmethod
    def _branch(before: int, after: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.branch1(x), self.branch2(x)
        mixed: Tensor = shake(a, b) if self.training else (a + b) / 2
        shortcut: Tensor = self.shortcut(x)
        return shortcut + mixed


class ShakeShake(Classifier):
    """A 3x3 convolution to 16 channels, three stages of two-branch blocks of widths w, 2w, 4w, pooling, a linear head.

    Args:
        width: channels w of the first stage, even: 32, 64 or 96 in the paper.
        blocks: blocks in a stage; 4 makes 26 layers.
        in_channels: channels of an image.
        num_classes: number of classes.
        optimizer: what ``lightning_wd.configure_optimizers`` takes.
        lr_scheduler: what :func:`lightning_wd.configure_optimizers` takes as its schedule.

    >>> ShakeShake(width=4, blocks=1)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        width: int = 64,
        blocks: int = 4,
        in_channels: int = 3,
        num_classes: int = 10,
        optimizer: Any = None,
        lr_scheduler: Any = None,
    ) -> None:
        super().__init__(num_classes)
        self.save_hyperparameters()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)]
        before = 16
        for stage in range(3):
            for block in range(blocks):
                after = width * 2**stage
                layers.append(Block(before, after, stride=2 if stage and not block else 1))
                before = after
        head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes)]
        self.net = nn.Sequential(*layers, *head)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)
