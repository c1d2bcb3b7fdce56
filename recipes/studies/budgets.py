"""Supplementary Fig. 3 of arXiv 1711.05101: the unit of decay whose best value changes least with the run.

AdamW over decay at three budgets and at three batch sizes. The same runs are read in each unit: raw ``lam``
(``independent``), normalized ``lam * sqrt(steps)``, and the timescale ``1 / (lam * steps_per_epoch)`` in epochs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from studies.finished_runs import Run, base, read_csv, read_runs, write_csv

from lightning_wd.runs.figure import COLORS, LINES, below, in_style, key, panels, save
from lightning_wd.runs.separability import row_optima

UNITS = ("raw", "normalized", "timescale_epochs")
_LABEL = {
    "raw": "lam of independent",
    "normalized": "normalized: lam * sqrt(steps)",
    "timescale_epochs": "timescale in epochs",
}


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str]]:
    """Return the overrides of each sweep by its name."""
    shared = [
        "hparams_search=lr_wd_grid",
        *base(data, smoke),
        "optimizer=adamw",
        "optimizer/decay=independent",
        "hparams_search.lr=[-7,-7]",
        f"hparams_search.weight_decay={'[-10,-6,2]' if smoke else '[-9,-4]'}",
        f"hparams_search.seed='{'0' if smoke else '0,1,2'}'",
        "trainer.check_val_every_n_epoch=${trainer.max_epochs}",
    ]
    epochs = (1, 2) if smoke else (10, 20, 40)
    batches = (128,) if smoke else (25, 100)  # the middle budget has the middle batch size
    made = {f"epochs/{n}": [*shared, f"trainer.max_epochs={n}"] for n in epochs}
    for batch in batches:
        made[f"batch/{batch}"] = [*shared, f"trainer.max_epochs={epochs[1]}", f"data.batch_size={batch}"]
    return made


def report(runs: Path, out: Path) -> None:
    """Write the runs, and the best value in each unit."""
    rows = []
    for kind in ("epochs", "batch"):
        for run in read_runs(runs / kind):
            rows.append((kind, *_row(int(run.folder.parent.name), run)))
    batches = sorted({size for kind, size, *_ in rows if kind == "batch"})
    if batches:  # the middle budget has the middle batch size
        middle = sorted({size for kind, size, *_ in rows if kind == "epochs"})[1]
        for run in read_runs(runs / "epochs" / str(middle)):
            rows.append(("batch", *_row(run.config["data"]["batch_size"], run)))
    head = "changed value weight_decay_independent seed test_error_percent steps steps_per_epoch".split()
    write_csv(out / "runs.csv", head, sorted(rows, key=lambda row: (-ord(row[0][0]), *row[1:])))
    write_csv(out / "best.csv", ["changed", "value", "unit", "best"], _best(_curves(out)))


def _row(size: int, run: Run) -> tuple[Any, ...]:
    steps = run.series["test/loss"][-1][0]
    lam, per_epoch = run.config["optimizer"]["weight_decay"], steps // run.config["trainer"]["max_epochs"]
    return size, lam, run.config["seed"], run.test_error, steps, per_epoch


@in_style()
def draw(out: Path) -> None:
    """Draw the error over the amount in each unit: a row of panels for what changes, a line for each value."""
    curves = {kind: found for kind, found in _curves(out).items() if len(found) > 1}
    best = {(row["changed"], row["value"], row["unit"]): row["best"] for row in read_csv(out / "best.csv")}
    title = "AdamW's test error on Fashion-MNIST over weight decay in three units; stars mark the best"
    figure, axes = panels(3 * len(curves), title, columns=3, height=2.6, share_y=True)
    labels: dict[int, list[str]] = defaultdict(list)
    for place, (kind, found) in enumerate(curves.items()):
        row = axes[3 * place : 3 * place + 3]
        for number, (size, curve) in enumerate(sorted(found.items())):
            lams = sorted(curve)
            means = [np.mean(curve[lam]["errors"]) for lam in lams]
            labels[number].append(f"{size} epochs" if kind == "epochs" else f"batch {size}")
            look = {"color": COLORS[number], "linestyle": LINES[number]}
            for each, unit in zip(row, UNITS, strict=True):
                each.plot([_in_unit(unit, lam, curve[lam]) for lam in lams], means, marker=".", **look)
                each.plot([best[kind, size, unit]], [min(means)], "*", color=COLORS[number], markersize=13)
        for each, unit in zip(row, UNITS, strict=True):
            each.set_xscale("log", base=2)
            each.set(xlabel=_LABEL[unit], title=f"best: {best[kind, 'spread_octaves', unit]:.1f} octaves apart")
        row[0].set(ylabel="test error (%)", ylim=_limits(found))
    lines = [key("; ".join(labels[n]), COLORS[n], LINES[n]) for n in labels]
    below(figure, f"What changes, row by row: {', '.join(curves)}.", lines)
    save(figure, out / "budgets.png")


def _curves(out: Path) -> dict[str, dict[int, dict[float, dict[str, Any]]]]:
    """Return errors and step counts as curves[what changes][its value][lam], from ``runs.csv``."""
    curves: dict[str, dict[int, dict[float, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for row in read_csv(out / "runs.csv"):
        point = {"errors": [], "steps": row["steps"], "per_epoch": row["steps_per_epoch"]}
        cells = curves[row["changed"]][int(row["value"])]
        cells.setdefault(row["weight_decay_independent"], point)["errors"].append(row["test_error_percent"])
    return curves


def _best(curves: dict[str, dict[int, dict[float, dict[str, Any]]]]) -> list[tuple[Any, ...]]:
    """Return the best value of each unit at each value of what changes, and how far apart they are."""
    table: list[tuple[Any, ...]] = []
    for kind, found in curves.items():
        best: dict[str, list[float]] = {unit: [] for unit in UNITS}
        for _, curve in sorted(found.items()):
            lams = np.array(sorted(curve))
            means = np.array([np.mean(curve[lam]["errors"]) for lam in lams])
            log_best = row_optima(means[None], np.log2(lams))[0][0]
            for unit in UNITS:
                best[unit].append(_in_unit(unit, 2.0**log_best, curve[lams[0]]))
        for unit, values in best.items():
            table += [(kind, size, unit, value) for size, value in zip(sorted(found), values, strict=True)]
            table.append((kind, "spread_octaves", unit, math.log2(max(values) / min(values))))
    return table


def _in_unit(unit: str, lam: float, point: dict[str, Any]) -> float:
    if unit == "normalized":
        return float(lam * math.sqrt(point["steps"]))
    return float(1.0 / (lam * point["per_epoch"])) if unit == "timescale_epochs" else float(lam)


def _limits(curves: dict[int, dict[float, dict[str, Any]]]) -> tuple[float, float]:
    """Return limits that show the minima, not the strongest decays."""
    means = [np.mean(point["errors"]) for curve in curves.values() for point in curve.values()]
    return min(means) - 0.5, float(np.quantile(means, 0.75)) + 1.0
