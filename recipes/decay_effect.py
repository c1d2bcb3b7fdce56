"""What decay did in a run, in one line at its end."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer

from lightning_wd.configure.budget import run_steps
from lightning_wd.conversions import all_units
from lightning_wd.optimizers.param_groups import as_float, group_style, peak_lr

__all__ = ["DecayEffect"]


class DecayEffect(L.Callback):
    """Note the norm of the weights that the mask lets decay, at a run's start and end; a resume keeps the start.

    ``str(effect)`` is the line, 80 columns at most. The timescale is of the group that decays most, at its peak
    learning rate.
    """

    def __init__(self) -> None:
        self._start: float | None = None
        self._end = math.nan
        self._amount = ""

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = state_dict["start"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._start is None:
            self._start = _norm(trainer.optimizers)
        self._amount = _amount(trainer.optimizers, run_steps(trainer)[0])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end = _norm(trainer.optimizers)

    def __str__(self) -> str:
        return f"decay: weight norm {self._start:.3g} -> {self._end:.3g}, {self._amount}"


def _norm(optimizers: list[Optimizer]) -> float:
    """Return the norm of all weights that may decay, whole ones where they are sharded (FSDP2)."""
    rows = [row for optimizer in optimizers for row in getattr(optimizer, "decay_plan", ()) if row.wd_mult]
    norms = [torch.linalg.vector_norm(row.param.detach().float()) for row in rows]
    return math.hypot(*(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm) for norm in norms))


def _amount(optimizers: list[Optimizer], total: int | None) -> str:
    found, styles = [], set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            style, own = group_style(optimizer, group), group.get("weight_decay", 0.0)
            lam = as_float(group.get("base_weight_decay", own))
            styles.add(style)
            if lam and style not in (None, "none"):
                found.append(all_units(str(style), lam, lr=peak_lr(group), total_steps=total))
    if not found:
        return "held by hyperball" if "hyperball" in styles else "no decay"
    timed = [(units["timescale_steps"], units.get("timescale_runs")) for units in found if "l2" not in units]
    if not timed:
        return f"L2 {found[0]['l2']:.3g} in the gradient, without a timescale"
    steps, runs = min(timed)
    if runs is None:
        return f"timescale {steps:,.0f} steps"
    return f"timescale {steps:,.0f} steps, " + (f"{runs:.2g} of the run" if runs < 10 else f"{runs:,.0f} times the run")
