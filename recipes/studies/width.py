"""Decoupled against independent decay at three widths, with the learning rate of the hidden matrices ~ 1 / width.

By rules alone: the hidden matrices of a character GPT have ``lr_mult = 64 / width``, as muP asks of Adam. With
``decoupled`` their decay falls with the width, too; with ``independent``, which ``lr_mult`` does not touch, it stays.
arXiv 2510.19093 claims that the best learning rate carries over from width to width only with the latter.
"""

from __future__ import annotations

from pathlib import Path

from studies import best_rates

from lightning_wd.runs.sweep import octaves

RATES = (-10, -5)  # exponents of 2
DECAY = {"decoupled": 2.0, "independent": 2.0**-7}  # alike at lr 2^-8 and width 64: a timescale of 128 steps
STEPS = 300
SEEDS = (0, 1, 2, 3, 4, 5)


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str]]:
    """Return the overrides of each sweep by its name."""
    made = {}
    first, last = RATES
    for width in best_rates.PRESETS:
        for style, amount in DECAY.items():
            made[f"{width}/{style}"] = [
                *("hparams_search=resumable", *best_rates.gpt(data, width, STEPS, smoke), f"optimizer/decay={style}"),
                *(f"optimizer.weight_decay={amount}", f"optimizer.mask.rules=[{rule(width, smoke)}]"),
                f"optimizer.lr={octaves([first, last, last - first if smoke else 1])}",
                "seed=0" if smoke else f"seed={','.join(map(str, SEEDS))}",
                "hydra.sweep.subdir=lr${optimizer.lr}_seed${seed}",
            ]
            if not smoke:
                made[f"{width}/{style}"].append("+trainer.limit_test_batches=80")  # 40,960 characters
    return made


def rule(width: int, smoke: bool) -> str:
    """Return the rule of the hidden matrices at a width, as a command line has it."""
    return f'{{name: "{"net" if smoke else "blocks"}.*", ndim: 2, lr_mult: {64 / width}}}'


def report(runs: Path, out: Path) -> None:
    """Write the loss of each run, and the best learning rate of each style at each width."""
    best_rates.report(runs, out, DECAY, best_rates.PRESETS)


def draw(out: Path) -> None:
    """Draw the loss over the learning rate, a panel for each style and a line for each width."""
    title = "Validation loss of a character GPT at three widths, with lr ~ 1 / width on the hidden matrices"
    best_rates.draw(out, title, dict.fromkeys(DECAY, "learning rate at width 64"))
