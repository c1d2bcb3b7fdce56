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
from studies.finished_runs import base, read_csv, read_runs, write_csv

from lightning_wd.runs.figure import COLORS, below, in_style, panels, save

LR, LAM = 2.0**-8, 2.0**-9


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str]]:
    """Return the overrides of each sweep by its name."""
    return {
        "adam_l2": [
            "hparams_search=resumable",
            *base(data, smoke),
            "optimizer=adam_l2",
            "optimizer/decay=l2",
            f"optimizer.lr={LR}",
            f"optimizer.weight_decay={LAM}",
            "seed=0",
            "lr_scheduler=constant",  # so that the last steps decay at all
            "hydra.sweep.subdir=seed${seed}",
        ]
    }


def report(runs: Path, out: Path) -> None:
    """Write the gradient scale and decay of each decaying weight, and quantiles for each tensor."""
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


@in_style()
def draw(out: Path) -> None:
    """Draw the decay of each weight over its gradient's scale, and its range in each tensor."""
    *tensors, whole = read_csv(out / "tensors.csv")
    weights = [(row["gradient_scale"], row["effective_decay"]) for row in read_csv(out / "weights.csv")]
    title = f"Adam with L2, lr {LR:.3g}, lam {LAM:.3g}: the decay of each of {len(weights):,} weights"
    figure, (left, right) = panels(2, title, height=3.2)
    start = 0
    for place, row in enumerate(tensors):
        here = slice(start, start := start + int(row["weights"]))
        color = COLORS[place]
        left.plot(*zip(*weights[here], strict=True), ".", markersize=2, color=color, rasterized=True)
        label = f"{row['tensor']}, {int(row['weights']):,} weights"
        right.plot([row["p5"], row["p95"]], [place, place], linewidth=3, color=color, label=label)
        right.plot([row["p50"]], [place], "o", markersize=8, color=color)
        text = {"textcoords": "offset points", "ha": "center", "backgroundcolor": "white", "fontsize": "small"}
        right.annotate(f"p95/p5 {row['spread']:.1f}", (row["p50"], place), (0, 11), **text)
    adamw = f"AdamW of the median strength: {whole['p50']:.2g} for all weights"
    for line in (left.axhline, right.axvline):
        line(whole["p50"], color="black", linestyle="--", label=adamw, zorder=0)
    left.set(xscale="log", yscale="log", title="large gradients, little decay")
    left.set(xlabel="gradient scale of a weight, sqrt(v_hat)", ylabel="effective decay d_i per step")
    right.set(xscale="log", xlabel="effective decay d_i per step: p5, median, p95", yticks=[])
    right.set_ylim(len(tensors) - 0.5, -0.8)
    right.set_title(f"all weights: p95/p5 = {whole['spread']:.1f}; AdamW's is 1")
    below(figure, "", [line for line in right.get_lines() if not line.get_label().startswith("_")], columns=2)
    save(figure, out / "lost_decay.png")


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
