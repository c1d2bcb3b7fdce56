"""Comparisons of complex tensors are not implemented, and a monitor that compares them ends the run.

https://github.com/pytorch/pytorch/issues/100707 (pytorch#100707)

There: an operation that a dtype lacks raises in the middle of training.
Here: DecayMonitor measures complex, 8-bit, 16-bit and integer weights, and its numbers are finite.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.small_run import make_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_wd as wd
from lightning_wd.callbacks.measures import Snapshot, adamw_rms


class Complex(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 2), 3 + 4j, dtype=torch.complex64))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.weight.abs().sum() + 0 * batch.sum()

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, {"name": "adamw", "lr": 1e-3, "decay": {"cautious": True}})


def test_a_complex_weight_under_cautious_decay(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, wd.DecayMonitor(1), max_steps=1)
    trainer.fit(Complex(), DataLoader(torch.zeros(4, 1)))  # type: ignore[arg-type]
    numbers = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert [key for key, value in numbers.items() if not math.isfinite(value)] == []
    assert numbers["wd/decay/weight_norm"] == pytest.approx(10, rel=1e-3)  # 4 numbers of absolute value 5
    assert numbers["wd/decay/cautious_fraction"] == 1.0  # the gradient points along the weight


class Shrinks(torch.optim.Optimizer):
    """Takes a tenth of each weight, in any dtype."""

    def __init__(self, params: Any) -> None:
        defaults = {"lr": 0.1, "weight_decay": 1.0, "style": "decoupled", "cautious_wd": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                wide = p.to(torch.complex128 if p.is_complex() else torch.float64)
                p.copy_((wide * 0.9).to(p.dtype))


@pytest.mark.parametrize("d", [0.1, 1e-9])
@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize(
    "dtype",
    ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float64", "complex64", "complex128", "int8", "int64"],
)
def test_every_dtype_is_measured(dtype: str, cautious: bool, d: float) -> None:
    values = torch.tensor([[16.0, -32.0], [64.0, 0.0]]).to(getattr(torch, dtype))
    weight = nn.Parameter(values, requires_grad=False)
    weight.grad = values.clone()
    optimizer = Shrinks([weight])
    optimizer.param_groups[0]["cautious_wd"] = cautious
    snapshot = Snapshot(optimizer)
    optimizer.step()
    (numbers,) = snapshot.measure(optimizer, [d])
    assert [key for key, value in numbers.items() if not math.isfinite(value)] == []
    assert numbers["weight_norm"] == pytest.approx(0.9 * math.sqrt(16**2 + 32**2 + 64**2), rel=0.05)
    assert numbers["grad_norm"] == pytest.approx(math.sqrt(16**2 + 32**2 + 64**2))
    assert numbers["nonfinite_weights"] == 0
    if cautious:
        assert numbers["cautious_fraction"] == 1.0
    rounds = d == 1e-9 and not dtype.startswith("int")
    assert numbers["rounded_away"] == (1.0 if rounds and dtype not in ("float64", "complex128") else 0.0)


def test_a_vanishing_decay_is_measured() -> None:
    """At the foot of a cosine ``1 - d`` rounds to 1."""
    assert adamw_rms(1e-20, 1e-22, 0.9) == pytest.approx(1e-20 / math.sqrt(2e-22))
