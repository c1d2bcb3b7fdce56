"""``lightning-wd heatmap`` and ``curves``: pictures of sweeps and of runs."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

__all__ = ["curves", "heatmap"]


def heatmap(options: argparse.Namespace) -> int:
    """Draw the heatmap of a sweep into its folder, and print what is best."""
    from lightning_wd.runs.heatmap import write_heatmap

    made, metric, unfinished = write_heatmap(options.folder, options.metric)
    for grid in made:
        i, j = grid.best
        s = grid.separability
        print(f"{grid.title}: best {grid.mean[i, j]:.4g} at lr {grid.lr[i]:g}, {grid.unit} {grid.amount[j]:g}")
        if math.isnan(s.drift):
            near = f"{s.rows} of {len(grid.lr)} learning rates within 5 % of the best error"
            print(f"  separability {s}: {near}, where it takes 3")
        else:
            print(f"  separability {s} (95 %, {s.resampled} resampled)")
        if s.at_edge:
            print(f"  {s.at_edge} of {s.rows} rows are best at an edge of the grid: widen it")
        if missing := int((grid.errors != grid.errors).sum()):
            print(f"  {missing} cells are missing")
    if unfinished:
        print(f"{unfinished} runs have no value of {metric} yet")
    print(f"written: {Path(options.folder) / 'heatmap'}.png, .svg, .csv")
    return 0


def curves(options: argparse.Namespace) -> int:
    """Draw the curves of several runs into one picture."""
    from lightning_wd.runs.curves import overlay

    print(f"written: {overlay(options.folders, options.out, options.metric)}")
    return 0
