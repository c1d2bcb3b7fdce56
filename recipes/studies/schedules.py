"""Fig. 1 of arXiv 1711.05101: AdamW against Adam with L2 under a fixed, a drop-step and a cosine schedule.

Once at a common learning rate, that with the lowest sum of both best errors in the grids of study ``heatmaps``; once at
each optimizer's best cell. Cells are chosen by the mean over the grids' seeds, and compared with other seeds.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from studies.finished_runs import base, mean_and_half_width, read_csv, read_runs, write_csv

from lightning_wd.runs.figure import COLORS, TITLES, below, in_style, panels, save

STYLE = {"adamw": "independent", "adam_l2": "l2"}
SCHEDULES = {"constant": "fixed", "MultiStepLR": "drop-step", "warmup_cosine": "cosine"}


def settings(out: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Return (lr, lam) of each optimizer at the common learning rate and at its best cell."""
    cells: dict[str, dict[tuple[float, float], list[float]]] = defaultdict(lambda: defaultdict(list))
    with (out.parent / "heatmaps/heatmap.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            cells[row["optimizer"]][float(row["lr"]), float(row["amount"])].append(float(row["error"]))
    errors = {name: {cell: fmean(found) for cell, found in cells[name].items()} for name in STYLE}
    best = {name: min(errors[name], key=errors[name].__getitem__) for name in STYLE}
    rows = {  # the best cell at each learning rate
        name: {lr: min((e, lam) for (x, lam), e in errors[name].items() if x == lr) for lr, _ in errors[name]}
        for name in STYLE
    }
    shared = set.intersection(*(set(rows[name]) for name in STYLE))
    common = min(shared, key=lambda lr: sum(rows[name][lr][0] for name in STYLE))
    return {"common": {name: (common, rows[name][common][1]) for name in STYLE}, "best": best}


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str]]:
    """Return the overrides of each sweep by its name."""
    made = {}
    seeds = "seed=1,2" if smoke else "seed=3,4,5,6,7,8"  # not those that chose the cells
    for cells in settings(out).values():
        for optimizer, (lr, lam) in cells.items():
            shared = [
                "hparams_search=resumable",
                *base(data, smoke),
                f"optimizer={optimizer}",
                f"optimizer/decay={STYLE[optimizer]}",
                f"optimizer.lr={lr!r}",
                f"optimizer.weight_decay={lam!r}",
                seeds,
                "hydra.sweep.subdir=${lr_scheduler.name}_seed${seed}",
            ]
            name = f"{optimizer}_lr{lr!r}_wd{lam!r}"
            made[f"{name}/smooth"] = [*shared, "lr_scheduler=constant,warmup_cosine"]
            made[f"{name}/drop"] = [*shared, "lr_scheduler=drop_step", "~lr_scheduler.warmup_steps"]
            if smoke:
                made[f"{name}/drop"].remove("lr_scheduler.warmup_steps=0")
                made[f"{name}/drop"].remove("~lr_scheduler.warmup_steps")
    return made


def report(runs: Path, out: Path) -> None:
    """Write the runs, and the table of means with 95 % intervals."""
    found = []
    for run in read_runs(runs):
        o, schedule = run.config["optimizer"], SCHEDULES[run.config["lr_scheduler"]["name"]]
        found.append((o["name"], o["lr"], o["weight_decay"], schedule, run.config["seed"], run.test_error))
    head = ["optimizer", "lr", "weight_decay", "schedule", "seed", "test_error_percent"]
    write_csv(out / "runs.csv", head, sorted(found))

    rows = []
    for setting, cells in settings(out).items():
        for schedule in SCHEDULES.values():
            w, l2 = (
                [e for *run, _, e in found if run == [name, *cells[name], schedule]] for name in ("adamw", "adam_l2")
            )
            (mean_w, half_w), (mean_l2, half_l2) = mean_and_half_width(w), mean_and_half_width(l2)
            relative = 100.0 * (mean_l2 - mean_w) / mean_l2
            rows.append((setting, schedule, mean_w, half_w, mean_l2, half_l2, relative))
    head = "setting schedule adamw adamw_half_width adam_l2 adam_l2_half_width relative_improvement_percent".split()
    write_csv(out / "table.csv", head, rows)


@in_style()
def draw(out: Path) -> None:
    """Draw each run, and the means with 95 % intervals."""
    found: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for row in read_csv(out / "runs.csv"):
        found[row["optimizer"], f"{row['lr']:.6g}", f"{row['weight_decay']:.6g}", row["schedule"]].append(
            row["test_error_percent"]
        )
    chosen, titles = settings(out), {"common": "at a common learning rate", "best": "at each one's best cell"}
    if chosen["common"] == chosen["best"]:
        chosen, titles = {"common": chosen["common"]}, {"common": "at a common learning rate, the best of each"}
    title = "Test error under three schedules: crosses are runs, dots their mean with its 95 % interval"
    figure, axes = panels(2 * len(chosen), title, widths=(1, 2), height=3.2)  # a fixed rate needs its own scale
    for place, (setting, cells) in enumerate(chosen.items()):
        left, right = axes[2 * place : 2 * place + 2]
        for number, (optimizer, (lr, lam)) in enumerate(cells.items()):
            for x, schedule in enumerate(SCHEDULES.values()):
                here = left if x == 0 else right
                values = found[optimizer, f"{lr:.6g}", f"{lam:.6g}", schedule]
                mean, half = mean_and_half_width(values)
                at, color = x + 0.24 * (number - 0.5), COLORS[number]
                label = f"{TITLES[optimizer]}, lr {lr:.3g}, lam {lam:.3g}" if x == 1 else None
                here.errorbar([at], [mean], [half], fmt="os"[number], color=color, capsize=4, label=label)
                here.plot([at + 0.07] * len(values), values, "x", color=color)
        for here, first, last in ((left, 0, 1), (right, 1, 3)):
            here.set_xticks(range(first, last), list(SCHEDULES.values())[first:last])
            here.set_xlim(first - 0.5, last - 0.5)
        right.set_title(titles[setting])
        left.set_ylabel("test error (%)")
    below(figure, "", axes[1].get_legend_handles_labels()[0])
    save(figure, out / "schedules.png")
