"""Fig. 4 of arXiv 1711.05101: the anytime error of AdamWR and SGDWR, warm restarts beside single cosines.

Normalized decay, computed for each cycle (callback ``decay_restarts``); cycles of 10, 20 and 40 epochs.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from studies.finished_runs import base, new_figure, read_runs, write_csv

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
    """Write the validation error after each epoch of each run, and the picture."""
    rows, figure = [], new_figure(10, 4.2)
    figure.suptitle(
        "Validation error during training, mean and range over seeds: warm restarts beside cosines of fixed length"
    )
    for axes, optimizer in zip(figure.subplots(1, 2, sharey=True), OPTIMIZERS, strict=True):
        curves: dict[tuple[str, int], list[list[float]]] = defaultdict(list)
        for run in read_runs(runs / optimizer):
            kind, epochs = run.folder.parent.name, run.config["trainer"]["max_epochs"]
            errors = [100.0 * (1.0 - acc) for _, acc in run.series["val/acc"]]
            rows += [(optimizer, kind, epochs, run.config["seed"], i + 1, e) for i, e in enumerate(errors)]
            curves[kind, epochs].append(errors)
        for (kind, epochs), seeds in sorted(curves.items()):
            restarts = kind == "restarts"
            color = "black" if restarts else f"C{(*ENDS, epochs).index(epochs)}"
            x, y = range(1, len(seeds[0]) + 1), np.array(seeds)
            label = "warm restarts" if restarts else f"cosine, {epochs} epochs"
            axes.plot(x, y.mean(0), color=color, linewidth=1.6 if restarts else 1.0, label=label)
            axes.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.15, linewidth=0)
            axes.plot([len(x)], [y[:, -1].mean()], "o", color=color, markersize=5)
        axes.set(title={"adamw": "AdamWR", "sgdw": "SGDWR"}[optimizer], xlabel="epoch", xscale="log")
        axes.set_xticks(ENDS, [str(end) for end in ENDS])
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        axes.set_ylim(top=min(60.0, axes.get_ylim()[1]))
    figure.axes[0].set_ylabel("validation error (%)")
    figure.savefig(out / "restarts.png", dpi=130)
    head = ["optimizer", "schedule", "epochs", "seed", "epoch", "val_error_percent"]
    write_csv(out / "runs.csv", head, rows)
