"""torchgeo: segmentation of satellite images (https://github.com/torchgeo/torchgeo), by segmentation-models-pytorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.clients import check, names

pytest.importorskip(
    "torchgeo", reason="torchgeo is not installed: make test-clients runs these in an environment of its own"
)


def build() -> tuple[Any, dict[str, Any]]:
    import torch
    from torchgeo.trainers import SemanticSegmentationTask

    module = SemanticSegmentationTask("segformer", "mit_b0", in_channels=2, num_classes=3)
    images: Any = [{"image": torch.randn(2, 64, 64), "mask": torch.randint(3, (64, 64))} for _ in range(4)]
    loader: Any = torch.utils.data.DataLoader(images, batch_size=2)
    return module, {"train_dataloaders": loader, "val_dataloaders": loader}


def test_segformer(tmp_path: Path) -> None:
    no_decay = names(
        "model.encoder.patch_embed{1,2,3,4}.{proj.bias,norm.weight,norm.bias}",
        "model.encoder.block{1,2,3,4}.{0,1}.norm{1,2}.{weight,bias}",
        "model.encoder.block{1,2,3,4}.{0,1}.{attn.q,attn.kv,attn.proj,mlp.fc1,mlp.dwconv.dwconv,mlp.fc2}.bias",
        "model.encoder.block{1,2,3}.{0,1}.attn.{sr.bias,norm.weight,norm.bias}",
        "model.encoder.norm{1,2,3,4}.{weight,bias}",
        "model.decoder.mlp_stage.{0,1,2,3}.linear.bias",
        "model.decoder.fuse_stage.1.{weight,bias}",
        "model.segmentation_head.0.bias",
    )
    check(build, tmp_path, no_decay)
