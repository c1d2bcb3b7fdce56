"""Section 2 of arXiv 1711.05101 made visible: how much each weight of an Adam-L2 run is really decayed.

In a steady state Adam's step turns the penalty's gradient ``lam * w`` into ``d_i * w`` with
``d_i = lr * lam / (sqrt(v_hat_i) + eps)``: weights with large gradients decay less. AdamW decays all by the same ``d``.
Read from the optimizer state in the run's ``last.ckpt``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from studies.finished_runs import base, new_figure, read_runs, write_csv


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str]]:
    """Return the overrides of each sweep by its name."""
    return {
        "adam_l2": [
            "hparams_search=resumable",
            *base(data, smoke),
            "optimizer=adam_l2",
            "optimizer/decay=l2",
            f"optimizer.lr={2.0**-8}",
            f"optimizer.weight_decay={2.0**-9}",
            "seed=0",
            "lr_scheduler=constant",  # so that the last steps decay at all
            "hydra.sweep.subdir=seed${seed}",
        ]
    }


def report(runs: Path, out: Path) -> None:
    """Write the gradient scale and decay of each decaying weight, quantiles for each tensor, and the picture."""
    (run,) = read_runs(runs)
    checkpoint = torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)
    optimizer = checkpoint["optimizer_states"][0]
    group = next(g for g in optimizer["param_groups"] if g["name"] == "decay")
    scales, fractions, rows = [], [], []
    for index, name in zip(group["params"], group["param_names"], strict=True):
        scale, fraction = effective_decay(optimizer["state"][index], group)
        scales.append(scale)
        fractions.append(fraction)
        quantiles = np.quantile(fraction, [0.05, 0.5, 0.95])
        rows.append((name, len(fraction), float(np.median(scale)), *map(float, quantiles), quantiles[2] / quantiles[0]))
    scale, fraction = np.concatenate(scales), np.concatenate(fractions)
    low, middle, high = np.quantile(fraction, [0.05, 0.5, 0.95])
    rows.append(("all", len(fraction), float(np.median(scale)), float(low), float(middle), float(high), high / low))
    write_csv(out / "tensors.csv", "tensor weights median_gradient_scale p5 p50 p95 spread".split(), rows)
    write_csv(
        out / "weights.csv", ["gradient_scale", "effective_decay"], zip(scale.tolist(), fraction.tolist(), strict=True)
    )

    figure = new_figure(10.5, 4.6)
    lr, lam = group["lr"], group["weight_decay"]
    figure.suptitle(f"Adam with L2, lr {lr:.3g}, lam {lam:.3g}: the decay of each of {len(scale):,} weights")
    left, right = figure.subplots(1, 2)
    for color, (name, x, y) in enumerate(zip(group["param_names"], scales, fractions, strict=True)):
        left.plot(x, y, ".", markersize=3, color=f"C{color}", label=f"{name}, {len(x):,} weights")
        p5, p50, p95 = np.quantile(y, [0.05, 0.5, 0.95])
        right.plot([p5, p95], [color, color], "-", linewidth=3, color=f"C{color}")
        right.plot([p50], [color], "o", markersize=8, color=f"C{color}")
        right.annotate(f"p95/p5 {p95 / p5:.1f}", (p50, color), (0, 9), textcoords="offset points", ha="center")
    for axes in (left, right):
        line = axes.axhline if axes is left else axes.axvline
        line(middle, color="black", linestyle="--", label=f"AdamW of the median strength, {middle:.2g} for all")
        axes.grid(alpha=0.3)
    left.set(xscale="log", yscale="log", title="large gradients, little decay")
    left.set(xlabel="gradient scale of a weight, sqrt(v_hat)", ylabel="effective decay d_i per step")
    left.legend(fontsize="small", markerscale=3)
    right.set(xscale="log", xlabel="effective decay d_i per step: p5, median, p95")
    right.set_yticks(range(len(scales)), group["param_names"])
    right.set_ylim(len(scales) - 0.4, -0.7)
    right.set_title(f"all weights: p95/p5 = {high / low:.1f}; AdamW's is 1")
    figure.savefig(out / "lost_decay.png", dpi=130)


def effective_decay(state: dict[str, Any], group: dict[str, Any]) -> tuple[Any, Any]:
    """Return ``sqrt(v_hat)`` and ``lr * lam / (sqrt(v_hat) + eps)`` of each weight of a tensor.

    Args:
        state: the tensor's state of Adam.
        group: its parameter group.
    """
    corrected = state["exp_avg_sq"].flatten().double() / (1.0 - group["betas"][1] ** float(state["step"]))
    scale = corrected.sqrt()
    fraction = group["lr"] * group["weight_decay"] / (scale + group["eps"])
    return scale.numpy(), fraction.numpy()
