"""What the studies share: common settings, reading finished runs, intervals and tables."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml

from lightning_wd.runs.curves import read_metrics
from lightning_wd.runs.sweep import finished

# two-sided 95 % quantiles of Student's t for 2, 3, ... degrees of freedom
_T95 = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Run:
    """A finished run: its resolved config, the last value of each metric, and each metric over the steps."""

    config: dict[str, Any]
    last: dict[str, float]
    series: dict[str, list[tuple[int, float]]]
    folder: Path

    @property
    def test_error(self) -> float:
        """Test error in percent."""
        return 100.0 * (1.0 - self.last["test/acc"])


def base(data: Path, smoke: bool) -> list[str]:
    """Return the overrides of a study's run: a small Fashion-MNIST, or for a smoke run two epochs of digits."""
    if smoke:
        return [*SMOKE, "lr_scheduler.warmup_steps=0"]
    return ["experiment=fashion_small", f"data.root={data}/fashion_mnist"]


SMOKE = ["callbacks=none", "trainer.max_epochs=2", "trainer.enable_progress_bar=false", "data.batch_size=256"]


def read_runs(folder: Path) -> list[Run]:
    """Return the finished runs below a folder, in the order of their paths."""
    runs = []
    for path in sorted(folder.glob("**/config.yaml")):
        last = finished(path.parent)
        if last is not None and path.parent.name != ".hydra":
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            runs.append(Run(config, last, read_metrics(path.parent / "metrics.csv"), path.parent))
    return runs


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval (Student's t), nan for fewer than three or for inf.

    >>> mean, half = mean_and_half_width([1.0, 2.0, 3.0])
    >>> mean, round(half, 3)
    (2.0, 2.484)
    """
    n = len(values)
    if n < 3 or math.inf in values:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), _T95[min(n - 3, len(_T95) - 1)] * float(np.std(values, ddof=1)) / math.sqrt(n)


def lowest_mean(cells: Iterable[tuple[tuple[float, float], float]]) -> tuple[float, float]:
    """Return the pair of learning rate and amount whose values, one for each seed, have the lowest mean.

    >>> lowest_mean([((0.1, 0.0), 1.0), ((0.2, 0.0), 0.5), ((0.2, 0.0), 2.5)])
    (0.1, 0.0)
    """
    values: dict[tuple[float, float], list[float]] = defaultdict(list)
    for pair, value in cells:
        values[pair].append(value)
    return min(values, key=lambda pair: fmean(values[pair]))


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table, numbers as floats."""

    def value(text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return text

    with path.open(newline="", encoding="utf-8") as file:
        return [{key: value(text) for key, text in row.items()} for row in csv.DictReader(file)]


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, with floats to six digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows([f"{x:.6g}" if isinstance(x, float) else x for x in row] for row in rows)
