"""What each style of decay does to the recipe's default run: the eight commands of the README's table."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

from studies.finished_runs import mean_and_half_width, read_csv, read_runs, write_csv

from lightning_wd.runs.figure import LINES, STYLE_COLORS, below, curve, in_style, panels, save

STYLES = {
    "l2": ["optimizer=adam_l2"],
    "decoupled": ["optimizer=adamw"],
    "independent": ["optimizer/decay=independent", "optimizer.lr=2e-3"],
    "normalized": ["optimizer/decay=normalized", "optimizer.decay.normalized=0.025"],
    "timescale": ["optimizer/decay=timescale", "optimizer.decay.timescale_epochs=10"],
    "constant": ["optimizer/decay=constant"],
    "corrected": ["optimizer/decay=corrected"],
    "none": ["optimizer/decay=none"],
}


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str]]:
    """Return the overrides of each sweep by its name."""
    shared = ["hparams_search=resumable", "callbacks=decay_monitor", "trainer.enable_progress_bar=false"]
    shared += ["hydra.sweep.subdir=seed${seed}", "seed=0" if smoke else "seed=0,1,2,3,4"]
    shared += ["trainer.max_epochs=2"] * smoke
    return {name: [*shared, *overrides] for name, overrides in STYLES.items()}


def report(runs: Path, out: Path) -> None:
    """Write each run's test accuracy and norms, and the first seed's ``d_t`` and norm over the steps."""
    ends, steps = [], []
    for name in STYLES:
        for run in read_runs(runs / name):
            squares: dict[int, float] = defaultdict(float)
            for metric, points in run.series.items():
                if metric.startswith("wd/decay") and metric.endswith("/weight_norm"):  # corrected has two groups
                    for step, norm in points:
                        squares[step] += norm * norm
            norms = {step: math.sqrt(square) for step, square in squares.items()}
            seed = run.config["seed"]
            first, *_, last = norms.values()
            ends.append((name, seed, first, last, run.last["test/acc"], run.last["train/acc"]))
            d = dict(run.series.get("wd/decay/d_t", []))
            steps += [(name, step, d.get(step, ""), norm) for step, norm in norms.items() if seed == 0]
    write_csv(out / "runs.csv", "style seed norm_at_start norm_at_end test_acc train_acc".split(), ends)
    write_csv(out / "steps.csv", "style step d_t weight_norm".split(), steps)


@in_style()
def draw(out: Path) -> None:
    """Draw what a step removes, the norm of the weights, and the test accuracy of each run."""
    steps = read_csv(out / "steps.csv")
    figure, (fractions, norms, accuracy) = panels(3, "The default run in each style of decay", columns=3, height=3.0)
    for number, name in enumerate(STYLES):
        rows, color, line = [row for row in steps if row["style"] == name], STYLE_COLORS[name], LINES[number % 2]
        if d := [(row["step"], row["d_t"]) for row in rows if row["d_t"] != ""]:
            curve(fractions, d, color, line)
            fractions.get_lines()[-1].set_zorder(3 if line == "--" else 2)  # seen where two are equal
        curve(norms, [(row["step"], row["weight_norm"]) for row in rows], color, line, name)
        found = [100.0 * row["test_acc"] for row in read_csv(out / "runs.csv") if row["style"] == name]
        accuracy.plot(found, [number] * len(found), "x", color=color, alpha=0.6)
        accuracy.plot([mean_and_half_width(found)[0]], [number], "o", color=color, markersize=7)
    fractions.set(title="part that a step removes", xlabel="optimizer step", ylabel="d_t")
    norms.set(title="norm of the decaying weights", xlabel="optimizer step", ylabel="||w||", ylim=(0, None))
    accuracy.set(title="test accuracy (%)", xlabel="crosses: seeds; dot: mean")
    accuracy.set_yticks(range(len(STYLES)), list(STYLES))
    accuracy.invert_yaxis()
    text = "30 % of the training labels are random, those of the test right. l2 has no d_t: it goes into the gradient."
    below(figure, text, norms.get_legend_handles_labels()[0], columns=4)
    save(figure, out / "styles.png")
