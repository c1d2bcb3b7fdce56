"""What the studies of a character GPT at several widths share: its run, the best learning rates, and their picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

import numpy as np
from studies.finished_runs import SMOKE, read_csv, read_runs, write_csv

from lightning_wd.runs.figure import COLORS, below, in_style, panels, save
from lightning_wd.runs.separability import row_optima

PRESETS = {64: "tiny", 128: "tiny_wide", 256: "tiny_wider"}


def gpt(data: Path, width: int, steps: int, smoke: bool) -> list[str]:
    """Return the overrides of a short run at a width: a GPT on Tiny Shakespeare, or for a smoke run a net on digits."""
    if smoke:
        return [*SMOKE, f"model.hidden=[{width}]"]
    run = ["experiment=shakespeare_gpt", f"data.root={data}/tinyshakespeare", f"model.preset={PRESETS[width]}"]
    run += ["data.batch_size=8", "trainer.max_epochs=1", f"trainer.max_steps={steps}", "callbacks=none"]
    return [
        *run,
        *("trainer.enable_progress_bar=false", "trainer.log_every_n_steps=50", "trainer.limit_val_batches=1"),
    ]


def report(runs: Path, out: Path, styles: Iterable[str], widths: Iterable[int]) -> None:
    """Write the loss of each run, and the best learning rate of each style at each width."""
    rows, table = [], []
    for style in styles:
        for width in widths:
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
def draw(out: Path, title: str, axis: dict[str, str]) -> None:
    """Draw the loss over the learning rate, a panel for each style and a line for each width.

    Args:
        out: the study's folder, after which the picture is named.
        title: of the picture.
        axis: each style, and what its learning rate is called.
    """
    rows = read_csv(out / "runs.csv")
    best = {(row["style"], row["width"]): row["best_lr"] for row in read_csv(out / "table.csv")}
    figure, grid = panels(2, title, height=3.0, share_y=True)
    for axes, (style, label) in zip(grid, axis.items(), strict=True):
        for color, width in zip(COLORS, sorted({int(row["width"]) for row in rows}), strict=False):
            losses: dict[float, list[float]] = defaultdict(list)
            for row in rows:
                if (row["style"], row["width"]) == (style, width):
                    losses[row["lr"]].append(row["loss_nats"])
            axes.plot(list(losses), [fmean(found) for found in losses.values()], color=color, label=f"width {width}")
            for lr, found in losses.items():
                axes.plot([lr] * len(found), found, "x", color=color, alpha=0.7)
            axes.axvline(best[style, width], color=color, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set(title=f"AdamW, {style}", xlabel=label)
    grid[0].set_ylabel("loss (nats per character)")
    text = "Lines: mean over the seeds (crosses). Dotted: the seeds' best learning rates, their mean in octaves."
    below(figure, text, grid[0].get_legend_handles_labels()[0])
    save(figure, out / f"{out.name}.png")
