"""The picture of a sweep: error over learning rate and weight decay, one panel for each optimizer, from its folders.

A cell is read from its ``config.yaml`` (or ``.hydra/config.yaml``, in an app that writes no other) and ``metrics.csv``,
which may lie deeper (``csv/version_0/metrics.csv``). The optimizer is ``optimizer`` or ``model.optimizer`` there.
"""

from __future__ import annotations

import csv
import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_wd.errors import ConfigError, explain, nearest
from lightning_wd.pictures import read_metrics
from lightning_wd.separability import Separability, near_rows, row_optima, separability

__all__ = ["Cell", "Grid", "draw", "grids", "read_cells", "write_heatmap"]

METRICS = ("test/acc", "test/loss", "val/acc", "val/loss")  # the first that a sweep has is drawn
_UNITS = ("normalized", "timescale_epochs")
_AMOUNT = {  # what the amount means in each style
    "l2": "weight decay lam, in the gradient: g + lam * w",
    "decoupled": "weight decay lam, removed each step: lr_t * lam * w",
    "independent": "weight decay lam, removed each step: eta_t * lam * w",
    "constant": "weight decay lam, removed each step: lam * w",
    "corrected": "weight decay lam, removed each step: lr_t^2 / lr0 * lam * w",
}


@dataclass(frozen=True)
class Cell:
    """One finished run: its setting and its error (percent where the metric is an accuracy)."""

    optimizer: str
    style: str
    unit: str
    lr: float
    amount: float
    seed: int
    error: float
    folder: Path


@dataclass(frozen=True)
class Grid:
    """The cells of one optimizer in one style.

    Args:
        title: the optimizer and its style.
        style: the style alone.
        unit: what the amount is: ``weight_decay``, ``normalized`` or ``timescale_epochs``.
        lr: learning rates, ascending.
        amount: amounts of decay, ascending.
        errors: shape (seeds, learning rates, amounts); nan for a missing cell.
    """

    title: str
    style: str
    unit: str
    lr: Any
    amount: Any
    errors: Any

    @property
    def mean(self) -> Any:
        """Mean error over the seeds that are there, nan where there is none."""
        there = ~np.isnan(self.errors)
        total = np.where(there, self.errors, 0.0).sum(axis=0)
        return np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan)

    @property
    def best(self) -> tuple[int, int]:
        """Indices (learning rate, amount) of the lowest mean error."""
        return divmod(int(np.nanargmin(self.mean)), len(self.amount))

    @functools.cached_property
    def separability(self) -> Separability:
        """How far the best amount moves with the learning rate; amounts of 0 are left out."""
        rows, columns = self.lr > 0, self.amount > 0
        return separability(self.errors[:, rows][:, :, columns], self.lr[rows], self.amount[columns])


def read_cells(folder: str | Path, metric: str | None = None) -> tuple[list[Cell], str, int]:
    """Read the cells below a folder.

    Args:
        folder: a sweep's folder, or one that holds several sweeps.
        metric: a column of ``metrics.csv``; its last value counts. None for the first of :data:`METRICS` there is.

    Returns:
        The finished cells in a fixed order, the metric, and how many runs have no value of it.

    Raises:
        ConfigError: no cell with this metric, or two that differ by more than optimizer, style, lr, amount and seed.
    """
    runs = {}
    for path in sorted(Path(folder).glob("**/metrics.csv")):
        config = _config(path.parent, Path(folder))
        if config is not None:
            runs[path.parent] = (config, {name: points[-1][1] for name, points in read_metrics(path).items()})
    names = sorted({name for _, values in runs.values() for name in values})
    metric = metric or next((name for name in METRICS if name in names), None)
    if metric not in names:
        raise ConfigError(
            explain(
                f"{folder} has no run with a value of {metric or ' or '.join(METRICS)}.",
                found=f"{len(runs)} runs (a metrics.csv, and a config.yaml with an optimizer beside or above it)"
                + f" with {', '.join(names)}" * bool(names),
                nearest=nearest(metric, names) if metric else None,
                fix="give the folder of a sweep whose runs have logger=csv, or another --metric",
            )
        )
    cells: list[Cell] = []
    seen: dict[tuple[Any, ...], Path] = {}
    for run, (config, values) in runs.items():
        if metric not in values:
            continue
        cell = _cell(run, config, values[metric], accuracy=metric.endswith("acc"))
        key = (cell.optimizer, cell.style, cell.unit, cell.lr, cell.amount, cell.seed)
        if key in seen:
            raise ConfigError(
                explain(
                    f"{run} and {seen[key]} are the same cell.",
                    found=f"{cell.optimizer} {cell.style} lr={cell.lr:g} {cell.unit}={cell.amount:g} seed={cell.seed}",
                    fix="give a folder whose runs differ by optimizer, style, lr, amount and seed only",
                )
            )
        seen[key] = run
        cells.append(cell)
    cells.sort(key=lambda c: (c.optimizer, c.style, c.unit, c.lr, c.amount, c.seed))
    return cells, metric, len(runs) - len(cells)


def _config(run: Path, top: Path) -> dict[str, Any] | None:
    """Return the optimizer and the seed of the nearest config at or above a run's metrics."""
    from omegaconf import DictConfig, OmegaConf

    for place in [run, *(parent for parent in run.parents if parent.is_relative_to(top))]:
        for path in (place / "config.yaml", place / ".hydra/config.yaml"):
            config = OmegaConf.load(path) if path.is_file() else None
            if not isinstance(config, DictConfig):
                continue
            for where in ("optimizer", "model.optimizer"):
                optimizer = OmegaConf.select(config, where)
                if isinstance(optimizer, DictConfig) and "lr" in optimizer:
                    return {
                        "optimizer": OmegaConf.to_container(optimizer, resolve=True),
                        "seed": OmegaConf.select(config, "seed") or 0,
                    }
    return None


def _cell(run: Path, config: dict[str, Any], value: float, *, accuracy: bool) -> Cell:
    optimizer = config["optimizer"]
    decay = optimizer.get("decay") or {}
    unit = next((unit for unit in _UNITS if decay.get(unit) is not None), "weight_decay")
    amount = optimizer.get("weight_decay") if unit == "weight_decay" else decay[unit]
    style = str(decay.get("style", "")) + " cautious" * bool(decay.get("cautious"))
    error = 100.0 * (1.0 - value) if accuracy else value
    error = math.inf if math.isnan(error) else error  # diverged
    name = optimizer.get("name") or str(optimizer.get("_target_", "optimizer")).rpartition(".")[2]
    return Cell(
        str(name), style, unit, float(optimizer["lr"]), float(amount or 0.0), int(config["seed"]),
        error, run,
    )  # fmt: skip


def grids(cells: Iterable[Cell]) -> list[Grid]:
    """Arrange cells into one grid for each optimizer, style and unit."""
    groups: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.optimizer, cell.style, cell.unit].append(cell)
    made = []
    for (optimizer, style, unit), members in groups.items():
        lr, amount, seeds = (sorted({getattr(c, key) for c in members}) for key in ("lr", "amount", "seed"))
        errors = np.full((len(seeds), len(lr), len(amount)), np.nan)
        for c in members:
            errors[seeds.index(c.seed), lr.index(c.lr), amount.index(c.amount)] = c.error
        made.append(Grid(f"{optimizer}, {style}".rstrip(", "), style, unit, np.array(lr), np.array(amount), errors))
    return made


def write_heatmap(folder: str | Path, metric: str | None = None) -> tuple[list[Grid], str, int]:
    """Write ``heatmap.png``, ``heatmap.svg``, ``heatmap.csv`` and ``separability.csv`` into a sweep's folder.

    Args:
        folder: as :func:`read_cells` takes it.
        metric: likewise.

    Returns:
        The grids, the metric, and how many runs have no value of it.
    """
    from matplotlib import rc_context

    folder = Path(folder)
    cells, metric, unfinished = read_cells(folder, metric)
    made = grids(cells)
    figure = draw(made, _label(metric))
    figure.savefig(folder / "heatmap.png", dpi=130)
    with rc_context({"svg.hashsalt": "lightning-wd"}):  # the same picture is the same file
        figure.savefig(folder / "heatmap.svg", metadata={"Date": None})
    _write(
        folder / "heatmap.csv",
        "optimizer style unit lr amount seed error metric".split(),
        ((c.optimizer, c.style, c.unit, c.lr, c.amount, c.seed, f"{c.error:.6g}", metric) for c in cells),
    )
    rows = []
    for grid in made:
        s = grid.separability
        numbers = (f"{x:.4g}" for x in (s.figure, *s.interval, s.drift, s.low, s.high))
        rows.append((grid.title, grid.unit, *numbers, s.rows, s.at_edge, s.resampled))
    head = "panel unit separability low high drift drift_low drift_high rows rows_at_edge resampled".split()
    _write(folder / "separability.csv", head, rows)
    return made, metric, unfinished


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def _label(metric: str) -> str:
    return f"{metric.removesuffix('/acc')} error (%)" if metric.endswith("/acc") else metric


def draw(made: Sequence[Grid], label: str) -> Any:
    """Return a matplotlib Figure: a panel for each grid, on one colour scale.

    The scale ends at the 80th percentile of all cells, so that diverged ones do not flatten it. A red frame marks each
    panel's best cell, dots the best amount at each learning rate that counts, the line 5 % above the panel's best.

    Args:
        made: the grids.
        label: what the colours mean.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no screen is needed, and no global state is touched
    from matplotlib.figure import Figure

    values = np.concatenate([grid.mean.ravel() for grid in made])
    values = values[np.isfinite(values)]
    low, high = (values.min(), np.quantile(values, 0.8)) if len(values) else (0.0, 1.0)
    columns = 1 if len(made) == 1 else 2
    rows = -(-len(made) // columns)
    widest, tallest = (max(len(getattr(grid, key)) for grid in made) for key in ("amount", "lr"))
    size = ((1.6 + 0.62 * widest) * columns + 1.0, (1.4 + 0.5 * tallest) * rows + 0.5)
    figure = Figure(figsize=(max(6.5, size[0]), size[1]), layout="constrained")
    FigureCanvasAgg(figure)
    seeds = max(len(grid.errors) for grid in made)
    figure.suptitle(f"{label.capitalize()} over learning rate and weight decay, {seeds} seed{'s' * (seeds > 1)}")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[len(made) :]:
        unused.remove()
    for panel, grid in zip(axes, made, strict=False):
        image = _panel(panel, grid, low, max(high, low + 1e-9), " %" if "%" in label else "")
    above = (values > high).any()
    figure.colorbar(image, ax=list(axes[: len(made)]), label=label, extend="max" if above else "neither")
    figure.supxlabel(
        "red frame: best cell; white line: 5 % above it; dots: best amount at each learning rate, between cells by a "
        "parabola\n"
        "separability: octaves by which the best amount moves for each octave of lr (0 separable, 1 the diagonal)",
        fontsize="small",
    )
    return figure


def _panel(axes: Any, grid: Grid, low: float, high: float, unit: str) -> Any:
    from matplotlib.patches import Rectangle

    x, y, mean = _positions(grid.amount), _positions(grid.lr), grid.mean
    shown = np.ma.masked_invalid(mean)
    axes.set_facecolor("0.8")
    image = axes.pcolormesh(_edges(x), _edges(y), shown, cmap="viridis", vmin=low, vmax=high)
    i, j = grid.best
    if min(mean.shape) > 1 and np.isfinite(mean).all():
        axes.contour(x, y, mean, levels=[1.05 * mean[i, j]], colors="white", linewidths=1.2)
    for (row, column), value in np.ndenumerate(mean):
        if np.isfinite(value) and mean.size <= 144:
            color = "white" if value < low + 0.6 * (high - low) else "black"
            axes.annotate(
                f"{value:#.3g}", (x[column], y[row]), (0, -9), textcoords="offset points", color=color,
                ha="center", va="center", fontsize=7, zorder=7,
            )  # fmt: skip
    rows, usable = near_rows(mean), grid.amount > 0
    if usable.sum() > 1:
        optima, _ = row_optima(mean[np.ix_(rows, usable)], x[usable])
        axes.plot(optima, y[rows], "o-", color="black", markerfacecolor="white", markersize=5, linewidth=0.8, zorder=6)
    left, bottom = _edges(x)[j], _edges(y)[i]
    width, height = _edges(x)[j + 1] - left, _edges(y)[i + 1] - bottom
    axes.add_patch(Rectangle((left, bottom), width, height, fill=False, edgecolor="red", linewidth=2.2, zorder=5))
    s = grid.separability
    moved = "too few rows" if math.isnan(s.drift) else f"{s.figure:.2f} [{s.interval[0]:.2f}, {s.interval[1]:.2f}]"
    axes.set_title(f"{grid.title}: best {mean[i, j]:.4g}{unit}\nseparability {moved}", fontsize=9)
    amount = _AMOUNT.get(grid.style.removesuffix(" cautious"), "weight decay")
    axes.set_xlabel(amount if grid.unit == "weight_decay" else f"{grid.unit} decay", fontsize="small")
    axes.set_ylabel("learning rate")
    axes.set_xticks(x, [_name(value) for value in grid.amount])
    axes.set_yticks(y, [_name(value) for value in grid.lr])
    return image


def _positions(values: Any) -> Any:
    """Return log2 of the values; 0 stands one step to the left of the smallest other."""
    positive = np.log2(values[values > 0])
    step = (positive[1] - positive[0]) if len(positive) > 1 else 1.0
    first = positive[0] - step if len(positive) else 0.0
    return np.concatenate([[first], positive]) if len(positive) < len(values) else positive


def _edges(centres: Any) -> Any:
    """Return the borders of cells around their centres."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _name(value: float) -> str:
    exponent = math.log2(value) if value > 0 else math.nan
    return f"$2^{{{exponent:.0f}}}$" if exponent == round(exponent, 9) and exponent.is_integer() else f"{value:.3g}"
