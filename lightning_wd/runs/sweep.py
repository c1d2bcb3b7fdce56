"""Sweeps that resume: a rerun skips finished cells, and each cell reports progress.

A cell is one job of a Hydra sweep in a folder named after its settings (``hydra.sweep.subdir``), so a rerun finds it.
It is finished when its ``metrics.csv`` holds a complete row of test metrics.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobStatus
from hydra.experimental.callback import Callback
from lightning.fabric.utilities.rank_zero import rank_zero_only

from lightning_wd.errors import ConfigError
from lightning_wd.runs.curves import read_metrics
from lightning_wd.runs.secrets import flat

__all__ = ["SweepProgress", "count_jobs", "finished", "leftovers", "octaves", "skip_finished"]

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
    first, last, step = (*numbers, 1)[:3] if len(numbers) == len(exponents) in (2, 3) else (0, 0, 0)
    if step <= 0 or last < first:
        raise ConfigError(
            f"{list(exponents)} is not a range of exponents.",
            valid="[first, last] or [first, last, step] with first <= last and step > 0, as exponents of 2",
            fix="write hparams_search.lr=[-11,-6]",
        )
    return ",".join(str(2.0 ** (first + i * step)) for i in range(int((last - first) / step + 1e-9) + 1))


def finished(folder: str | Path) -> dict[str, float] | None:
    """Return the last value of each metric of a cell's folder; None if it was never started or did not finish."""
    path = Path(folder) / "metrics.csv"
    if not path.is_file():
        return None
    values = {name: points[-1][1] for name, points in read_metrics(path).items()}
    return values if any(name.startswith("test/") for name in values) else None


def skip_finished(folder: str | Path, config: Any, *, resumes: bool = False) -> dict[str, float] | None:
    """Return the metrics of a finished cell of the same config; otherwise delete the log of an unfinished one.

    Args:
        folder: the cell's folder.
        config: the cell's config as plain containers, as :func:`lightning_wd.runs.folder.save_config` writes it.
        resumes: whether an unfinished cell resumes from its own checkpoint: then its log stays.

    Raises:
        ConfigError: the folder holds a finished cell with another config.
    """
    import yaml

    values = finished(folder)
    if values is None:
        if not resumes:
            (Path(folder) / "metrics.csv").unlink(missing_ok=True)
        return None
    path = Path(folder) / "config.yaml"
    saved = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    before, now = (dict(flat(_of_cell(each))) for each in (saved or {}, config))
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"the finished cell {folder} has another config.",
                found=f"{key} was {before.get(key)!r} there and is {now.get(key)!r} now",
                fix="give this sweep a folder of its own with hydra.sweep.dir=..., or delete the cell to run it again",
            )
    return values


def _of_cell(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config without the grid (a wider one reuses the cells) and without a resume."""
    resumed = config.get("ckpt_path") in ("last", "previous")
    return {**config, "hparams_search": None, "ckpt_path": None if resumed else config.get("ckpt_path")}


def leftovers(folder: str | Path) -> list[Path]:
    """Return the finished cells of a sweep's folder that its last sweep did not go over, such as those of a wider grid.

    Metrics anywhere below a cell that has none at its top are that cell's.

    Args:
        folder: the sweep's folder, where :class:`SweepProgress` has noted the last sweep.
    """
    top = Path(folder)
    _, *cells = map(json.loads, (top / _FILE).read_text(encoding="utf-8").splitlines())
    own = {top / each["cell"] for each in cells}
    own_below = {cell for cell in own if not (cell / "metrics.csv").is_file()}
    others = (cell for cell in _logged_below(top) if cell not in own and own_below.isdisjoint(cell.parents))
    return [cell for cell in others if _says_finished(cell)]


def _logged_below(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob("**/metrics.csv"))]


def _says_finished(cell: Path) -> bool | None:
    """Whether a cell's log says that it is finished; None without a log, be it that another program wrote the file."""
    try:
        return finished(cell) is not None if (cell / "metrics.csv").is_file() else None
    except (OSError, LookupError, TypeError, ValueError, csv.Error):
        return None


def count_jobs(config: Any) -> int | None:
    """Return how many jobs a sweep will launch, by Hydra's config of it, or None if its sweeper does not tell."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    sweeper = config.hydra.sweeper
    if sweeper.get("n_trials"):
        return int(sweeper.n_trials)
    if not str(sweeper.get("_target_", "")).endswith("BasicSweeper"):
        return None
    given = [*(f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()), *config.hydra.overrides.task]
    app = GlobalHydra.instance()
    loader = app.config_loader() if app.is_initialized() else None  # which finds the options of a glob
    overrides = OverridesParser.create(loader).parse_overrides(given)
    return math.prod(sum(1 for _ in o.sweep_string_iterator()) for o in overrides if o.is_discrete_sweep())


def _folder(config: Any) -> Path:
    """Return the sweep's folder, also where the job has changed the working directory (``hydra.job.chdir``)."""
    return Path(config.hydra.runtime.cwd, config.hydra.sweep.dir)


class SweepProgress(Callback):
    """Print ``sweep: 7 of 36 cells done, 29 left, about 4 min`` after each cell.

    Each cell adds a line to ``sweep.jsonl`` in the sweep's folder, from the process that it ran in (rank 0 if
    distributed), also where it is not finished. A job that logs its metrics elsewhere has finished where it did not
    fail. Cells that a rerun skips do not count in the estimate of the time left. Finished cells of other sweeps in the
    same folder are named at the end.
    """

    @rank_zero_only
    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Note how many cells there are, and the time."""
        folder = _folder(config)
        folder.mkdir(parents=True, exist_ok=True)
        note = {"cells": count_jobs(config), "started": time.time()}
        (folder / _FILE).write_text(json.dumps(note) + "\n", encoding="utf-8")
        if there := sum(_says_finished(cell) is True for cell in _logged_below(folder)):
            print(f"sweep: {there} cells in {config.hydra.sweep.dir} are already finished", flush=True)

    @rank_zero_only
    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        """Print the line."""
        folder, cell = _folder(config), Path(config.hydra.runtime.output_dir)
        done, written = _says_finished(cell), time.time()
        if done is None:
            done = job_return.status is JobStatus.COMPLETED
        else:
            written = (cell / "metrics.csv").stat().st_mtime
        line = {"cell": os.path.relpath(cell, folder), "written": written, "finished": done}
        with (folder / _FILE).open("a+", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.seek(0)
            note, *cells = map(json.loads, file)
        over = [each for each in cells if each["finished"]]
        count, ran = len(over), sum(each["written"] >= note["started"] for each in over)
        if note["cells"] is None:
            print(f"sweep: {count} cells done", flush=True)
            return
        left = note["cells"] - count
        seconds = left * (time.time() - note["started"]) / max(1, ran)
        rest = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        about = f", about {rest}" if ran and left else ""
        print(f"sweep: {count} of {note['cells']} cells done, {left} left{about}", flush=True)

    @rank_zero_only
    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Name the cells of other sweeps: whoever reads the folder reads them too."""
        folder = _folder(config)
        if others := leftovers(folder):
            names = ", ".join(str(cell.relative_to(folder)) for cell in others[:3])
            more = f", and {len(others) - 3} more" if len(others) > 3 else ""
            print(f"sweep: {config.hydra.sweep.dir} has finished cells of other sweeps, too: {names}{more}", flush=True)
