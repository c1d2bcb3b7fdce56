"""The folder of a run: where it is, its ``config.yaml`` without secrets, and a CSV logger that appends on resume."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.csv_logs import CSVLogger, ExperimentWriter

from lightning_wd._lightning import both
from lightning_wd.runs.secrets import redact

__all__ = ["RunCSVLogger", "run_dir", "save_config"]


def run_dir() -> Path:
    """Return Hydra's output folder of the current job, or the working directory without Hydra."""
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.output_dir) if HydraConfig.initialized() else Path.cwd()


@rank_zero_only
def save_config(config: Any, folder: Path) -> None:
    """Write ``config.yaml``, resolved and redacted, into the run's folder (rank zero only)."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(redact(config), sort_keys=False), encoding="utf-8")


class _AppendingWriter(ExperimentWriter):
    """Continue the ``metrics.csv`` of an interrupted run, where Lightning's writer deletes it."""

    def _check_log_dir_exists(self) -> None:
        files = get_filesystem(self.log_dir)
        if files.isfile(self.metrics_file_path):
            with files.open(self.metrics_file_path, "r", newline="") as file:
                self.metrics_keys = file.readline().strip().split(",")

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        # into a second file first: a crash while rewriting must not lose rows
        whole, self.metrics_file_path = self.metrics_file_path, f"{self.metrics_file_path}.new"
        try:
            files = get_filesystem(self.log_dir)
            files.copy(whole, self.metrics_file_path)
            super()._rewrite_with_new_header(fieldnames)
            files.mv(self.metrics_file_path, whole)
        finally:
            self.metrics_file_path = whole


class RunCSVLogger(CSVLogger):
    """Lightning's CSVLogger, writing ``metrics.csv`` straight into one folder and appending to it on resume.

    Args:
        save_dir: the folder; None for the run's (Hydra's output folder, or the working directory).
        prefix: text before every metric's name.
        flush_logs_every_n_steps: rows kept in memory between writes.
    """

    def __init__(
        self, save_dir: str | Path | None = None, prefix: str = "", flush_logs_every_n_steps: int = 100
    ) -> None:
        folder = run_dir() if save_dir is None else Path(save_dir)
        super().__init__(folder, "", "", prefix, flush_logs_every_n_steps)

    @property
    def experiment(self) -> Any:
        """The writer (on rank zero; elsewhere Lightning's stand-in that ignores every call)."""
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return super().experiment
        if self._experiment is None:
            os.makedirs(self.log_dir, exist_ok=True)
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the rows from ``step`` on: a killed run logged them after the checkpoint that it now resumes from."""
        path = Path(self.log_dir, "metrics.csv")
        if not path.is_file():
            return
        with path.open(newline="", encoding="utf-8") as file:  # the kill may have cut the last line
            reader = csv.DictReader(line for line in file if line.endswith("\n"))
            rows = [row for row in reader if int(row["step"]) < step]
        whole = path.with_name("metrics.csv.new")
        with whole.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, reader.fieldnames or ["step"])
            writer.writeheader()
            writer.writerows(rows)
        whole.replace(path)


for _logger in both("lightning.pytorch.loggers.Logger"):  # LightningCLI of either package takes it as its own
    _logger.register(RunCSVLogger)
