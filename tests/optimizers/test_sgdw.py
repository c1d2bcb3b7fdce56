"""SGDW: momentum buffers that come late, and low precision that torch's fused kernel gets wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lightning_wd as wd


def test_gradients_that_come_late_join_a_group_under_way() -> None:
    """torch's fused SGD takes all momentum buffers or none; a parameter unfrozen later has none yet."""
    cases: list[dict[str, Any]] = [{}, {"fused": True}, {"foreach": False}]
    for settings in cases:
        a, b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
        optimizer = wd.SGDW([a, b], lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1, **settings)
        for t in range(4):
            a.grad = torch.ones(3)
            b.grad = torch.ones(3) if t >= 2 else None
            optimizer.step()
        alone = torch.nn.Parameter(torch.ones(3))
        optimizer = wd.SGDW([alone], lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1)
        for _ in range(2):
            alone.grad = torch.ones(3)
            optimizer.step()
        torch.testing.assert_close(b, alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fused_sgd_on_low_precision_cpu_weights(dtype: torch.dtype) -> None:
    """torch's kernel (2.13) leaves all but the last few elements as they were; ours must not."""
    l2 = {"momentum": 0.9, "style": "l2", "weight_decay": 0.5}
    cases: list[dict[str, Any]] = [{}, {"weight_decay": 0.5}, l2]
    kernels: list[dict[str, Any]] = [{}, {"foreach": False}]
    for settings in cases:
        results = []
        for flags in kernels:
            p = torch.nn.Parameter(torch.ones(100, dtype=dtype))
            optimizer = wd.SGDW([p], lr=0.1, **settings, **flags)
            for _ in range(2):
                p.grad = torch.ones_like(p)
                optimizer.step()
            results.append(p.detach())
        assert torch.equal(*results)
        assert (results[0] < 0.9).all()
    p = torch.nn.Parameter(torch.ones(100, dtype=dtype))
    p.grad = torch.ones_like(p)
    with pytest.raises(wd.ConfigError, match=r"fused=True is wrong for parameter 0 of group 0: on a CPU torch's fused"):
        wd.SGDW([p], lr=0.1, fused=True).step()
