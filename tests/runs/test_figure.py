"""The frame of every picture: its width, its rows, and what stands below its panels."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from lightning_wd.configure.optimizer_config import OPTIMIZERS
from lightning_wd.runs.figure import COLORS, TITLES, below, curve, in_style, key, panels, save


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


def test_every_optimizer_of_the_pack_has_a_title() -> None:
    assert sorted(TITLES) == sorted(OPTIMIZERS)
