"""Every style, towards zero and towards an anchor, cautious or not, in every implementation, against the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import reference
from helpers.steps import inductor

import lightning_wd as wd
from lightning_wd.optimizers import base

STEPS = 200
IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "single": {"foreach": False},
    "compiled": {"compile": True},
    "default": {},  # compiled too: the test lowers the size it is worth from
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.05}
OPTIMIZERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "adamw": (wd.AdamW, reference.Adam, {}),
    "sgdw": (wd.SGDW, reference.SGD, {"momentum": 0.9, "nesterov": True}),
    "sgdw-plain": (wd.SGDW, reference.SGD, {"maximize": True}),
}
STYLES = {"l2": 0.1, "decoupled": 0.1, "independent": 2e-3, "constant": 2e-3, "corrected": 0.1, "none": 0.5}


def cases() -> list[Any]:
    """Each style once with and without an anchor and caution, where they have a meaning."""
    plain = [(style, toward, False) for style in STYLES for toward in ("zero", "init")]
    careful = [(style, toward, True) for style, toward, _ in plain if style not in ("l2", "none")]
    return [
        pytest.param(name, style, toward, cautious, id=f"{name}-{style}-{toward}{'-cautious' * cautious}")
        for name in OPTIMIZERS
        for style, toward, cautious in [*plain, *careful, ("hyperball", "zero", False)]
    ]


def trajectory(dtype: torch.dtype) -> tuple[Any, Any, Any, list[float]]:
    """Return an anchor, start weights, gradients and learning rates."""
    rng = np.random.default_rng(0)
    anchor, w0 = rng.normal(size=(2, 5, 7))
    gradients = rng.normal(size=(STEPS, 5, 7)) + 0.3
    gradients[7] = 0
    lrs = [0.05 * min(1.0, t / 20) * (0.55 + 0.45 * math.cos(math.pi * t / STEPS)) for t in range(STEPS)]
    arrays = (torch.tensor(a).to(dtype).double().numpy() for a in (anchor, w0, gradients))  # what the dtype can hold
    return (*arrays, lrs)


@inductor
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "style", "toward", "cautious"), cases())
def test_equals_the_reference_over_200_steps(
    name: str, style: str, toward: str, cautious: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MIN_NATIVE", 0)
    cls, twin_cls, extra = OPTIMIZERS[name]
    lam = STYLES.get(style, 0.0)
    anchor, w0, gradients, lrs = trajectory(dtype)
    twin = twin_cls(w0, base_lr=0.05, lam=lam, style=style, cautious=cautious, **extra)
    twin.anchor = anchor if toward == "init" else 0.0
    steps = 20 if dtype == torch.bfloat16 else STEPS  # after that its second moments stand still
    for g, lr in zip(gradients[:steps], lrs, strict=False):
        twin.step(g, lr)

    for implementation, flags in IMPLEMENTATIONS.items():
        if dtype == torch.bfloat16 and implementation in ("fused", "compiled"):
            continue  # torch's fused SGD does nothing there; the compiled pass takes half a minute to make
        p = torch.nn.Parameter(torch.tensor(anchor, dtype=dtype))
        settings = {"weight_decay": lam, "style": style, "cautious_wd": cautious, "toward": toward, **extra, **flags}
        optimizer = cls([p], lr=0.05, **settings) if style != "hyperball" else None
        with torch.no_grad():
            p.copy_(torch.tensor(w0))
        optimizer = optimizer or cls([p], lr=0.05, **settings)
        for g, lr in zip(torch.tensor(gradients[:steps], dtype=dtype), lrs, strict=False):
            optimizer.param_groups[0]["lr"] = lr
            p.grad = g
            optimizer.step()
        error = np.linalg.norm(p.detach().double().numpy() - twin.w) / np.linalg.norm(twin.w)
        assert error <= TOLERANCE[dtype], f"{implementation}: {error:.2g}"
