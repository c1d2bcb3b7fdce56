"""Optimizers in the settings that take another way through a step, and how they step over given weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lightning_wd as wd
from lightning_wd.optimizers import SGDL2, AdamL2

OPTIMIZERS = [
    pytest.param(wd.AdamW, {"weight_decay": 0.1}, id="AdamW"),
    pytest.param(wd.AdamW, {"weight_decay": 0.1, "cautious_wd": True}, id="AdamW-cautious"),
    pytest.param(wd.AdamW, {"weight_decay": 0.01, "style": "constant"}, id="AdamW-constant"),
    pytest.param(AdamL2, {"weight_decay": 0.1}, id="AdamL2"),
    pytest.param(wd.SGDW, {"weight_decay": 0.1, "momentum": 0.9}, id="SGDW"),
    pytest.param(wd.SGDW, {"weight_decay": 0.1}, id="SGDW-plain"),
    pytest.param(
        wd.SGDW, {"weight_decay": 0.1, "momentum": 0.9, "nesterov": True, "cautious_wd": True}, id="SGDW-nesterov"
    ),
    pytest.param(SGDL2, {"weight_decay": 0.1, "momentum": 0.9}, id="SGDL2"),
]
inductor = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning",
    "ignore:Skipping serialization of skipfiles_inline_module_allowlist:UserWarning",  # torch 2.6, of its own config
)


def run(cls: Any, settings: dict[str, Any], weights: list[torch.Tensor], lay: list[Any], steps: int = 3) -> list[Any]:
    params = [torch.nn.Parameter(w.clone(memory_format=torch.preserve_format)) for w in weights]
    params = [
        torch.nn.Parameter(w.detach()) if p.stride() != w.stride() else p for p, w in zip(params, weights, strict=True)
    ]
    optimizer = cls(params, lr=0.1, **settings)
    source = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for p, place in zip(params, lay, strict=True):
            p.grad = place(torch.randn(p.shape, generator=source))
        optimizer.step()
    return [p.detach().contiguous() for p in params]
