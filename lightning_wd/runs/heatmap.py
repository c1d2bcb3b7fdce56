"""The heatmap of a sweep: error over learning rate and weight decay, one panel for each optimizer and style.

A cell is read from its ``config.yaml`` (else ``.hydra/config.yaml``) and its ``metrics.csv``, which may lie deeper
(``csv/version_0/metrics.csv``). The optimizer is the config's ``optimizer`` or ``model.optimizer``.
"""

from __future__ import annotations

import csv
import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_wd.decay import AMOUNTS
from lightning_wd.errors import ConfigError, nearest
from lightning_wd.runs.curves import read_metrics
from lightning_wd.runs.figure import COLORS, TITLES, below, in_style, panels, save
from lightning_wd.runs.separability import NEAR, Separability, mean_over_seeds, near_rows, row_optima, separability

__all__ = ["Cell", "Grid", "draw", "grids", "read_cells", "write_heatmap", "write_pictures"]

METRICS = ("test/acc", "test/loss", "val/acc", "val/loss")  # the first that a sweep has is drawn
_AMOUNT = {  # what the amount means in each style
    "l2": "lam, in the gradient: g + lam * w",
    "decoupled": "lam, removed each step: lr_t * lam * w",
    "independent": "lam, removed each step: eta_t * lam * w",
    "constant": "lam, removed each step: lam * w",
    "corrected": "lam, removed each step: lr_t^2 / lr0 * lam * w",
}


class Cell(NamedTuple):
    """One finished run: its setting and its error (percent where the metric is an accuracy)."""

    optimizer: str
    style: str
    unit: str
    lr: float
    amount: float
    seed: int
    error: float


@dataclass(frozen=True)
class Grid:
    """The cells of one optimizer in one style."""

    title: str  # the optimizer and its style
    style: str
    unit: str  # the amount's key in the config, such as weight_decay or normalized
    lr: Any  # ascending
    amount: Any  # ascending
    errors: Any  # shape (seeds, learning rates, amounts); nan for a missing cell

    @property
    def mean(self) -> Any:
        """Mean error over the seeds that are there, nan where there is none."""
        return mean_over_seeds(self.errors)

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
    """Return the finished cells below a folder in a fixed order, the metric, and how many runs have no value of it.

    Args:
        folder: a sweep's folder, or one that holds several sweeps.
        metric: a column of ``metrics.csv``; its last value counts. None for the first of :data:`METRICS` there is.

    Raises:
        ConfigError: no cell with this metric, or two that differ by more than optimizer, style, lr, amount and seed.
    """
    runs = {}
    for path in sorted(Path(folder).glob("**/metrics.csv")):
        config = _config(path.parent, Path(folder))
        if config is not None:
            runs[path.parent] = (*config, {name: points[-1][1] for name, points in read_metrics(path).items()})
    names = sorted({name for *_, values in runs.values() for name in values})
    metric = metric or next((name for name in METRICS if name in names), None)
    if metric not in names:
        raise ConfigError(
            f"{folder} has no run with a value of {metric or ' or '.join(METRICS)}.",
            found=f"{len(runs)} runs (a metrics.csv, and a config.yaml with an optimizer beside or above it)"
            + f" with {', '.join(names)}" * bool(names),
            nearest=nearest(metric, names) if metric else None,
            fix="give the folder of a sweep whose runs have logger=csv, or another --metric",
        )
    seen: dict[tuple[Any, ...], Path] = {}
    cells = []
    for run, (optimizer, seed, values) in runs.items():
        if metric not in values:
            continue
        error = 100.0 * (1.0 - values[metric]) if metric.endswith("acc") else values[metric]
        cell = Cell(*_setting(optimizer), seed, math.inf if math.isnan(error) else error)  # nan has diverged
        if (other := seen.setdefault(cell[:6], run)) != run:
            raise ConfigError(
                f"{run} and {other} are the same cell.",
                found=f"{cell.optimizer} {cell.style} lr={cell.lr:g} {cell.unit}={cell.amount:g} seed={seed}",
                fix="give a folder whose runs differ by optimizer, style, lr, amount and seed only",
            )
        cells.append(cell)
    return sorted(cells), metric, len(runs) - len(cells)


def _config(run: Path, top: Path) -> tuple[dict[str, Any], int] | None:
    """Return the optimizer and the seed of the nearest config at or above a run's metrics."""
    from omegaconf import DictConfig, OmegaConf

    for place in [run, *(parent for parent in run.parents if parent.is_relative_to(top))]:
        for path in (place / "config.yaml", place / ".hydra/config.yaml"):
            config = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
            for where in ("optimizer", "model.optimizer"):
                optimizer: Any = OmegaConf.select(config, where) if isinstance(config, DictConfig) else None
                if isinstance(optimizer, DictConfig) and "lr" in optimizer:
                    plain: Any = OmegaConf.to_container(optimizer, resolve=True)
                    return plain, int(OmegaConf.select(config, "seed") or 0)
    return None


def _setting(optimizer: dict[str, Any]) -> tuple[str, str, str, float, float]:
    """Return a cell's optimizer, style, unit, lr and amount."""
    decay = optimizer.get("decay") or {}
    unit = next((unit for unit in AMOUNTS[1:] if decay.get(unit) is not None), "weight_decay")
    amount = {**decay, "weight_decay": optimizer.get("weight_decay")}[unit]
    style = str(decay.get("style", "")) + " cautious" * bool(decay.get("cautious"))
    name = optimizer.get("name") or str(optimizer.get("_target_", "optimizer")).rpartition(".")[2]
    return str(name), style, unit, float(optimizer["lr"]), float(amount or 0.0)


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

    Arguments and errors are those of :func:`read_cells`, whose result is returned with grids in place of the cells.
    """
    folder = Path(folder)
    cells, metric, unfinished = read_cells(folder, metric)
    made = write_pictures(folder, cells, metric)
    head = [*Cell._fields, "metric"]
    _write(folder / "heatmap.csv", head, ((*cell[:-1], f"{cell.error:.9g}", metric) for cell in cells))
    rows = []
    for grid in made:
        s = grid.separability
        numbers = (f"{x:.4g}" for x in (s.figure, *s.interval, s.drift, s.low, s.high))
        rows.append((grid.title, grid.unit, *numbers, s.rows, s.at_edge, s.resampled))
    head = "panel unit separability low high drift drift_low drift_high rows rows_at_edge resampled".split()
    _write(folder / "separability.csv", head, rows)
    return made, metric, unfinished


@in_style()
def write_pictures(folder: Path, cells: Iterable[Cell], metric: str) -> list[Grid]:
    """Write ``heatmap.png`` and ``heatmap.svg`` into a folder, and return the grids that they show."""
    from matplotlib import rc_context

    made = grids(cells)
    figure = draw(made, f"{metric.removesuffix('/acc')} error (%)" if metric.endswith("/acc") else metric)
    save(figure, folder / "heatmap.png")
    with rc_context({"svg.hashsalt": "lightning-wd"}):  # the same picture is the same file
        save(figure, folder / "heatmap.svg", metadata={"Date": None})
    return made


def _write(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


@in_style()
def draw(made: Sequence[Grid], label: str) -> Any:
    """Return a matplotlib Figure: a panel for each grid, on one colour scale.

    The scale, named ``label``, ends at the 80th percentile of all cells, so that diverged ones do not flatten it. A
    frame marks each panel's best cell, bold numbers the cells at most 5 % worse, dots the best amount at each learning
    rate that counts.
    """
    values = np.concatenate([grid.mean.ravel() for grid in made])
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.0, 0.8]) if len(values) else (0.0, 1.0)
    tallest, seeds = (max(each) for each in zip(*((len(grid.lr), len(grid.errors)) for grid in made), strict=True))
    title = f"{label.capitalize()} over learning rate and weight decay, {seeds} seed{'s' * (seeds > 1)}"
    figure, axes = panels(len(made), title, height=1.1 + 0.42 * tallest)
    for each, grid in zip(axes, made, strict=True):
        image = _panel(each, grid, low, max(high, low + 1e-9), " %" if "%" in label else "")
    extend = "max" if (values > high).any() else "neither"
    figure.colorbar(image, ax=axes, label=label, extend=extend, fraction=0.05, aspect=40)
    below(
        figure,
        "Frame: the best cell; bold: at most 5 % worse; dots: the best amount at each learning rate that has one. "
        "Separability: octaves by which it moves for each octave of lr (0: separable, 1: the diagonal).",
    )
    return figure


def _panel(axes: Any, grid: Grid, low: float, high: float, unit: str) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    x, y, mean = _positions(grid.amount), _positions(grid.lr), grid.mean
    axes.set_facecolor("0.8")
    axes.grid(False)
    scale, colormap = Normalize(low, high), colormaps["viridis"]
    image = axes.pcolormesh(_edges(x), _edges(y), np.ma.masked_invalid(mean), norm=scale, cmap=colormap)
    i, j = grid.best
    for (row, column), value in np.ndenumerate(mean):
        if np.isfinite(value) and mean.size <= 144:
            light = np.dot(colormap(scale(value))[:3], [0.299, 0.587, 0.114]) > 0.5
            text = {
                "color": "black" if light else "white",
                "fontsize": min(7.5, 60 / len(x)),
                "zorder": 7,
                "ha": "center",
                "va": "center",
            }
            text["weight"] = "bold" if value <= NEAR * mean[i, j] else "normal"
            place = {"xytext": (0, -8), "textcoords": "offset points"}
            axes.annotate(f"{value:#.3g}", (x[column], y[row]), **text, **place)
    rows, usable = near_rows(mean), grid.amount > 0
    if usable.sum() > 1:
        optima, _ = row_optima(mean[np.ix_(rows, usable)], x[usable])
        axes.plot(optima, y[rows], "o-", color="black", markerfacecolor="white", markersize=4, linewidth=0.8, zorder=6)
    (left, right), (bottom, top) = _edges(x)[j : j + 2], _edges(y)[i : i + 2]
    box = {"xy": (left, bottom), "width": right - left, "height": top - bottom, "fill": False, "zorder": 5}
    axes.add_patch(Rectangle(**box, edgecolor=COLORS[1], linewidth=2.5))
    axes.set_title(f"{_title(grid)}: best {mean[i, j]:.4g}{unit}\nseparability {grid.separability}")
    amount = _AMOUNT.get(grid.style.removesuffix(" cautious"), "weight decay")
    axes.set_xlabel(amount if grid.unit == "weight_decay" else f"{grid.unit} decay")
    axes.set_ylabel("learning rate")
    every = math.ceil(len(x) / 9)  # labels that stand clear of each other
    axes.set_xticks(x[::every], _names(grid.amount)[::every])
    axes.set_yticks(y, _names(grid.lr))
    return image


def _title(grid: Grid) -> str:
    """Return a grid's optimizer as papers write it, and its style where the optimizer does not say it."""
    optimizer, comma, style = grid.title.partition(", ")
    return TITLES.get(optimizer, optimizer) + (comma + style) * (style != "l2")


def _positions(values: Any) -> Any:
    """Return log2 of the values; 0 is drawn one step left of the smallest positive value."""
    positive = np.log2(values[values > 0])
    if len(positive) == len(values):
        return positive
    step = positive[1] - positive[0] if len(positive) > 1 else 1.0
    return np.concatenate([positive[:1] - step if len(positive) else [0.0], positive])


def _edges(centres: Any) -> Any:
    """Return the borders of cells around their centres."""
    if len(centres) == 1:
        return centres[0] + np.array([-0.5, 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _names(values: Any) -> list[str]:
    """Return the values as powers of two where all are, beside a 0, and else as decimals."""
    exponents = np.log2(values[values > 0])
    powers = bool((exponents == exponents.round()).all())
    return [f"$2^{{{math.log2(value):.0f}}}$" if powers and value > 0 else f"{value:.3g}" for value in values]
