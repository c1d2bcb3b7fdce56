"""Pictures of runs: the curves of one, several runs over each other, and what the decay monitor measured."""

from __future__ import annotations

import csv
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_wd.errors import ConfigError, nearest

__all__ = ["curves", "draw_monitor", "overlay", "panel_figure", "read_metrics"]


def panel_figure(
    count: int,
    *,
    columns: int,
    panel: tuple[float, float],
    border: tuple[float, float] = (0.0, 0.0),
    at_least: float = 6.0,
) -> tuple[Any, list[Any]]:
    """Return a matplotlib Figure and the axes of its ``count`` panels, row by row; it needs no screen.

    Sizes are (width, height) in inches: of a panel, of a border to add, and the smallest width of the whole.
    """
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    size = (max(at_least, panel[0] * columns + border[0]), panel[1] * rows + border[1])
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _finish(axes: Any, title: str, unit: str, *, log: bool) -> None:
    """Label a panel, and scale it by logarithms where asked: over less than a decade their ticks are hard to read."""
    heights = [height for line in axes.get_lines() for height in line.get_ydata()]
    if log and heights and max(heights) > 10 * min(heights) > 0:
        axes.set_yscale("log")
    axes.set(title=title, xlabel="optimizer step", ylabel=unit)
    axes.grid(alpha=0.3)


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return each metric of a ``metrics.csv`` as (step, value) pairs, in the order of the file.

    An incomplete last line is left out: the run was killed, or is writing it now.
    """
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(line for line in file if line.endswith("\n")):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    series[name].append((int(row["step"]), float(value)))
    return dict(series)


def curves(folder: Path, title: str) -> Path | None:
    """Draw a run's ``metrics.csv`` as ``curves.png``: loss, accuracy, learning rate and weight decay against the step.

    Return the picture's path, or None where the folder has no metrics.
    """
    metrics = folder / "metrics.csv"
    series = read_metrics(metrics) if metrics.is_file() else {}
    names = [name for name in series if not name.startswith("test/")]
    panels = [
        ("loss", "loss (nats)", [n for n in names if n.endswith("/loss")]),
        ("accuracy", "accuracy", [n for n in names if n.endswith("/acc")]),
        ("learning rate", "lr", [n for n in names if n.startswith("lr-") and not n.endswith("-weight_decay")]),
        ("weight decay", "coefficient", [n for n in names if n.startswith("lr-") and n.endswith("-weight_decay")]),
    ]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return None
    figure, grid = panel_figure(len(panels), columns=2, panel=(4.6, 3.2))
    figure.suptitle(title)
    for axes, (name, unit, shown) in zip(grid, panels, strict=True):
        lines: dict[tuple[tuple[int, float], ...], list[str]] = defaultdict(list)  # equal series are one line
        for metric in sorted(shown):
            lines[tuple(series[metric])].append(metric.removeprefix("lr-").removesuffix("-weight_decay"))
        for points, labels in lines.items():
            marker = "." if len(points) < 50 else None
            axes.plot(*zip(*points, strict=True), label=", ".join(labels), linewidth=1.2, marker=marker)
        _finish(axes, name, unit, log=name == "loss")
        axes.legend(fontsize="small")
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def overlay(folders: Sequence[str | Path], out: str | Path, metrics: Sequence[str] | None = None) -> Path:
    """Draw the metrics of runs over each other, and return the picture's path.

    Args:
        folders: runs' folders, or folders that hold runs.
        out: the picture's path, ending in .png, .svg or .pdf.
        metrics: columns of ``metrics.csv``; None for every loss and accuracy except the test's.

    Raises:
        ConfigError: no folder holds a run, no run has a metric, or ``out`` does not end in .png, .svg or .pdf.
    """
    endings = (".png", ".svg", ".pdf")
    if Path(out).suffix not in endings:
        fix = f"write --out {Path(out).stem}.png"
        raise ConfigError(f"{out} is not the name of a picture.", valid=endings, fix=fix)
    paths = sorted({path for folder in folders for path in Path(folder).glob("**/metrics.csv")})
    runs = {path.parent: read_metrics(path) for path in paths}
    names = sorted({name for series in runs.values() for name in series})
    if not names:
        raise ConfigError(
            f"there is no run in {', '.join(map(str, folders))}.",
            found="no metrics.csv with a row",
            fix="give folders of runs that have logger=csv",
        )
    wanted = metrics or [n for n in names if n.endswith(("/loss", "/acc")) and not n.startswith("test/")]
    for name in wanted:
        if name not in names:
            close = nearest(name, names)
            fix = f"write --metric {close or names[0]}"
            raise ConfigError(f"no run has the metric {name!r}.", valid=names, nearest=close, fix=fix)
    common = os.path.commonpath([run.resolve().parent for run in runs])
    figure, grid = panel_figure(len(wanted), columns=2, panel=(5.2, 3.4), border=(0.0, 0.28 * len(runs)))
    for axes, metric in zip(grid, wanted, strict=True):
        for number, (run, series) in enumerate(runs.items()):
            if metric in series:
                axes.plot(
                    *zip(*series[metric], strict=True),
                    label=run.resolve().relative_to(common).as_posix(),
                    color=f"C{number % 10}",
                    linestyle=("-", "--", ":", "-.")[number // 10 % 4],
                    linewidth=1.2,
                    marker="." if len(series[metric]) < 50 else None,
                )
        _finish(axes, metric, metric.rpartition("/")[2], log=metric.endswith("loss"))
    handles = {line.get_label(): line for axes in grid for line in axes.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", fontsize="small", ncols=1)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    return Path(out)


# panel -> (unit, quantity -> line): measured quantities are solid, predicted ones dashed
_PANELS = {
    "RMS of the weights": ("", {"weight_rms": "-", "weight_rms_predicted": "--"}),
    "effective decay": ("d_t, part of the weights per step", {"d_t": "-"}),
    "timescale": ("epochs", {"timescale_epochs": "-"}),
    "angular update": ("radians", {"angular_update": "-", "angular_update_predicted": "--"}),
    "gradient / weight": ("", {"grad_weight_ratio": "-", "grad_weight_ratio_predicted": "--"}),
    "decay lost by Adam's L2": (
        "d_i: p5, p50, p95",
        {"lost_decay_p5": ":", "lost_decay_p50": "-", "lost_decay_p95": ":"},
    ),
}


def draw_monitor(history: Sequence[dict[str, float]], path: Path, title: str) -> Path | None:
    """Draw each quantity of each group against the step; return the path, or None if there is nothing to draw.

    ``history`` has a mapping for each measured step, with the keys ``step`` and ``wd/<group>/<quantity>``.
    """
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in history:
        for key, value in row.items():
            if key.startswith("wd/") and math.isfinite(value):
                series[key].append((row["step"], value))
    groups = sorted({key.removeprefix("wd/").rpartition("/")[0] for key in series})
    seen = {key.rpartition("/")[2] for key in series}
    panels = [(name, *panel) for name, panel in _PANELS.items() if seen.intersection(panel[1])]
    if not panels:
        return None
    figure, grid = panel_figure(len(panels), columns=3, panel=(4.4, 3.4))
    figure.suptitle(title)
    for axes, (name, unit, quantities) in zip(grid, panels, strict=True):
        for color, group in enumerate(groups):
            for quantity, line in quantities.items():
                if points := series.get(f"wd/{group}/{quantity}"):
                    label = group + {"--": ", predicted", ":": ", " + quantity.rpartition("_")[2]}.get(line, "")
                    marker = "." if len(points) < 30 else None
                    axes.plot(*zip(*points, strict=True), line, color=f"C{color}", label=label, marker=marker)
        _finish(axes, name, unit, log=True)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path
