"""Pictures of a run, drawn from its files."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

__all__ = ["curves", "read_metrics"]


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return each metric of a ``metrics.csv`` as (step, value) pairs, in the order of the file.

    A last line without its end is left out: a kill cut it, or the run is just writing it.
    """
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(line for line in file if line.endswith("\n")):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    series[name].append((int(row["step"]), float(value)))
    return dict(series)


def curves(folder: Path, title: str) -> Path | None:
    """Draw ``curves.png`` from ``metrics.csv``: loss, accuracy, learning rate and weight decay against the step.

    Args:
        folder: the run's folder.
        title: the picture's title.

    Returns:
        The picture's path, or None where the folder has no metrics.
    """
    metrics = folder / "metrics.csv"
    if not metrics.is_file():
        return None
    series = read_metrics(metrics)
    panels = [
        ("loss", "loss (nats)", [n for n in series if n.endswith("/loss") and not n.startswith("test/")]),
        ("accuracy", "accuracy", [n for n in series if n.endswith("/acc") and not n.startswith("test/")]),
        ("learning rate", "lr", [n for n in series if n.startswith("lr-") and not n.endswith("-weight_decay")]),
        ("weight decay", "coefficient", [n for n in series if n.startswith("lr-") and n.endswith("-weight_decay")]),
    ]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no screen is needed, and no global state is touched
    from matplotlib.figure import Figure

    rows, columns = -(-len(panels) // 2), min(2, len(panels))
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, (name, unit, names) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        lines: dict[tuple[tuple[int, float], ...], list[str]] = defaultdict(list)  # equal series are one line
        for metric in sorted(names):
            lines[tuple(series[metric])].append(metric.removeprefix("lr-").removesuffix("-weight_decay"))
        for points, labels in lines.items():
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, label=", ".join(labels), linewidth=1.2, marker="." if len(steps) < 50 else None)
        axes.set(title=name, xlabel="optimizer step", ylabel=unit)
        if name == "loss" and all(value > 0 for metric in names for _, value in series[metric]):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    return path
