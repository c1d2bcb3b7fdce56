"""The one style of all pictures: as wide as a README's column, colours that colour-blind readers tell apart."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["COLORS", "LINES", "STYLE_COLORS", "TITLES", "below", "curve", "in_style", "key", "panels", "save"]

# Okabe & Ito's palette (https://jfly.uni-koeln.de/color) without its yellow, which is pale on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
# The colour of a decay style, or of a unit of one, wherever styles stand beside each other.
STYLE_COLORS = {
    "decoupled": COLORS[0],
    "l2": COLORS[1],
    "independent": COLORS[2],
    "normalized": COLORS[3],
    "timescale": COLORS[4],
    "constant": COLORS[5],
    "corrected": COLORS[6],
    "hyperball": "#8B4513",
    "none": "#606060",
}
# The optimizers of the pack as papers write them.
TITLES = {
    "adafactor": "Adafactor",
    "adagradw": "AdagradW",
    "adam_l2": "Adam with L2",
    "adamaxw": "AdamaxW",
    "adamw": "AdamW",
    "muon": "Muon",
    "nadamw": "NAdamW",
    "radamw": "RAdamW",
    "rmspropw": "RMSpropW",
    "sgd_l2": "SGD with L2",
    "sgdw": "SGDW",
}
_WIDTH = 8.3  # inches, 830 pixels of a README at 100 dpi: the sizes below are what a reader sees
_SMALL = 8.5
_STYLE: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.titlesize": 11,
    "grid.alpha": 0.3,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.title_fontsize": _SMALL,
    "lines.linewidth": 1.3,
    "lines.markersize": 5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


@contextmanager
def in_style() -> Iterator[None]:
    """Within, or as a decorator in, what matplotlib draws has the sizes of this module."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        yield


def panels(
    count: int,
    title: str,
    *,
    columns: int = 2,
    widths: Sequence[int] = (),
    height: float = 2.5,
    share_y: bool = False,
) -> tuple[Any, list[Any]]:
    """Return a matplotlib Figure, which needs no screen, and the axes of its ``count`` panels, row by row.

    Args:
        count: number of panels, >= 1; rows may differ by one panel, and each fills the width.
        title: of the whole figure.
        columns: the most panels in a row.
        widths: of the panels of a row, in shares; all alike by default.
        height: of a row of panels, in inches.
        share_y: whether the panels of a row have one vertical axis.
    """
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    sizes = [count * (row + 1) // rows - count * row // rows for row in range(rows)]
    shares = [widths or [math.lcm(*sizes) // size] * size for size in sizes]
    figure = Figure(figsize=(_WIDTH, height * rows + 0.3), layout="constrained")
    grid = figure.add_gridspec(rows, sum(shares[0]))
    axes: list[Any] = []
    for row, share in enumerate(shares):
        first = len(axes)
        for place, width in enumerate(share):
            start = sum(share[:place])
            left = axes[first] if share_y and place else None
            axes.append(figure.add_subplot(grid[row, start : start + width], sharey=left))
            axes[-1].tick_params(labelleft=left is None)
    figure.suptitle(title)
    return figure, axes


def curve(
    axes: Any, points: Sequence[tuple[float, float]], color: int | str = 0, line: Any = "-", label: str = ""
) -> None:
    """Draw points as a line in a colour, or in that of a number, with dots where they are few."""
    marker = "o" if len(points) < 25 else ""
    color = color if isinstance(color, str) else COLORS[color % len(COLORS)]
    axes.plot(*zip(*points, strict=True), linestyle=line, color=color, label=label, marker=marker, markersize=3)


def key(label: str, color: str, line: Any = "-") -> Any:
    """Return an entry of a legend for lines of this look."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linestyle=line, label=label)


def below(figure: Any, text: str, handles: Sequence[Any] = (), columns: int = 0) -> None:
    """Add room below the panels for what the figure shows, in words that are wrapped, and for one legend of all."""
    lines = textwrap.wrap(text, 130)
    columns = columns or max(1, len(handles))
    rows = len(lines) + 1.4 * -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.16 * rows)
    if handles:
        place = {"loc": "outside lower center", "ncols": columns}
        figure.legend(handles=handles, title="\n".join(lines) or None, **place)
    elif lines:
        figure.supxlabel("\n".join(lines), fontsize=_SMALL)


def save(figure: Any, path: Path, **settings: Any) -> Path:
    """Write a figure, at twice the pixels of a README's column where it is a bitmap; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, **settings)
    return path
