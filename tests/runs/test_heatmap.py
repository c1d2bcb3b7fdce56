"""``lightning-wd heatmap`` on folders with known numbers."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lightning_wd.cli import main
from lightning_wd.errors import ConfigError
from lightning_wd.runs.heatmap import draw, grids, read_cells, write_heatmap

LR = [2.0**k for k in range(-10, -4)]


AMOUNT = [2.0**k for k in range(-14, -2, 2)]


def run_folder(folder: Path, optimizer: dict[str, Any], metrics: dict[str, float], seed: int = 0) -> Path:
    """Write what a finished run leaves: ``config.yaml`` and ``metrics.csv``."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"optimizer": optimizer, "seed": seed}))
    names = sorted(metrics)
    rows = [["epoch", "step", "train/loss", *names], ["0", "9", "1.5", *[""] * len(names)]]
    rows += [["1", "10", "", *(str(metrics[name]) for name in names)]]
    (folder / "metrics.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    return folder


def error(optimizer: str, lr: float, amount: float) -> float:
    """A valley whose best amount stands still for adamw and falls by an octave for each octave of lr for adam_l2."""
    x, y = math.log2(lr), math.log2(amount)
    best = -9.0 if optimizer == "adamw" else -17.0 - x
    return 15.0 + 0.1 * (y - best) ** 2 + 0.2 * (x + 7.0) ** 2


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for name, style in (("adamw", "independent"), ("adam_l2", "l2")):
        for lr in LR:
            for amount in AMOUNT:
                optimizer = {"name": name, "lr": lr, "weight_decay": amount, "decay": {"style": style}}
                accuracy = 1 - error(name, lr, amount) / 100
                run_folder(tmp_path / f"{name}_{lr}_{amount}", optimizer, {"test/acc": accuracy, "val/loss": 0.5})
    return tmp_path


def test_heatmap_writes_picture_and_numbers(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heatmap", str(sweep)]) == 0
    printed = capsys.readouterr().out
    assert (sweep / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (sweep / "heatmap.svg").read_text()
    with (sweep / "heatmap.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(LR) * len(AMOUNT)
    assert list(rows[0]) == "optimizer style unit lr amount seed error metric".split()
    for row in rows:
        assert float(row["error"]) == pytest.approx(
            error(row["optimizer"], float(row["lr"]), float(row["amount"])), rel=1e-5
        )
    assert "adamw, independent: best 15.1 at lr 0.0078125, weight_decay 0.000976562" in printed
    assert "adam_l2, l2: best 15 at lr 0.0078125, weight_decay 0.000976562" in printed


def test_the_separability_file_has_the_known_slopes(sweep: Path) -> None:
    write_heatmap(sweep)
    with (sweep / "separability.csv").open(newline="") as file:
        rows = {row["panel"]: row for row in csv.DictReader(file)}
    still, diagonal = rows["adamw, independent"], rows["adam_l2, l2"]
    assert float(still["separability"]) == pytest.approx(0, abs=1e-6)
    assert float(diagonal["separability"]) == pytest.approx(1, abs=0.06)  # two rows have their best at the edge
    assert float(diagonal["drift"]) < 0
    assert float(diagonal["drift_low"]) <= float(diagonal["drift"]) <= float(diagonal["drift_high"])


def test_the_same_cells_make_the_same_files(sweep: Path) -> None:
    write_heatmap(sweep)
    files = [sweep / f"heatmap.{ending}" for ending in ("csv", "svg", "png")] + [sweep / "separability.csv"]
    before = [path.read_bytes() for path in files]
    write_heatmap(sweep)
    assert [path.read_bytes() for path in files] == before


def test_the_picture_says_what_it_shows(sweep: Path) -> None:
    cells, _, _ = read_cells(sweep)
    figure = draw(grids(cells), "test error (%)")
    panels, bar = figure.axes[:2], figure.axes[2]
    assert figure.get_suptitle() == "Test error (%) over learning rate and weight decay, 1 seed"
    assert [axes.get_title().splitlines()[0] for axes in panels] == [
        "Adam with L2: best 15 %",
        "AdamW, independent: best 15.1 %",
    ]
    assert [axes.get_xlabel() for axes in panels] == [
        "lam, in the gradient: g + lam * w",
        "lam, removed each step: eta_t * lam * w",
    ]
    assert {axes.get_ylabel() for axes in panels} == {"learning rate"}
    assert bar.get_ylabel() == "test error (%)"
    for axes in panels:
        assert [label.get_text() for label in axes.get_yticklabels()] == [f"$2^{{{k}}}$" for k in range(-10, -4)]
        (frame,) = axes.patches
        centre = (frame.get_x() + frame.get_width() / 2, frame.get_y() + frame.get_height() / 2)
        assert centre == (-10, -7)  # the best cell, in powers of two


def test_unfinished_runs_are_counted_and_left_out(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = sweep / f"adamw_{LR[2]}_{AMOUNT[2]}" / "metrics.csv"
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:2]))
    assert main(["heatmap", str(sweep)]) == 0
    printed = capsys.readouterr().out
    assert "1 runs have no value of test/acc yet" in printed
    assert "  1 cells are missing" in printed


def test_seeds_are_averaged(tmp_path: Path) -> None:
    for seed, accuracy in ((0, 0.8), (1, 0.9)):
        optimizer = {"name": "sgdw", "lr": 0.1, "weight_decay": 0.01, "decay": {"style": "decoupled"}}
        run_folder(tmp_path / str(seed), optimizer, {"test/acc": accuracy}, seed)
    (grid,) = grids(read_cells(tmp_path)[0])
    assert grid.mean == pytest.approx(np.array([[15.0]]))


def test_other_units_and_metrics(tmp_path: Path) -> None:
    for amount in (0.025, 0.05):
        decay = {"style": "independent", "normalized": amount, "timescale_epochs": None, "cautious": True}
        optimizer = {"name": "adamw", "lr": 0.1, "weight_decay": None, "decay": decay}
        run_folder(tmp_path / str(amount), optimizer, {"val/loss": amount})
    cells, metric, _ = read_cells(tmp_path)
    assert metric == "val/loss"
    assert [(c.style, c.unit, c.amount, c.error) for c in cells] == [
        ("independent cautious", "normalized", 0.025, 0.025),
        ("independent cautious", "normalized", 0.05, 0.05),
    ]


def test_a_diverged_cell_and_an_amount_of_zero_are_drawn(tmp_path: Path) -> None:
    for lr in LR[:3]:
        for amount in (0.0, 0.25, 0.5):
            loss = math.nan if lr == LR[2] and amount == 0.5 else lr + amount
            optimizer = {"name": "sgd_l2", "lr": lr, "weight_decay": amount, "decay": {"style": "l2"}}
            run_folder(tmp_path / f"{lr}_{amount}", optimizer, {"test/loss": loss})
    (grid,), _, unfinished = write_heatmap(tmp_path)
    assert unfinished == 0
    assert math.isinf(grid.mean[2, 2])
    assert grid.best == (0, 0)
    assert "<!-- 0 -->" in (tmp_path / "heatmap.svg").read_text()


def test_a_row_that_a_kill_has_cut_is_no_value(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``0.8`` may have been 0.845, and a cut before the step has no step at all."""
    for lr, cut in ((LR[2], b"0,9,,1.5\n1,10,0.8"), (LR[3], b"0,9,,1.5\n1")):
        path = sweep / f"adamw_{lr}_{AMOUNT[2]}" / "metrics.csv"
        path.write_bytes(b"epoch,step,test/acc,train/loss\n" + cut)
    late = sweep / f"adamw_{LR[4]}_{AMOUNT[2]}" / "metrics.csv"
    late.write_text("epoch,lr-AdamW,step,test/acc\n1,0.1")
    assert main(["heatmap", str(sweep)]) == 0
    printed = capsys.readouterr().out
    assert "3 runs have no value of test/acc yet" in printed
    assert "  3 cells are missing" in printed


def test_every_cell_has_diverged(tmp_path: Path) -> None:
    for lr in LR[:3]:
        for amount in AMOUNT[:3]:
            optimizer = {"name": "sgd_l2", "lr": lr, "weight_decay": amount, "decay": {"style": "l2"}}
            run_folder(tmp_path / f"{lr}_{amount}", optimizer, {"test/loss": math.nan})
    (grid,), _, _ = write_heatmap(tmp_path)
    assert np.isinf(grid.mean).all()
    assert math.isnan(grid.separability.drift)


def test_too_few_learning_rates_near_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And decimals stay decimals where only some are powers of two."""
    for lr, loss in ((1e-3, 3.0), (4e-3, 2.0), (1.6e-2, 1.0)):
        for amount in (0.0, 0.1, 1.0):
            optimizer = {"name": "adamw", "lr": lr, "weight_decay": amount, "decay": {"style": "decoupled"}}
            run_folder(tmp_path / f"{lr}_{amount}", optimizer, {"test/loss": loss})
    assert main(["heatmap", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "separability unknown, too few rows: 1 of 3 learning rates within 5 % of the best error, where it" in printed
    axes, _ = draw(grids(read_cells(tmp_path)[0]), "test loss").axes
    assert axes.get_title().splitlines()[1] == "separability unknown, too few rows"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.1", "1"]


def test_a_cell_as_lightning_hydra_template_lays_it_out(tmp_path: Path) -> None:
    """The metrics under ``csv/version_0``, Hydra's config above, the optimizer written inline below the model."""
    for number, lr in enumerate(("0.1", "0.2")):
        run = tmp_path / str(number)
        run_folder(run / "csv/version_0", {}, {"val/acc": 0.75}).joinpath("config.yaml").unlink()
        (run / ".hydra").mkdir()
        (run / ".hydra/config.yaml").write_text(
            f"model: {{optimizer: {{_target_: torch.optim.AdamW, lr: {lr}, weight_decay: 0.5}}}}\nseed: null\n"
        )
    cells, metric, _ = read_cells(tmp_path)
    assert metric == "val/acc"
    assert [(c.optimizer, c.style, c.lr, c.amount, c.seed, c.error) for c in cells] == [
        ("AdamW", "", 0.1, 0.5, 0, 25.0),
        ("AdamW", "", 0.2, 0.5, 0, 25.0),
    ]
    assert grids(cells)[0].title == "AdamW"


def test_an_app_with_only_hydras_own_config(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "0", {}, {"test/acc": 0.5})
    (run / "config.yaml").unlink()
    (run / ".hydra").mkdir()
    (run / ".hydra/config.yaml").write_text(
        "optimizer: {name: adamw, lr: 0.1, weight_decay: '${.decay.typical.adam}',"
        " decay: {style: decoupled, typical: {adam: 0.5}}}"
    )
    ((cell,), _, _) = read_cells(tmp_path)
    assert (cell.amount, cell.error, cell.seed) == (0.5, 50.0, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metric", "test/ac"], ["no run with a value of test/ac", "72 runs", "nearest: 'test/acc'", "fix:"]),
        (["--metric", "other"], ["no run with a value of other", "with test/acc, train/loss, val/loss"]),
    ],
)
def test_a_wrong_metric_is_named(
    sweep: Path, options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["heatmap", str(sweep), *options]) == 2
    printed = capsys.readouterr().err
    assert [word for word in words if word not in printed] == []


def test_a_folder_without_runs_and_two_runs_of_one_cell_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no run with a value of test/acc or test/loss or val/acc or val/loss"):
        read_cells(tmp_path)
    optimizer = {"name": "sgdw", "lr": 0.1, "weight_decay": 0.01, "decay": {"style": "decoupled"}}
    for name in ("a", "b"):
        run_folder(tmp_path / name, optimizer, {"test/acc": 0.5})
    with pytest.raises(
        ConfigError, match=r"b and .*a are the same cell\.\n  found: sgdw decoupled lr=0.1 weight_decay=0.01"
    ):
        read_cells(tmp_path)
