"""Fig. 4 of arXiv 1711.05101: the anytime error of AdamWR and SGDWR, warm restarts beside single cosines.

Normalized decay, computed for each cycle (callback ``decay_restarts``); cycles of 10, 20 and 40 epochs.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from studies.finished_runs import base, read_csv, read_runs, write_csv

from lightning_wd.runs.figure import COLORS, below, in_style, panels, save

OPTIMIZERS = {"adamw": 2.0**-7, "sgdw": 2.0**-4}  # learning rates
NORMALIZED = 0.05
ENDS = (10, 30, 70)  # epochs at which a cycle ends


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str]]:
    """Return the overrides of each sweep by its name."""
    made = {}
    ends = (1, 3) if smoke else ENDS
    for optimizer, lr in OPTIMIZERS.items():
        shared = [
            "hparams_search=resumable",
            *base(data, smoke),
            f"optimizer={optimizer}",
            "optimizer/decay=normalized",
            f"optimizer.lr={lr}",
            "optimizer.weight_decay=null",
            f"optimizer.decay.normalized={NORMALIZED}",
            "trainer.check_val_every_n_epoch=1",
            "hydra.sweep.subdir=${trainer.max_epochs}_seed${seed}",
            "seed=0" if smoke else "seed=0,1,2",
        ]
        made[f"{optimizer}/cosine"] = [*shared, f"trainer.max_epochs={','.join(map(str, ends))}"]
        restarts = [*shared, "lr_scheduler=cosine_restarts", f"lr_scheduler.first_cycle_epochs={ends[0]}"]
        restarts += ["callbacks=decay_restarts", f"trainer.max_epochs={ends[-1]}", "~lr_scheduler.warmup_steps"]
        restarts += [f"~callbacks.{name}" for name in ("plan_summary", "lr_monitor", "checkpoint")]
        if smoke:
            restarts = [o for o in restarts if "warmup_steps" not in o and o != "callbacks=none"]
        made[f"{optimizer}/restarts"] = restarts
    return made


def report(runs: Path, out: Path) -> None:
    """Write the validation error after each epoch of each run."""
    rows = []
    for optimizer in OPTIMIZERS:
        for run in read_runs(runs / optimizer):
            head = optimizer, run.folder.parent.name, run.config["trainer"]["max_epochs"], run.config["seed"]
            rows += [(*head, i + 1, 100.0 * (1.0 - acc)) for i, (_, acc) in enumerate(run.series["val/acc"])]
    write_csv(out / "runs.csv", ["optimizer", "schedule", "epochs", "seed", "epoch", "val_error_percent"], rows)


@in_style()
def draw(out: Path) -> None:
    """Draw the restarts over the cosines, which they cover where both are the same run."""
    seeds: dict[tuple[str, str, int], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in read_csv(out / "runs.csv"):
        seeds[row["optimizer"], row["schedule"], int(row["epochs"])][row["seed"]].append(row["val_error_percent"])
    title = "Validation error during training: warm restarts beside cosines of fixed length"
    figure, grid = panels(2, title, height=3.6, share_y=True)
    for axes, optimizer in zip(grid, OPTIMIZERS, strict=True):
        for (name, kind, epochs), runs in sorted(seeds.items()):
            if name != optimizer:
                continue
            restarts = kind == "restarts"
            color = "black" if restarts else COLORS[(*ENDS, epochs).index(epochs)]
            look = {"linestyle": (0, (4, 2)), "linewidth": 1.4} if restarts else {"linewidth": 2.2, "alpha": 0.85}
            y = np.array(list(runs.values()))
            x, label = range(1, y.shape[1] + 1), "warm restarts" if restarts else f"cosine, {epochs} epochs"
            axes.plot(x, y.mean(0), color=color, label=label, zorder=3 if restarts else 2, **look)
            axes.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.12, linewidth=0)
            axes.plot([len(x)], [y[:, -1].mean()], "o", color=color, zorder=4)
        axes.set(title={"adamw": "AdamWR", "sgdw": "SGDWR"}[optimizer], xlabel="epoch", xscale="log")
        axes.set_xticks(ENDS, [str(end) for end in ENDS])
    grid[0].set_ylabel("validation error (%)")
    grid[0].set_ylim(top=min(50.0, grid[0].get_ylim()[1]))
    handles = [line for line in grid[0].get_lines() if not line.get_label().startswith("_")]
    below(figure, "Lines: mean over the seeds; bands: their range; dots: the end of a run.", handles)
    save(figure, out / "restarts.png")
