"""lightly: self-supervised learning on images (https://github.com/lightly-ai/lightly)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.clients import check, names

pytest.importorskip(
    "lightly", reason="lightly is not installed: make test-clients runs these in an environment of its own"
)


def build() -> tuple[Any, dict[str, Any]]:
    import torch
    from lightly.embedding import SelfSupervisedEmbedding
    from lightly.loss import NTXentLoss
    from lightly.models import ResNetGenerator
    from lightly.models.modules import SimCLRProjectionHead

    class SimCLR(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            resnet = ResNetGenerator("resnet-18", width=0.125)
            self.backbone = torch.nn.Sequential(*list(resnet.children())[:-1], torch.nn.AdaptiveAvgPool2d(1))
            self.projection_head = SimCLRProjectionHead(64, 64, 16)

        def forward(self, *views: Any) -> Any:
            return [self.projection_head(self.backbone(view).flatten(start_dim=1)) for view in views]

    model = SimCLR()
    views: Any = [((torch.randn(3, 16, 16), torch.randn(3, 16, 16)), 0, "") for _ in range(32)]
    loader = torch.utils.data.DataLoader(views, batch_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9)
    return SelfSupervisedEmbedding(model, NTXentLoss(), optimizer, loader), {}


def test_simclr(tmp_path: Path) -> None:
    no_decay = names(
        "model.backbone.1.{weight,bias}",
        "model.backbone.{2,3,4,5}.{0,1}.bn{1,2}.{weight,bias}",
        "model.backbone.{3,4,5}.0.shortcut.1.{weight,bias}",
        "model.projection_head.layers.{1,4}.{weight,bias}",
    )
    check(build, tmp_path, no_decay, namespace="pytorch_lightning")
