"""A run's folder: metrics.csv continued on resume."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from lightning_wd.runs.folder import RunCSVLogger, run_dir


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_is_a_logger_of_pytorch_lightning_too(tmp_path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning")
    from pytorch_lightning.demos.boring_classes import BoringModel
    from pytorch_lightning.loggers import Logger

    class Logs(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("step", float(batch_idx))
            return super().training_step(batch, batch_idx)

    assert issubclass(RunCSVLogger, Logger)
    quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        max_steps=2, logger=RunCSVLogger(tmp_path), accelerator="cpu", log_every_n_steps=1, limit_val_batches=0, **quiet
    )
    trainer.fit(Logs())
    assert [row["step"] for row in rows(tmp_path / "metrics.csv")] == ["0", "1"]


def test_a_second_logger_in_the_same_folder_appends(tmp_path: Path) -> None:
    first = RunCSVLogger(tmp_path)
    first.log_metrics({"loss": 1.0}, step=1)
    first.save()
    second = RunCSVLogger(tmp_path)
    second.log_metrics({"loss": 0.5}, step=2)
    second.save()
    second.log_metrics({"acc": 0.25}, step=3)  # a new column: the file is written anew
    second.save()
    assert rows(tmp_path / "metrics.csv") == [
        {"acc": "", "loss": "1.0", "step": "1"},
        {"acc": "", "loss": "0.5", "step": "2"},
        {"acc": "0.25", "loss": "", "step": "3"},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv"]


def test_a_resumed_run_logs_no_step_twice(tmp_path: Path) -> None:
    """Killed after step 7 was logged and while step 8 was, resumed from the checkpoint of 6 steps (0 to 5)."""
    killed = RunCSVLogger(tmp_path)
    for step in (3, 5, 7):
        killed.log_metrics({"loss": float(step)}, step=step)
    killed.save()
    with (tmp_path / "metrics.csv").open("a", newline="") as file:
        file.write("8.")
    resumed = RunCSVLogger(tmp_path)
    resumed.rewind(6)
    resumed.log_metrics({"loss": 0.5}, step=7)
    resumed.save()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("3", "3.0"),
        ("5", "5.0"),
        ("7", "0.5"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv"]


def test_a_crash_while_rewriting_keeps_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = RunCSVLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.save()

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(csv.DictWriter, "writerows", full_disk)
    logger.log_metrics({"acc": 0.25}, step=2)
    with pytest.raises(OSError, match="No space left"):
        logger.save()
    assert rows(tmp_path / "metrics.csv") == [{"loss": "1.0", "step": "1"}]


def test_the_folder_is_the_working_directory_without_hydra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_dir() == tmp_path
    assert Path(RunCSVLogger().log_dir).resolve() == tmp_path
