"""Hyperball against decoupled decay on a character GPT of two widths: does the best learning rate move with the width?

The learning rate of ``hyperball`` is relative, the angle that a step turns a matrix by, and so might not depend on the
width; AdamW's is absolute.
"""

from __future__ import annotations

from pathlib import Path

from studies import best_rates

from lightning_wd.runs.sweep import octaves

WIDTHS = (64, 128)
RATES = {"decoupled": (-10, -5), "hyperball": (-8, -3)}  # exponents of 2
DECAY = {"decoupled": 0.1, "hyperball": 0}
SEEDS = (0, 1)


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str]]:
    """Return the overrides of each sweep by its name."""
    made = {}
    for width in WIDTHS:
        for style, (first, last) in RATES.items():
            rates = octaves([first, last, last - first if smoke else 1])
            made[f"{width}/{style}"] = [
                *("hparams_search=resumable", *best_rates.gpt(data, width, 400, smoke), f"optimizer/decay={style}"),
                *(f"optimizer.weight_decay={DECAY[style]}", f"optimizer.lr={rates}"),
                "seed=0" if smoke else f"seed={','.join(map(str, SEEDS))}",
                "hydra.sweep.subdir=lr${optimizer.lr}_seed${seed}",
            ]
    return made


def report(runs: Path, out: Path) -> None:
    """Write the loss of each run, and the best learning rate of each style at each width."""
    best_rates.report(runs, out, RATES, WIDTHS)


def draw(out: Path) -> None:
    """Draw the loss over the learning rate, a panel for each style and a line for each width."""
    axis = {"decoupled": "learning rate", "hyperball": "relative learning rate"}
    best_rates.draw(out, "Validation loss of a character GPT at two widths", axis)
