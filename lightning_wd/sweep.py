"""Sweeps that can be killed: finished cells are known by their files, and progress is told.

A cell is one job of a Hydra sweep in a folder that its settings name (``hydra.sweep.subdir``), so a sweep that is
started again finds it. It is finished when its ``metrics.csv`` holds a whole row of the test.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from lightning.fabric.utilities.rank_zero import rank_zero_only

from lightning_wd.errors import ConfigError, explain
from lightning_wd.pictures import read_metrics

__all__ = ["SweepProgress", "count_jobs", "finished", "octaves", "skip_finished"]

_TEST = "test/"
_FILE = "sweep.jsonl"


def octaves(exponents: Sequence[float]) -> str:
    """Return the powers of two from the first exponent to the last, as the choices of a Hydra sweep.

    Args:
        exponents: [first, last] or [first, last, step], base 2; the step is 1 unless given.

    Raises:
        ConfigError: not two or three numbers, or a step that never reaches the last.

    >>> octaves([-3, -1])
    '0.125,0.25,0.5'
    >>> octaves([-4, 0, 2])
    '0.0625,0.25,1.0'
    """
    numbers = [x for x in exponents if isinstance(x, (int, float)) and not isinstance(x, bool)]
    first, last, step = (*numbers, 1)[:3] if len(numbers) in (2, 3) else (0, 0, 0)
    if len(numbers) != len(exponents) or step <= 0 or last < first:
        raise ConfigError(
            explain(
                f"{list(exponents)} is no range of powers of two.",
                valid="[first, last] or [first, last, step] with first <= last and step > 0, as exponents of 2",
                fix="write hparams_search.lr=[-11,-6]",
            )
        )
    return ",".join(str(2.0 ** (first + i * step)) for i in range(int((last - first) / step + 1e-9) + 1))


def finished(folder: str | Path) -> dict[str, float] | None:
    """Return the last value of each metric of a finished cell; None for one that was never begun or was cut short.

    Args:
        folder: the cell's folder.
    """
    path = Path(folder) / "metrics.csv"
    if not path.is_file():
        return None
    values = {name: points[-1][1] for name, points in read_metrics(path).items()}
    return values if any(name.startswith(_TEST) for name in values) else None


def skip_finished(folder: str | Path, config: Any, *, resumes: bool = False) -> dict[str, float] | None:
    """Return what a finished cell of the same config measured, else clear what a broken run of it has logged.

    Args:
        folder: the cell's folder.
        config: the cell's config as plain containers, as :func:`lightning_wd.run.save_config` writes it.
        resumes: whether a broken cell goes on from its own checkpoint: then what it has logged stays.

    Raises:
        ConfigError: the folder holds a finished cell of another config.
    """
    import yaml

    values = finished(folder)
    if values is None:
        if not resumes:
            (Path(folder) / "metrics.csv").unlink(missing_ok=True)
        return None
    path = Path(folder) / "config.yaml"
    saved = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    before, now = _of_cell(saved or {}), _of_cell(config)
    if before != now:
        where, before, now = _first_difference(before, now)
        raise ConfigError(
            explain(
                f"the finished cell {folder} has another config.",
                found=f"{where} was {before!r} there and is {now!r} now",
                fix="give this sweep a folder of its own with hydra.sweep.dir=..., or delete the cell to run it again",
            )
        )
    return values


def _of_cell(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without what is not the cell's: the grid, a wider one takes the cells there are, and a resume."""
    resumed = config.get("ckpt_path") in ("last", "previous")
    return {**config, "hparams_search": None, "ckpt_path": None if resumed else config.get("ckpt_path")}


def _first_difference(before: Any, now: Any, where: str = "") -> tuple[str, Any, Any]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            if before.get(key) != now.get(key):
                return _first_difference(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
    return where or "config", before, now


def count_jobs(config: Any) -> int | None:
    """Return how many jobs a sweep will launch, or None where its sweeper does not say.

    Args:
        config: Hydra's config of a multirun.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    sweeper = config.hydra.sweeper
    if sweeper.get("n_trials"):
        return int(sweeper.n_trials)
    if not str(sweeper.get("_target_", "")).endswith("BasicSweeper"):
        return None
    given = [*(f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()), *config.hydra.overrides.task]
    count = 1
    for override in OverridesParser.create().parse_overrides(given):
        if override.is_discrete_sweep():
            count *= sum(1 for _ in override.sweep_string_iterator())
    return count


class SweepProgress(Callback):
    """Print ``sweep: 7 of 36 cells done, 29 left, about 4 min`` after each cell.

    Each cell that is done adds a line to ``sweep.jsonl`` in the sweep's folder, from whichever process it ran in (one
    that is distributed: from rank 0); cells that were finished already are done at once, and the time that is left is
    told from the others.
    """

    @rank_zero_only
    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Note how many cells there are, and the time."""
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        note = {"cells": count_jobs(config), "started": time.time()}
        (folder / _FILE).write_text(json.dumps(note) + "\n", encoding="utf-8")
        there = sum(finished(path.parent) is not None for path in folder.glob("**/metrics.csv"))
        if there:
            print(f"sweep: {there} cells in {folder} are finished already", flush=True)

    @rank_zero_only
    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        """Print the line."""
        folder, cell = Path(config.hydra.sweep.dir), Path(config.hydra.runtime.output_dir)
        metrics = cell / "metrics.csv"
        with (folder / _FILE).open("a+", encoding="utf-8") as file:
            file.seek(0)
            note = json.loads(file.readline())
            if finished(cell) is not None:
                ran = metrics.stat().st_mtime >= note["started"]
                file.write(json.dumps({"cell": cell.name, "ran": ran}) + "\n")
                file.flush()
            file.seek(0)
            cells = [json.loads(line) for line in file.readlines()[1:]]
        done, ran = len(cells), sum(cell["ran"] for cell in cells)
        if note["cells"] is None:
            print(f"sweep: {done} cells done", flush=True)
            return
        left = note["cells"] - done
        seconds = left * (time.time() - note["started"]) / max(1, ran)
        rest = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        about = f", about {rest}" if ran and left else ""
        print(f"sweep: {done} of {note['cells']} cells done, {left} left{about}", flush=True)
