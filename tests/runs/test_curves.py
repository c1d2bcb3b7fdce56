"""Pictures of one run and of several."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_wd.cli import main
from lightning_wd.errors import ConfigError
from lightning_wd.runs.curves import curves, overlay, read_metrics
from lightning_wd.runs.folder import RunCSVLogger


def test_curves_draws_what_was_logged(tmp_path: Path) -> None:
    assert curves(tmp_path, "empty") is None
    logger = RunCSVLogger(tmp_path)
    for step in range(3):
        logger.log_metrics({"train/loss": 1.0 / (step + 1), "val/acc": 0.5, "lr-AdamW/decay": 0.1}, step=step)
    logger.log_metrics({"test/acc": 0.75}, step=3)
    logger.save()
    assert read_metrics(tmp_path / "metrics.csv")["train/loss"] == [(0, 1.0), (1, 0.5), (2, 1.0 / 3)]
    picture = curves(tmp_path, "title")
    assert picture == tmp_path / "curves.png"
    from matplotlib.image import imread

    height, width, _ = imread(picture).shape
    assert width > height > 200


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("first", "second", "third"):
        logger = RunCSVLogger(tmp_path / name)
        logger.log_metrics({"train/loss": 1.5}, step=9)
        logger.log_metrics({"test/acc": 0.9, "val/loss": 0.5}, step=10)
        logger.save()
    return tmp_path


def test_curves_draws_runs_over_each_other(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = sorted(str(path) for path in runs.iterdir())
    out = runs / "new/over.svg"
    assert main(["curves", *folders, "--out", str(out), "--metric", "val/loss"]) == 0
    assert capsys.readouterr().out == f"written: {out}\n"
    text = out.read_text()
    assert all(f"<!-- {Path(run).name} -->" in text for run in folders)
    assert "<!-- val/loss -->" in text
    assert "<!-- train/loss -->" not in text


def test_curves_refuses_what_is_not_there(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run has the metric 'val/los'\.\n.*\n  nearest: 'val/loss'"):
        overlay([runs], tmp_path / "x.png", ["val/los"])
    with pytest.raises(ConfigError, match=r"x\.foo is not the name of a picture\.\n  valid: \.png, \.svg, \.pdf\n"):
        overlay([runs], tmp_path / "x.foo")
    with pytest.raises(ConfigError, match="there is no run in"):
        overlay([tmp_path / "nowhere"], tmp_path / "x.png")
