"""Pictures of one run and of several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_wd.cli import main
from lightning_wd.errors import ConfigError
from lightning_wd.runs.curves import curves, draw_monitor, overlay, read_metrics
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
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of the pictures that are drawn."""
    seen: list[Any] = []
    monkeypatch.setattr("lightning_wd.runs.curves._finish", lambda axes, *a, **k: seen.append((axes, *a)))
    return seen


def test_d_t_stands_beside_the_coefficient(tmp_path: Path, drawn: list[Any]) -> None:
    """d_t = lr_t^2 / lr0 * lam of `corrected`; l2 has none."""
    groups = [{"name": "decay", "style": "corrected", "lr": 0.1, "tensors": 3, "numel": 1000}]
    groups += [{"name": "penalty", "style": "l2", "lr": 0.1, "tensors": 1, "numel": 10}]
    (tmp_path / "decay_plan.json").write_text(json.dumps({"groups": groups}))
    logger = RunCSVLogger(tmp_path)
    for step, lr in enumerate((0.1, 0.05)):
        rates = {f"lr-AdamW/{g['name']}": lr for g in groups}
        lams = {"lr-AdamW/decay-weight_decay": 0.5 / (1 + step), "lr-AdamW/penalty-weight_decay": 0.5}
        logger.log_metrics({**rates, **lams}, step=step)
    logger.save()
    assert curves(tmp_path, "title") is not None
    lines = {name: {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()} for axes, name, _ in drawn}
    assert lines == {
        "learning rate": {"AdamW/decay": [0.1, 0.05], "AdamW/penalty": [0.1, 0.05]},
        "weight decay": {"AdamW/decay": [0.5, 0.25], "AdamW/penalty": [0.5, 0.5]},
        "effective decay": {"AdamW/decay": pytest.approx([0.05, 0.00625])},
    }
    legend = drawn[0][0].figure.legends[0]
    assert legend.get_title().get_text() == (
        "decay: 3 tensors, 1,000 parameters, lam 0.5 to 0.25; penalty: 1 tensors, 10 parameters, lam 0.5"
    )


def test_the_monitors_picture_has_no_empty_panel_and_says_what_predicted_means(
    tmp_path: Path, drawn: list[Any]
) -> None:
    history = [{"step": s, "wd/decay/d_t": 0.1, "wd/decay/weight_rms": 1.0, "wd/no_decay/d_t": 0.0} for s in range(3)]
    for row in history:
        row |= {"wd/decay/weight_rms_predicted": 0.5, "wd/no_decay/timescale_epochs": float("inf")}
    assert draw_monitor(history, tmp_path / "x.png", "title") == tmp_path / "x.png"
    assert [name for _, name, _ in drawn] == ["size of the weights", "effective decay"]
    assert all(axes.get_lines() for axes, *_ in drawn)
    (legend,) = drawn[0][0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["decay", "no_decay", "predicted"]
    assert legend.get_title().get_text().startswith("Predicted: where AdamW's weights")
    assert draw_monitor([{"step": 0}], tmp_path / "y.png", "title") is None


def test_the_monitors_picture_of_hyperball_of_an_anchor_and_of_groups_that_coincide(
    tmp_path: Path, drawn: list[Any]
) -> None:
    history = [
        {
            "step": step,
            "wd/decay/d_t": 0.0,  # of no group is there any: no panel
            "wd/decay/angular_update": 0.1,
            "wd/decay_muon/angular_update": 0.1,
            "wd/decay/angular_update_predicted": 0.2,
            "wd/decay/anchor_distance": 1.0,
        }
        for step in range(3)
    ]
    assert draw_monitor(history, tmp_path / "x.png", "title") is not None
    (_, distance, unit), (angle, update, _) = drawn
    assert (distance, unit, update) == ("distance to the anchor", "||w - w*||", "angular update")
    assert [line.get_linestyle() for line in angle.get_lines()] == ["-", "--", "--"]
    assert angle.figure.legends[0].get_title().get_text().startswith("Predicted: hyperball turns a tensor by arctan")


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


def test_a_sweeps_runs_are_told_apart_by_their_overrides(tmp_path: Path, drawn: list[Any]) -> None:
    """By those that not all have, without secrets; steps are whole numbers."""
    for number, lr in enumerate(("0.1", "0.2")):
        logger = RunCSVLogger(tmp_path / str(number) / "csv")
        logger.log_metrics({"val/loss": 0.5, "val/acc": 0.5}, step=number)
        logger.save()
        (tmp_path / str(number) / ".hydra").mkdir()
        overrides = ["model=mine", f"model.optimizer.lr={lr}", f"hub.token={number}"]
        (tmp_path / str(number) / ".hydra/overrides.yaml").write_text(json.dumps(overrides))
    overlay([tmp_path], tmp_path / "x.svg")
    figure = drawn[0][0].figure
    assert figure.get_suptitle() == "Metrics of 2 runs"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "0/csv: model.optimizer.lr=0.1",
        "1/csv: model.optimizer.lr=0.2",
    ]
    overlay([tmp_path / "0"], tmp_path / "y.svg")
    assert [text.get_text() for text in drawn[-1][0].figure.legends[0].get_texts()] == ["csv"]


def test_curves_refuses_what_is_not_there(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run has the metric 'val/los'\.\n.*\n  nearest: 'val/loss'"):
        overlay([runs], tmp_path / "x.png", ["val/los"])
    with pytest.raises(ConfigError, match=r"x\.foo is not the name of a picture\.\n  valid: \.png, \.svg, \.pdf\n"):
        overlay([runs], tmp_path / "x.foo")
    with pytest.raises(ConfigError, match="there is no run in"):
        overlay([tmp_path / "nowhere"], tmp_path / "x.png")
