"""Muon against AdamW at equal steps: a character GPT and a small ResNet, each optimizer at its own learning rate.

One seed chooses the learning rate of each optimizer from a common grid; three other seeds compare them there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean

from studies.finished_runs import SMOKE, Run, read_csv, read_runs, write_csv

from lightning_wd.runs.figure import COLORS, TITLES, in_style, panels, save

OPTIMIZERS = ("adamw", "muon")
MEASURES = {"gpt": "validation loss (nats per character)", "resnet": "test error (%)"}
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SEEDS = (1, 2, 3)  # seed 0 chooses the learning rates


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str] | Callable[[Path], list[str]]]:
    """Return the overrides of each sweep by its name; those of the second of each pair need the runs of the first."""
    tasks = {  # independent decay, which the learning rate does not change
        "gpt": [
            *("experiment=shakespeare_gpt", f"data.root={data}/tinyshakespeare", "model.preset=tiny"),
            *("trainer.max_epochs=1", "optimizer/decay=independent", "optimizer.weight_decay=3e-4"),
        ],
        "resnet": [
            *("experiment=fashion_small", f"data.root={data}/fashion_mnist", "trainer.max_epochs=20"),
            *("model=resnet", "model.depth=8", "model.in_channels=1", "optimizer.weight_decay=0.015625"),
        ],
    }
    quiet = ["callbacks=none", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=50"]
    quiet.append("trainer.limit_val_batches=1")  # the test at the end counts
    made: dict[str, list[str] | Callable[[Path], list[str]]] = {}
    for task, run in tasks.items():
        for name in OPTIMIZERS:
            own = ["hparams_search=resumable", *(SMOKE if smoke else [*run, *quiet]), f"optimizer={name}"]
            own.append("hydra.sweep.subdir=lr${optimizer.lr}_seed${seed}")
            made[f"{task}/{name}/rates"] = [*own, f"optimizer.lr={_listed(RATES, smoke)}", "seed=0"]
            seeds = f"seed={_listed(SEEDS, smoke)}"
            made[f"{task}/{name}/seeds"] = partial(_at_the_best_rate, [*own, seeds], task, name)
    return made


def _listed(values: tuple[float, ...], smoke: bool) -> str:
    return ",".join(map(str, values[:1] if smoke else values))


def _at_the_best_rate(overrides: list[str], task: str, optimizer: str, runs: Path) -> list[str]:
    best = min(read_runs(runs / task / optimizer / "rates"), key=partial(score, task))
    return [*overrides, f"optimizer.lr={best.config['optimizer']['lr']!r}"]


def score(task: str, run: Run) -> float:
    """Return what :data:`MEASURES` says of a task; less is better."""
    return run.last["test/loss"] if task == "gpt" else run.test_error


def report(runs: Path, out: Path) -> None:
    """Write each run, and the means and ranges over the seeds that compare."""
    rows, table = [], []
    for task in MEASURES:
        for name in OPTIMIZERS:
            for sweep in ("rates", "seeds"):
                found = read_runs(runs / task / name / sweep)
                found.sort(key=lambda run: (run.config["optimizer"]["lr"], run.config["seed"]))
                values = [score(task, run) for run in found]
                rows += [
                    (task, name, sweep, run.config["optimizer"]["lr"], run.config["seed"], value)
                    for run, value in zip(found, values, strict=True)
                ]
            table.append((task, name, found[0].config["optimizer"]["lr"], fmean(values), min(values), max(values)))
    write_csv(out / "runs.csv", ["task", "optimizer", "sweep", "lr", "seed", "value"], rows)
    write_csv(out / "table.csv", ["task", "optimizer", "lr", "mean", "lowest", "highest"], table)


@in_style()
def draw(out: Path) -> None:
    """Draw the seed that chose the learning rates as lines, and the other seeds as crosses."""
    rows = read_csv(out / "runs.csv")
    figure, grid = panels(2, "Muon against AdamW at equal steps; lines: the seed that chose the rates, crosses: others")
    for axes, (task, measure) in zip(grid, MEASURES.items(), strict=True):
        for color, name in zip(COLORS, OPTIMIZERS, strict=False):
            for sweep, look in (
                ("rates", {"marker": ".", "label": TITLES[name]}),
                ("seeds", {"marker": "x", "ls": ""}),
            ):
                points = [
                    (r["lr"], r["value"])
                    for r in rows
                    if (r["task"], r["optimizer"], r["sweep"]) == (task, name, sweep)
                ]
                axes.plot(*zip(*points, strict=True), color=color, **look)
        axes.set_xscale("log")
        axes.set(xlabel="learning rate", ylabel=measure)
        axes.legend()
    save(figure, out / "muon_against_adamw.png")
