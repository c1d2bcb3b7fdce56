"""Hyperball against decoupled decay on a character GPT of two widths: does the best learning rate move with the width?

The learning rate of ``hyperball`` is relative, the angle that a step turns a matrix by, and so might not depend on the
width; AdamW's is absolute.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np
from studies.finished_runs import SMOKE, read_csv, read_runs, write_csv

from lightning_wd.runs.figure import COLORS, below, in_style, panels, save
from lightning_wd.runs.separability import row_optima
from lightning_wd.runs.sweep import octaves

WIDTHS = {64: "tiny", 128: "tiny_wide"}
RATES = {"decoupled": (-10, -5), "hyperball": (-8, -3)}  # exponents of 2
DECAY = {"decoupled": 0.1, "hyperball": 0}
SEEDS = (0, 1)


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str]]:
    """Return the overrides of each sweep by its name."""
    made = {}
    for width, preset in WIDTHS.items():
        if smoke:
            run = [*SMOKE, f"model.hidden=[{width}]"]
        else:
            run = ["experiment=shakespeare_gpt", f"data.root={data}/tinyshakespeare", f"model.preset={preset}"]
            run += ["data.batch_size=8", "trainer.max_epochs=1", "trainer.max_steps=400", "callbacks=none"]
            run += ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=50", "trainer.limit_val_batches=1"]
        for style, (first, last) in RATES.items():
            rates = octaves([first, last, last - first if smoke else 1])
            made[f"{width}/{style}"] = [
                *("hparams_search=resumable", *run, f"optimizer/decay={style}"),
                *(f"optimizer.weight_decay={DECAY[style]}", f"optimizer.lr={rates}"),
                "seed=0" if smoke else f"seed={','.join(map(str, SEEDS))}",
                "hydra.sweep.subdir=lr${optimizer.lr}_seed${seed}",
            ]
    return made


def report(runs: Path, out: Path) -> None:
    """Write the loss of each run, and the best learning rate of each style at each width."""
    rows, table = [], []
    for style in RATES:
        for width in WIDTHS:
            losses: dict[int, dict[float, float]] = defaultdict(dict)
            for run in read_runs(runs / str(width) / style):
                losses[run.config["seed"]][run.config["optimizer"]["lr"]] = run.last["test/loss"]
            best = []
            for seed, found in sorted(losses.items()):
                rows += [(style, width, lr, seed, loss) for lr, loss in sorted(found.items())]
                rates = sorted(found)
                best.append(float(2.0 ** row_optima(np.array([[found[lr] for lr in rates]]), np.log2(rates))[0][0]))
            lowest = fmean(min(found.values()) for found in losses.values())
            table.append((style, width, float(np.exp(np.log(best).mean())), min(best), max(best), lowest))
    write_csv(out / "runs.csv", "style width lr seed loss_nats".split(), rows)
    write_csv(out / "table.csv", "style width best_lr lowest_best_lr highest_best_lr best_loss_nats".split(), table)


@in_style()
def draw(out: Path) -> None:
    """Draw the loss over the learning rate, a panel for each style and a line for each width."""
    rows = read_csv(out / "runs.csv")
    best = {(row["style"], row["width"]): row["best_lr"] for row in read_csv(out / "table.csv")}
    figure, grid = panels(2, "Validation loss of a character GPT at two widths", height=3.0, share_y=True)
    for axes, style in zip(grid, RATES, strict=True):
        for color, width in zip(COLORS, WIDTHS, strict=False):
            losses: dict[float, list[float]] = defaultdict(list)
            for row in rows:
                if (row["style"], row["width"]) == (style, width):
                    losses[row["lr"]].append(row["loss_nats"])
            axes.plot(list(losses), [fmean(found) for found in losses.values()], color=color, label=f"width {width}")
            for lr, found in losses.items():
                axes.plot([lr] * len(found), found, "x", color=color, alpha=0.7)
            axes.axvline(best[style, width], color=color, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set(title=f"AdamW, {style}", xlabel="relative learning rate" if style == "hyperball" else "learning rate")
    grid[0].set_ylabel("loss (nats per character)")
    text = "Lines: mean over the seeds (crosses). Dotted: the best learning rate, by the parabola through the cells."
    below(figure, text, grid[0].get_legend_handles_labels()[0])
    save(figure, out / "hyperball.png")
