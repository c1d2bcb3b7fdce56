"""Several runs over each other: one panel for each metric, one line for each run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lightning_wd.errors import ConfigError, explain, nearest
from lightning_wd.pictures import read_metrics

__all__ = ["overlay"]

_ENDINGS = (".png", ".svg", ".pdf")


def overlay(folders: Sequence[str | Path], out: str | Path, metrics: Sequence[str] | None = None) -> Path:
    """Draw the metrics of runs over each other.

    Args:
        folders: runs' folders, or folders that hold runs.
        out: the picture's path; its ending says the format.
        metrics: columns of ``metrics.csv``; None for every loss and accuracy but those of the test.

    Returns:
        The picture's path.

    Raises:
        ConfigError: no run with a ``metrics.csv``, none that has a metric, or an ending that is no picture's.
    """
    if Path(out).suffix not in _ENDINGS:
        raise ConfigError(
            explain(f"{out} has no ending of a picture.", valid=_ENDINGS, fix=f"write --out {Path(out).stem}.png")
        )
    paths = sorted({path for folder in folders for path in Path(folder).glob("**/metrics.csv")})
    runs = {path.parent: read_metrics(path) for path in paths}
    names = sorted({name for series in runs.values() for name in series})
    if not names:
        raise ConfigError(
            explain(
                f"there is no run in {', '.join(map(str, folders))}.",
                found="no metrics.csv with a row",
                fix="give folders of runs that have logger=csv",
            )
        )
    wanted = metrics or [n for n in names if n.endswith(("/loss", "/acc")) and not n.startswith("test/")]
    for name in wanted:
        if name not in names:
            close = nearest(name, names)
            raise ConfigError(
                explain(
                    f"no run has the metric {name!r}.",
                    valid=names,
                    nearest=close,
                    fix=f"write --metric {close or names[0]}",
                )
            )
    return _draw(runs, list(wanted), Path(out))


def _draw(runs: dict[Path, dict[str, list[tuple[int, float]]]], wanted: Sequence[str], out: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no screen is needed, and no global state is touched
    from matplotlib.figure import Figure

    labels = _labels(list(runs))
    columns = min(2, len(wanted))
    rows = -(-len(wanted) // columns)
    figure = Figure(figsize=(max(6.0, 5.2 * columns), 3.4 * rows + 0.28 * len(runs)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in grid[len(wanted) :]:
        unused.remove()
    for axes, metric in zip(grid, wanted, strict=False):
        for number, (run, series) in enumerate(runs.items()):
            if metric in series:
                steps, values = zip(*series[metric], strict=True)
                line = axes.plot(steps, values, label=labels[run], color=f"C{number % 10}", linewidth=1.2)[0]
                line.set_linestyle(("-", "--", ":", "-.")[number // 10 % 4])
                line.set_marker("." if len(steps) < 50 else "")
        axes.set(title=metric, xlabel="optimizer step", ylabel=metric.rpartition("/")[2])
        drawn = [v for series in runs.values() for _, v in series.get(metric, [])]
        if metric.endswith("loss") and max(drawn) > 10 * min(drawn) > 0:  # else its ticks are hard to read
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    handles = {h.get_label(): h for axes in grid[: len(wanted)] for h in axes.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", fontsize="small", ncols=1)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    return out


def _labels(runs: Sequence[Path]) -> dict[Path, str]:
    """Name each run by what its path has beyond that of all of them."""
    if len(runs) == 1:
        return {runs[0]: runs[0].name}
    common = Path(os.path.commonpath([run.resolve() for run in runs]))
    return {run: run.resolve().relative_to(common).as_posix() for run in runs}
