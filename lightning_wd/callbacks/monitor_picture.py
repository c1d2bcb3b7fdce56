"""``wd_monitor.png``: what the monitor saw in a run, drawn from its history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

__all__ = ["draw_monitor"]

# panel -> (unit, quantities: measured ones in full lines, predicted ones dashed)
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
    """Draw each quantity of each group against the step; return the path, or None where there is nothing to draw.

    Args:
        history: one mapping for each measured step: ``step``, and ``wd/<group>/<quantity>``.
        path: where the picture goes.
        title: its title.
    """
    groups = sorted(
        {key.removeprefix("wd/").rpartition("/")[0] for row in history for key in row if key.startswith("wd/")}
    )
    seen = {key for row in history for key in row}
    panels = [
        (name, unit, quantities)
        for name, (unit, quantities) in _PANELS.items()
        if any(f"wd/{group}/{quantity}" in seen for group in groups for quantity in quantities)
    ]
    if not panels:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no screen is needed, and no global state is touched
    from matplotlib.figure import Figure

    rows = math.ceil(len(panels) / 3)
    columns = min(3, len(panels))
    figure = Figure(figsize=(4.4 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, (name, unit, quantities) in zip(grid, panels, strict=False):
        values: list[float] = []
        for color, group in enumerate(groups):
            for quantity, line in quantities.items():
                points = [(row["step"], row[key]) for row in history if (key := f"wd/{group}/{quantity}") in row]
                points = [point for point in points if math.isfinite(point[1])]
                if not points:
                    continue
                steps, heights = zip(*points, strict=True)
                values += heights
                label = group + {"--": ", predicted", ":": ", " + quantity.rpartition("_")[2]}.get(line, "")
                axes.plot(steps, heights, line, color=f"C{color}", label=label, marker="." if len(steps) < 30 else None)
        axes.set(title=name, xlabel="optimizer step", ylabel=unit)
        if values and min(values) > 0 and max(values) > 10 * min(values):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        if values:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path
