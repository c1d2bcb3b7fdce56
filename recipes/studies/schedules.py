"""Fig. 1 of arXiv 1711.05101: AdamW against Adam with L2 under a fixed, a drop-step and a cosine schedule.

Each optimizer runs at its best cell of learning rate and decay, by the mean over a grid's seeds; other seeds compare
them. The cells for cosine and drop-step are those of the study ``heatmaps``, whose grids ran under cosine; the fixed
schedule has grids of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from studies.finished_runs import base, lowest_mean, mean_and_half_width, read_csv, read_runs, write_csv

from lightning_wd.runs.figure import COLORS, TITLES, below, in_style, panels, save
from lightning_wd.runs.heatmap import Cell, read_cells

# optimizer -> decay style, exponents of 2 of lr0 and lam in the grid under the fixed schedule: [first, last, step]
GRIDS = {
    "adamw": ("independent", "[-11,-8]", "[-18,-8,2]"),
    "adam_l2": ("l2", "[-11,-8]", "[-19,-9,2]"),
}
SCHEDULES = ("fixed", "drop-step", "cosine")


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str] | Callable[[Path], list[str]]]:
    """Return the overrides of each sweep by its name; those of the fixed schedule need the runs of its grids."""
    made: dict[str, list[str] | Callable[[Path], list[str]]] = {}
    under_cosine = [Cell(*(row[key] for key in Cell._fields)) for row in read_csv(out.parent / "heatmaps/heatmap.csv")]
    for optimizer, (style, lr, decay) in GRIDS.items():
        own = [*base(data, smoke), f"optimizer={optimizer}", f"optimizer/decay={style}"]
        made[f"grid/{optimizer}"] = [
            *("hparams_search=lr_wd_grid", *own, "lr_scheduler=constant"),
            f"hparams_search.lr={'[-8,-8]' if smoke else lr}",
            f"hparams_search.weight_decay={'[-10,-6,4]' if smoke else decay}",
            f"hparams_search.seed='{'0' if smoke else '0,1,2'}'",
        ]
        own += ["hparams_search=resumable", "seed=1,2" if smoke else "seed=3,4,5,6,7,8"]  # not those of the grids
        own.append("hydra.sweep.subdir=lr${optimizer.lr}_wd${optimizer.weight_decay}_seed${seed}")
        made[f"fixed/{optimizer}"] = partial(_at_the_fixed_best, [*own, "lr_scheduler=constant"], optimizer)
        own += _at(best(under_cosine, optimizer))
        made[f"cosine/{optimizer}"] = own
        warm_up = [] if smoke else ["~lr_scheduler.warmup_steps"]  # which drop_step does not have
        made[f"drop-step/{optimizer}"] = [
            *(each for each in own if "warmup" not in each),
            "lr_scheduler=drop_step",
            *warm_up,
        ]
    return made


def best(cells: Iterable[Cell], optimizer: str) -> tuple[float, float]:
    """Return the lr and the amount of an optimizer's cell with the lowest mean error over the seeds."""
    return lowest_mean(((cell.lr, cell.amount), cell.error) for cell in cells if cell.optimizer == optimizer)


def _at(cell: tuple[float, float]) -> list[str]:
    return [f"optimizer.lr={cell[0]!r}", f"optimizer.weight_decay={cell[1]!r}"]


def _at_the_fixed_best(overrides: list[str], optimizer: str, runs: Path) -> list[str]:
    return [*overrides, *_at(best(read_cells(runs / "grid")[0], optimizer))]


def report(runs: Path, out: Path) -> None:
    """Write the cells of the grids, the runs that compare, and the table of their means with 95 % intervals."""
    write_csv(out / "grid.csv", Cell._fields, read_cells(runs / "grid")[0])
    rows, table = [], []
    for schedule in SCHEDULES:
        line: list[float] = []
        for optimizer in GRIDS:
            found = read_runs(runs / schedule / optimizer)
            found.sort(key=lambda run: run.config["seed"])
            lr, amount = (found[0].config["optimizer"][key] for key in ("lr", "weight_decay"))
            rows += [(schedule, optimizer, lr, amount, run.config["seed"], run.test_error) for run in found]
            line += [lr, amount, *mean_and_half_width([run.test_error for run in found])]
        table.append((schedule, *line, 100.0 * (line[6] - line[2]) / line[6]))
    write_csv(out / "runs.csv", "schedule optimizer lr weight_decay seed test_error_percent".split(), rows)
    head = [f"{name}{end}" for name in GRIDS for end in ("_lr", "_weight_decay", "", "_half_width")]
    write_csv(out / "table.csv", ["schedule", *head, "relative_improvement_percent"], table)


@in_style()
def draw(out: Path) -> None:
    """Draw each run, and the means with 95 % intervals."""
    rows = read_csv(out / "runs.csv")
    figure, (axes,) = panels(1, "Test error under three schedules, each optimizer at its best cell", height=3.0)
    for number, optimizer in enumerate(GRIDS):
        for x, schedule in enumerate(SCHEDULES):
            values = [r["test_error_percent"] for r in rows if (r["schedule"], r["optimizer"]) == (schedule, optimizer)]
            mean, half = mean_and_half_width(values)
            at, color = x + 0.24 * (number - 0.5), COLORS[number]
            label = TITLES[optimizer] if x == 0 else None
            axes.errorbar([at], [mean], [half], fmt="os"[number], color=color, capsize=4, label=label)
            axes.plot([at + 0.07] * len(values), values, "x", color=color)
    axes.set_xticks(range(len(SCHEDULES)), SCHEDULES)
    axes.set_xlim(-0.5, len(SCHEDULES) - 0.5)
    axes.set_ylabel("test error (%)")
    below(
        figure,
        "Crosses: runs; dots and squares: their mean, with its 95 % interval.",
        axes.get_legend_handles_labels()[0],
    )
    save(figure, out / "schedules.png")
