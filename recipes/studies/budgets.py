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
from studies.finished_runs import base, new_figure, read_runs, write_csv

from lightning_wd.runs.separability import row_optima

UNITS = ("raw", "normalized", "timescale_epochs")
_LABEL = {
    "raw": "raw lam (independent)",
    "normalized": "normalized, lam * sqrt(steps)",
    "timescale_epochs": "timescale in epochs, 1 / (lam * steps per epoch)",
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
    """Write the runs, the best value in each unit, and the picture."""
    found = {kind: _curves(runs / kind) for kind in ("epochs", "batch")}
    if found["batch"]:
        middle = sorted(found["epochs"])[1]
        run = read_runs(runs / "epochs" / str(middle))[0]
        found["batch"][run.config["data"]["batch_size"]] = found["epochs"][middle]
    found = {kind: curves for kind, curves in found.items() if len(curves) > 1}
    table: list[tuple[Any, ...]] = []
    rows, figure = [], new_figure(11, 3.6 * len(found))
    grid = figure.subplots(len(found), 3, sharey="row", squeeze=False)
    figure.suptitle("AdamW's test error on Fashion-MNIST over weight decay in three units; stars mark the best")
    for panels, (kind, curves) in zip(grid, found.items(), strict=True):
        best: dict[str, list[float]] = defaultdict(list)
        for color, (size, curve) in enumerate(sorted(curves.items())):
            raw = np.array(sorted(curve))
            mean = np.array([np.mean(curve[lam]["errors"]) for lam in raw])
            rows += [(kind, size, lam, seed, e) for lam in raw for seed, e in enumerate(curve[lam]["errors"])]
            log_best = row_optima(mean[None], np.log2(raw))[0][0]
            for axes, unit in zip(panels, UNITS, strict=True):
                x = [_in_unit(unit, lam, curve[raw[0]]) for lam in raw]
                axes.plot(
                    x, mean, ".-", color=f"C{color}", label=f"{size} epochs" if kind == "epochs" else f"batch {size}"
                )
                star = _in_unit(unit, 2.0**log_best, curve[raw[0]])
                axes.plot([star], [mean.min()], "*", color=f"C{color}", markersize=14)
                best[unit].append(star)
        for axes, unit in zip(panels, UNITS, strict=True):
            axes.set_xscale("log", base=2)
            axes.set_xlabel(_LABEL[unit])
            spread = math.log2(max(best[unit]) / min(best[unit]))
            axes.set_title(f"best values differ by {spread:.1f} octaves", fontsize=10)
            axes.grid(alpha=0.3)
            table += [(kind, size, unit, value) for size, value in zip(sorted(curves), best[unit], strict=True)]
            table.append((kind, "spread_octaves", unit, spread))
        panels[0].set_ylabel("test error (%)")
        panels[0].set_ylim(*_limits(curves))
        panels[0].legend(fontsize="small")
    figure.savefig(out / "budgets.png", dpi=130)
    write_csv(out / "runs.csv", ["changed", "value", "weight_decay_independent", "seed", "test_error_percent"], rows)
    write_csv(out / "best.csv", ["changed", "value", "unit", "best"], table)


def _curves(folder: Path) -> dict[int, dict[float, dict[str, Any]]]:
    """Return errors and step counts as curves[size of the run][lam]."""
    curves: dict[int, dict[float, dict[str, Any]]] = defaultdict(dict)
    for run in read_runs(folder):
        size = int(run.folder.parent.name)
        steps = run.series["test/loss"][-1][0]
        point = {"errors": [], "steps": steps, "per_epoch": steps / run.config["trainer"]["max_epochs"]}
        curves[size].setdefault(run.config["optimizer"]["weight_decay"], point)["errors"].append(run.test_error)
    return curves


def _in_unit(unit: str, lam: float, point: dict[str, Any]) -> float:
    if unit == "normalized":
        return float(lam * math.sqrt(point["steps"]))
    return float(1.0 / (lam * point["per_epoch"])) if unit == "timescale_epochs" else float(lam)


def _limits(curves: dict[int, dict[float, dict[str, Any]]]) -> tuple[float, float]:
    """Return limits that show the minima, not the strongest decays."""
    means = [np.mean(point["errors"]) for curve in curves.values() for point in curve.values()]
    return min(means) - 0.5, float(np.quantile(means, 0.75)) + 1.0
