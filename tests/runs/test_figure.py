"""The frame of every picture: its width, its rows, and what stands below its panels."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from lightning_wd.configure.optimizer_config import OPTIMIZERS
from lightning_wd.runs.figure import COLORS, STYLE_COLORS, TITLES, below, curve, in_style, key, panels, save
from lightning_wd.styles import STYLES


@pytest.mark.parametrize(("count", "rows"), [(1, [1]), (3, [3]), (4, [2, 2]), (5, [2, 3]), (7, [2, 2, 3])])
def test_each_row_fills_the_width(count: int, rows: list[int], tmp_path: Path) -> None:
    figure, axes = panels(count, "title", columns=3)
    for number, each in enumerate(axes):
        curve(each, [(0, 1.0), (1, 2.0)], number)
    below(figure, "words " * 40, [key("a", COLORS[0]), key("b", COLORS[1], "--")])
    height, width, _ = imread(save(figure, tmp_path / "x.png")).shape
    assert (width, height > 300) == (1328, True)
    found = [round(each.get_position().y0, 3) for each in axes]
    assert [found.count(y) for y in sorted(set(found), reverse=True)] == rows
    figure.draw_without_rendering()  # at the figure's own resolution, in which the boxes below are
    boxes = [each.get_position() for each in axes]
    assert min(box.x0 for box in boxes) < 0.15
    assert max(box.x1 for box in boxes) > 0.95
    (legend,) = figure.legends
    renderer = FigureCanvasAgg(figure).get_renderer()
    top = legend.get_window_extent(renderer).y1
    assert top <= min(each.get_tightbbox(renderer).y0 for each in axes)  # off the curves


def test_the_style_ends_with_the_drawing() -> None:
    before = rcParams["axes.titlesize"]
    with in_style():
        assert rcParams["axes.titlesize"] == 10
    assert rcParams["axes.titlesize"] == before


def seen(color: str, matrix: list[list[float]]) -> Any:
    """Return a colour in CIELAB, as one sees it for whom a matrix turns linear RGB into what is left of it."""
    value = np.array(to_rgb(color))
    linear = np.clip(
        np.array(matrix) @ np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4), 0, 1
    )
    xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]) @ linear
    xyz /= [0.9505, 1.0, 1.0888]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(
    "matrix",  # Machado et al., https://doi.org/10.1109/TVCG.2009.113, severity 1
    [
        pytest.param(np.eye(3).tolist(), id="all colours"),
        pytest.param([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]], id="no red cones"),
        pytest.param([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]], id="no green cones"),
    ],
)
def test_each_style_has_a_colour_that_colour_blind_readers_tell_from_the_others(matrix: list[list[float]]) -> None:
    assert set(STYLES) | {"normalized", "timescale"} == set(STYLE_COLORS)
    lab = {style: seen(color, matrix) for style, color in STYLE_COLORS.items()}
    closest = min(itertools.combinations(lab, 2), key=lambda pair: float(np.linalg.norm(lab[pair[0]] - lab[pair[1]])))
    assert np.linalg.norm(lab[closest[0]] - lab[closest[1]]) > 17, closest


def test_every_optimizer_of_the_pack_has_a_title() -> None:
    assert sorted(TITLES) == sorted(OPTIMIZERS)
