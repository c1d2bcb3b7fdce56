"""A residual network for small images (He et al., https://arxiv.org/abs/1512.03385, section 4.2)."""

from __future__ import annotations

from typing import Any

import torch
from models.classifier import Classifier
from torch import Tensor, nn

from lightning_wd.errors import ConfigError


class Block(nn.Module):
    """``relu(norm(conv(relu(norm(conv(x))))) + x)``, with a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            projection = nn.Conv2d(before, after, 1, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y))
        # The stride is a slice: oneDNN's strided 1x1 convolution corrupts memory below 16 channels (its issue 6035).
        mixed: Tensor = y + self.shortcut(x[..., :: self.stride, :: self.stride])
        return mixed.relu()


class ResNet(Classifier):
    """A 3x3 convolution, three stages of residual blocks of widths w, 2w, 4w, average pooling and a linear head.

    Args:
        depth: weighted layers, 6n + 2 for n blocks in a stage: 8, 14, 20, 32, 56, ...
        width: channels of the first stage.
        in_channels: channels of an image.
        num_classes: number of classes.
        optimizer: what ``lightning_wd.configure_optimizers`` takes.
        lr_scheduler: what :func:`lightning_wd.configure_optimizers` takes as its schedule.

    Raises:
        ConfigError: a depth that is not 6n + 2.

    >>> ResNet(depth=8, width=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        in_channels: int = 3,
        num_classes: int = 10,
        optimizer: Any = None,
        lr_scheduler: Any = None,
    ) -> None:
        super().__init__(num_classes)
        self.save_hyperparameters()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            near = 6 * max(1, round((depth - 2) / 6)) + 2
            raise ConfigError(f"model.depth={depth} is not 6n + 2.", nearest=str(near), fix=f"write model.depth={near}")
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        before = width
        for stage in range(3):
            for block in range(blocks):
                after = width * 2**stage
                layers.append(Block(before, after, stride=2 if stage and not block else 1))
                before = after
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # a third faster on CPUs, and on GPUs in half precision
