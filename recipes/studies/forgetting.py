"""Fine-tuning on the other half of the classes: what decay towards zero, towards the start, and none forget.

A net is trained on classes 0 to 4, then on 5 to 9 from there. One seed chooses the amount of each decay; three other
seeds, each with a first net of its own, compare them there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean

import hydra
import torch
from studies.finished_runs import Run, base, mean_and_half_width, read_csv, read_runs, write_csv

from lightning_wd.runs.figure import COLORS, STYLE_COLORS, below, in_style, key, panels, save
from lightning_wd.runs.sweep import octaves

OLD, NEW = [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]
DECAYS = [-10, -2, 2]  # exponents of 2: first, last, step
# label, what is fixed, what seed 0 chooses among
VARIANTS = {
    "none": ("no decay", "optimizer.weight_decay=0", "optimizer.lr", [-8, -8]),
    "slower": ("no decay, smaller learning rate", "optimizer.weight_decay=0", "optimizer.lr", [-15, -9, 2]),
    "zero": ("decay towards zero", "optimizer.decay.toward=zero", "optimizer.weight_decay", DECAYS),
    "init": ("decay towards the start", "optimizer.decay.toward=init", "optimizer.weight_decay", DECAYS),
}
_COLORS = (STYLE_COLORS["none"], COLORS[1], STYLE_COLORS["independent"], COLORS[3])
SEEDS = (1, 2, 3)
MEASURES = ("old", "new", "old_of_ten", "new_of_ten")


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str] | Callable[[Path], list[str]]]:
    """Return the overrides of each sweep by its name; those of fine-tuning need the runs before them."""
    seeds = ",".join(map(str, SEEDS[:1] if smoke else SEEDS))
    own = ["hparams_search=resumable", *base(data, smoke), "optimizer/decay=independent"]
    tune = [*own, f"data.classes={NEW}", "hydra.sweep.subdir=lr${optimizer.lr}_wd${optimizer.weight_decay}_seed${seed}"]
    if not smoke:
        tune.append("trainer.max_epochs=20")
    made: dict[str, list[str] | Callable[[Path], list[str]]] = {
        "first": [*own, f"data.classes={OLD}", "hydra.sweep.subdir=seed${seed}", f"seed=0,{seeds}"]
    }
    for name, (_, fixed, chosen, exponents) in VARIANTS.items():
        values = octaves(exponents[:1] * 2 if smoke else exponents)
        made[f"{name}/amounts"] = partial(_from_first, [*tune, fixed, f"{chosen}={values}", "seed=0"])
        made[f"{name}/seeds"] = partial(_at_the_best_amount, [*tune, fixed, f"seed={seeds}"], name, chosen)
    return made


def _from_first(overrides: list[str], runs: Path) -> list[str]:
    return [*overrides, f"init_from='{runs}/first/seed${{seed}}/checkpoints/last.ckpt'"]


def _at_the_best_amount(overrides: list[str], name: str, chosen: str, runs: Path) -> list[str]:
    """Add the amount whose mean accuracy on old and new classes is highest in validation."""
    best = max(read_runs(runs / name / "amounts"), key=lambda run: fmean(accuracies(run, "val")[:2]))
    return _from_first([*overrides, f"{chosen}={best.config['optimizer'][chosen.removeprefix('optimizer.')]!r}"], runs)


def accuracies(run: Run, part: str) -> list[float]:
    """Return the :data:`MEASURES` of a run's last weights on ``val`` or ``test``, in percent.

    The first two are among the five classes of an image's half, the last two among all ten.
    """
    data = hydra.utils.instantiate({**run.config["data"], "classes": None})
    model = hydra.utils.instantiate(run.config["model"])
    model.load_state_dict(torch.load(run.folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    data.setup("test" if part == "test" else "fit")
    images, labels = data.on_after_batch_transfer(getattr(data, part).tensors, 0)
    with torch.inference_mode():
        logits = model.eval()(images)
    found = []
    for among in (None, torch.arange(10)):
        for half in (OLD, NEW):
            rows, columns = torch.isin(labels, torch.tensor(half)), torch.tensor(half) if among is None else among
            right = columns[logits[rows][:, columns].argmax(1)] == labels[rows]
            found.append(100.0 * float(right.float().mean()))
    return found


def report(runs: Path, out: Path) -> None:
    """Write the accuracies of each run, in validation for seed 0 and in the test for the others, and their means.

    ``lost`` is the old classes' accuracy before fine-tuning minus that after it, of the same seed; ``kept`` is how much
    more of it is left than with no decay, of the same seed.
    """
    rows, table = [], []
    tested: dict[str, dict[int, list[float]]] = {}
    for name in ("first", *VARIANTS):
        tested[name] = {}
        for run in read_runs(runs / name):
            optimizer, seed = run.config["optimizer"], run.config["seed"]
            part = "test" if seed else "val"
            lr, amount = float(optimizer["lr"]), float(optimizer["weight_decay"])
            rows.append((name, part, lr, amount, seed, *(found := accuracies(run, part))))
            if seed:
                tested[name][seed], chosen = found, (lr, amount)
        if name in VARIANTS:
            columns = [list(column) for column in zip(*tested[name].values(), strict=True)]
            for before, sign in (("first", -1), ("none", 1)):
                columns.append([sign * (found[0] - tested[before][seed][0]) for seed, found in tested[name].items()])
            table.append((name, *chosen, *(number for column in columns for number in mean_and_half_width(column))))
    write_csv(out / "runs.csv", ["variant", "split", "lr", "weight_decay", "seed", *MEASURES], rows)
    head = [f"{measure}{end}" for measure in (*MEASURES, "lost", "kept") for end in ("", "_half_width")]
    write_csv(out / "table.csv", ["variant", "lr", "weight_decay", *head], table)


@in_style()
def draw(out: Path) -> None:
    """Draw the accuracy on the new classes over that on the old ones, judged among five classes and among ten."""
    rows = read_csv(out / "runs.csv")
    title = "After fine-tuning on classes 5 to 9 of Fashion-MNIST: what is left of 0 to 4, and what is learned"
    figure, grid = panels(2, title, height=3.4)
    for axes, end, view in zip(
        grid, ("", "_of_ten"), ("judged among the five of its half", "judged among all ten"), strict=True
    ):
        for color, name in zip(_COLORS, VARIANTS, strict=True):
            for part, look in (("val", {"marker": ".", "linestyle": "-"}), ("test", {"marker": "x", "linestyle": ""})):
                found = [row for row in rows if (row["variant"], row["split"]) == (name, part)]
                found.sort(key=lambda row: (row["lr"], row["weight_decay"]))
                points = [(row[f"old{end}"], row[f"new{end}"]) for row in found]
                axes.plot(*zip(*points, strict=True), color=color, **look)
        before = [row[f"old{end}"] for row in rows if (row["variant"], row["split"]) == ("first", "test")]
        axes.axvline(fmean(before), color="0.4", linestyle=":")
        axes.set(title=view, xlabel="accuracy on the old classes (%)")
    grid[0].set_ylabel("accuracy on the new classes (%)")
    text = (
        "Lines: seed 0 over the amounts, in validation; crosses: three other seeds at the chosen amount, in the test. "
        "Dotted: the old classes before fine-tuning."
    )
    below(figure, text, [key(label, color) for color, (label, *_) in zip(_COLORS, VARIANTS.values(), strict=True)], 2)
    save(figure, out / "forgetting.png")
