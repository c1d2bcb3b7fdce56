"""Pictures of runs: the curves of one, several runs over each other, and what the decay monitor measured."""

from __future__ import annotations

import csv
import json
import math
import os
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_wd.errors import ConfigError, nearest
from lightning_wd.runs.figure import COLORS, LINES, below, curve, in_style, key, panels, save
from lightning_wd.runs.secrets import names_secret
from lightning_wd.styles import step_fraction

__all__ = ["curves", "draw_monitor", "overlay", "read_metrics"]


def _finish(axes: Any, title: str, unit: str, *, log: bool) -> None:
    """Label a panel, and scale it by logarithms where asked: over less than a decade their ticks are hard to read."""
    from matplotlib.ticker import MaxNLocator

    heights = [height for line in axes.get_lines() for height in line.get_ydata()]
    if log and heights and max(heights) > 10 * min(heights) > 0:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    axes.set(title=title, xlabel="optimizer step", ylabel=unit)


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return each metric of a ``metrics.csv`` as (step, value) pairs, in the order of the file.

    An incomplete last line is left out: the run was killed, or is writing it now.
    """
    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(line for line in file if line.endswith("\n")):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    series[name].append((int(row["step"]), float(value)))
    return dict(series)


@in_style()
def curves(folder: Path, title: str) -> Path | None:
    """Draw a run's ``metrics.csv`` as ``curves.png``: loss, accuracy, and each group's rate, coefficient and ``d_t``.

    ``d_t`` is known where the folder has the ``decay_plan.json`` of one optimizer, and not for style ``l2``. Return the
    picture's path, or None where the folder has no metrics.
    """
    metrics = folder / "metrics.csv"
    series = read_metrics(metrics) if metrics.is_file() else {}
    measured = {name: points for name, points in series.items() if not name.startswith("test/")}
    rates = _of_groups(series, "")
    coefficients = _of_groups(series, "-weight_decay")
    plan = folder / "decay_plan.json"
    groups = json.loads(plan.read_text(encoding="utf-8")).get("groups", []) if plan.is_file() else []
    drawn = {
        "loss": ("nats", {n: points for n, points in measured.items() if n.endswith("/loss")}),
        "accuracy": ("", {n: points for n, points in measured.items() if n.endswith("/acc")}),
        "learning rate": ("lr_t", rates),
        "weight decay": ("coefficient lam", coefficients),
        "effective decay": ("d_t, part removed per step", _fractions(groups, rates, coefficients)),
    }
    drawn = {name: panel for name, panel in drawn.items() if panel[1]}
    if not drawn:
        return None
    figure, grid = panels(len(drawn), title, columns=3)
    parts, names = ["train", "val"], list(rates)
    handles: dict[str, Any] = {}
    for axes, (name, (unit, lines)) in zip(grid, drawn.items(), strict=True):
        for metric, points in lines.items():
            if metric in names:
                curve(axes, points, 2 + names.index(metric), LINES[names.index(metric) % len(LINES)], metric)
            else:
                part = metric.rpartition("/")[0]
                curve(axes, points, parts.index(part) if part in parts else len(COLORS) - 1, label=part)
        _finish(axes, name, unit, log=name == "loss")
        handles |= {line.get_label(): line for line in axes.get_lines()}
    ends = {label.rpartition("/")[2]: (lams[0][1], lams[-1][1]) for label, lams in coefficients.items()}
    caption = [
        f"{g['name']}: {g['tensors']} tensors, {g['numel']:,} parameters"
        + ", lam " * (g["name"] in ends)
        + " to ".join(dict.fromkeys(f"{lam:.3g}" for lam in ends.get(g["name"], ())))
        for g in groups
    ]
    below(figure, "; ".join(caption), list(handles.values()))
    return save(figure, folder / "curves.png")


def _of_groups(series: dict[str, Any], ending: str) -> dict[str, list[tuple[int, float]]]:
    """Return what LearningRateMonitor logged as ``lr-<optimizer>/<group><ending>``, without both."""
    names = {name: name.removeprefix("lr-") for name in series if name.startswith("lr-")}
    other = "-weight_decay", "-momentum"
    return {
        group.removesuffix(ending): series[name]
        for name, group in names.items()
        if (group.endswith(ending) if ending else not group.endswith(other))
    }


def _fractions(groups: Any, rates: Any, coefficients: Any) -> dict[str, list[tuple[int, float]]]:
    """Return ``d_t`` of each group over the steps, from its style and peak rate in ``decay_plan.json``."""
    known = {group["name"]: group for group in groups if group["style"] not in (None, "l2")}
    found = {}
    for label, lams in coefficients.items():
        if group := known.get(label.rpartition("/")[2]):
            rate, peak = dict(rates[label]), group["lr"]
            found[label] = [
                (step, step_fraction(group["style"], weight_decay=lam, lr=rate[step], base_lr=peak))
                for step, lam in lams
            ]
    return found


@in_style()
def overlay(folders: Sequence[str | Path], out: str | Path, metrics: Sequence[str] | None = None) -> Path:
    """Draw the metrics of runs over each other, and return the picture's path.

    Args:
        folders: runs' folders, or folders that hold runs.
        out: the picture's path, ending in .png, .svg or .pdf.
        metrics: columns of ``metrics.csv``; None for every loss and accuracy except the test's.

    Raises:
        ConfigError: no folder holds a run, no run has a metric, or ``out`` does not end in .png, .svg or .pdf.
    """
    endings = (".png", ".svg", ".pdf")
    if Path(out).suffix not in endings:
        fix = f"write --out {Path(out).stem}.png"
        raise ConfigError(f"{out} is not the name of a picture.", valid=endings, fix=fix)
    paths = sorted({path for folder in folders for path in Path(folder).glob("**/metrics.csv")})
    runs = {path.parent: read_metrics(path) for path in paths}
    names = sorted({name for series in runs.values() for name in series})
    if not names:
        raise ConfigError(
            f"there is no run in {', '.join(map(str, folders))}.",
            found="no metrics.csv with a row",
            fix="give folders of runs that have logger=csv",
        )
    wanted = metrics or [n for n in names if n.endswith(("/loss", "/acc")) and not n.startswith("test/")]
    for name in wanted:
        if name not in names:
            close = nearest(name, names)
            fix = f"write --metric {close or names[0]}"
            raise ConfigError(f"no run has the metric {name!r}.", valid=names, nearest=close, fix=fix)
    labels = _labels(list(runs))
    several = f"Metrics of {len(runs)} run{'s' * (len(runs) > 1)}"
    figure, grid = panels(len(wanted), several if len(wanted) > 1 else wanted[0], height=3)
    for axes, metric in zip(grid, wanted, strict=True):
        for number, (run, series) in enumerate(runs.items()):
            if metric in series:
                line = LINES[number // len(COLORS) % len(LINES)]
                curve(axes, series[metric], number, line, labels[run])
        _finish(axes, metric if len(wanted) > 1 else "", "", log=metric.endswith("loss"))
    handles = {line.get_label(): line for axes in grid for line in axes.get_lines()}
    below(figure, "", list(handles.values()), columns=1)
    return save(figure, Path(out))


def _labels(runs: Sequence[Path]) -> dict[Path, str]:
    """Name each run by its path from the folder of all, and by the overrides of Hydra that not all runs have."""
    from omegaconf import OmegaConf

    common = os.path.commonpath([run.resolve().parent for run in runs])
    labels: dict[Path, str] = {}
    given: dict[Path, list[str]] = {}
    for run in runs:
        labels[run] = run.resolve().relative_to(common).as_posix()
        places = [place / ".hydra/overrides.yaml" for place in (run.resolve(), *run.resolve().parents)]
        path = next((each for each in places if each.is_file() and each.is_relative_to(common)), None)
        given[run] = [] if path is None else list(map(str, OmegaConf.load(path)))
    shared = set.intersection(*map(set, given.values()))
    for run, overrides in given.items():
        if own := [each for each in overrides if each not in shared and not names_secret(each.partition("=")[0])]:
            labels[run] = textwrap.fill(f"{labels[run]}: {' '.join(own)}", 110)
    return labels


# panel -> (unit, quantity -> line): measured quantities are solid, predicted ones dashed
_PANELS = {
    "size of the weights": ("RMS", {"weight_rms": "-", "weight_rms_predicted": "--"}),
    "distance to the anchor": ("||w - w*||", {"anchor_distance": "-"}),
    "effective decay": ("d_t, part removed per step", {"d_t": "-"}),
    "timescale": ("1 / d_t, in epochs", {"timescale_epochs": "-"}),
    "angular update": ("radians per step", {"angular_update": "-", "angular_update_predicted": "--"}),
    "gradient over weight": ("||g|| / ||w||", {"grad_weight_ratio": "-", "grad_weight_ratio_predicted": "--"}),
    "decay by Adam's L2": (
        "d_i of the coordinates",
        {"lost_decay_p5": ":", "lost_decay_p50": "-", "lost_decay_p95": ":"},
    ),
}
_LINES = {"--": "predicted", ":": "5th and 95th percentile"}
_PREDICTED = {  # what theory says, where a quantity has a prediction
    "weight_rms_predicted": "Predicted: where AdamW's weights, and the angle of a step, settle under gradients of pure "
    "noise at the learning rate of the moment; a schedule may move on before they do.",
    "grad_weight_ratio_predicted": "Predicted: where the gradients of SGD settle on layers before a norm.",
}
_HYPERBALL = "Predicted: hyperball turns a tensor by arctan of the learning rate, if the update is orthogonal to it."


@in_style()
def draw_monitor(history: Sequence[dict[str, float]], path: Path, title: str) -> Path | None:
    """Draw each quantity of each group against the step; return the path, or None if there is nothing to draw.

    A quantity that is 0 throughout in all groups has no panel. Where groups coincide, their colours alternate.
    ``history`` has a mapping for each measured step, with the keys ``step`` and ``wd/<group>/<quantity>``.
    """
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in history:
        for metric, value in row.items():
            if metric.startswith("wd/") and math.isfinite(value):
                series[metric].append((row["step"], value))
    groups = sorted({metric.removeprefix("wd/").rpartition("/")[0] for metric in series})
    seen = {metric.rpartition("/")[2] for metric, points in series.items() if any(value for _, value in points)}
    drawn = {name: panel for name, panel in _PANELS.items() if seen.intersection(panel[1])}
    if not drawn:
        return None
    lines = {line for _, quantities in drawn.values() for name, line in quantities.items() if name in seen}
    figure, grid = panels(len(drawn), title, columns=3)
    for axes, (name, (unit, quantities)) in zip(grid, drawn.items(), strict=True):
        for number, group in enumerate(groups):
            for quantity, line in quantities.items():
                if points := series.get(f"wd/{group}/{quantity}"):
                    covers = any(points == series.get(f"wd/{other}/{quantity}") for other in groups[:number])
                    curve(axes, points, number, (0, (6, 6)) if covers else line)
        _finish(axes, name, unit, log=True)
    handles = [key(group, COLORS[number % len(COLORS)]) for number, group in enumerate(groups)]
    handles += [key(meaning, "0.4", line) for line, meaning in _LINES.items() if line in lines]
    texts = [text for name, text in _PREDICTED.items() if name in seen]
    turned, settled = (
        {group for group in groups if f"wd/{group}/{quantity}_predicted" in series}
        for quantity in ("angular_update", "weight_rms")
    )
    texts += [_HYPERBALL] * bool(turned - settled)
    below(figure, " ".join(texts), handles)
    return save(figure, path)
