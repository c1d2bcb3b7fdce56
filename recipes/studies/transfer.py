"""A tuned pair of learning rate and lambda after a change of batch and steps: as it is, or carried over.

Three seeds tune the pair on a grid at the reference, and find the best cell of a grid after each change. Six others
compare with that cell: the tuned pair as it is, by ``optimizer.reference``, by half of its rule alone, and with the
decay's timescale kept in epochs. The training data is little, so that decay acts.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean

from studies.finished_runs import SMOKE, Run, lowest_mean, mean_and_half_width, read_csv, read_runs, write_csv

import lightning_wd as wd
from lightning_wd.runs.figure import COLORS, TITLES, below, in_style, panels, save
from lightning_wd.runs.sweep import octaves

# of the reference; the data in images or characters
STEPS, BATCHES, DATA = 400, {"fashion": 25, "gpt": 8}, {"fashion": 500, "gpt": 10000}
# label, factors of batch, steps and data
CHANGES = {
    "batch": ("4 x batch, 1/4 of the steps", 4, 0.25, 1),
    "steps": ("4 x steps, same data", 1, 4, 1),
    "both": ("4 x batch, same steps", 4, 1, 1),
    "data": ("4 x steps, 4 x data", 1, 4, 4),
}
MEASURES = {  # the loss in nats: it shows overfitting sooner than the error does
    "fashion": ("small Fashion-MNIST: test loss", "nats per image"),
    "gpt": ("character GPT: validation loss", "nats per character"),
}
FAMILIES = {"adamw": "adam", "sgdw": "sgd"}
# exponents of 2 of lr and of lambda (decoupled): first, last, step
GRIDS = {
    ("fashion", "adamw"): {
        "reference": ([-5, -2], [-6, 0, 2]),
        "batch": ([-6, -1], [-4, 2, 2]),
        "steps": ([-5, -1], [-6, 0, 2]),
        "both": ([-4, 0], [-6, 2, 2]),
        "data": ([-7, -2], [-6, 0, 2]),
    },
    ("gpt", "adamw"): {
        "reference": ([-10, -7], [-3, 3, 2]),
        "batch": ([-11, -6], [-5, 5, 2]),
        "steps": ([-10, -7], [-3, 3, 2]),
        "both": ([-9, -6], [-3, 3, 2]),
        "data": ([-10, -6], [-5, 1, 2]),
    },
    ("fashion", "sgdw"): {
        "reference": ([-5, 0], [-8, -2, 2]),
        "batch": ([-4, 1], [-8, -2, 2]),
        "steps": ([-3, 0], [-8, 0, 2]),
        "both": ([-4, 1], [-6, 2, 2]),
    },
    ("gpt", "sgdw"): {
        "reference": ([-7, -2], [-11, -1, 2]),
        "batch": ([-5, -1], [-11, -1, 2]),
        "steps": ([-8, -2], [-7, -1, 2]),
        "both": ([-6, -3], [-7, -1, 2]),
    },
}
VARIANTS = {
    "as_tuned": "as tuned",
    "carried": "carried over",
    "lr_only": "lr only",
    "decay_only": "decay only",
    "epochs": "timescale kept in epochs",
}
CHOOSE, COMPARE = (0, 1, 2), (3, 4, 5, 6, 7, 8)  # seeds


def sweeps(data: Path, out: Path, smoke: bool) -> dict[str, list[str] | Callable[[Path], list[str]]]:
    """Return the overrides of each sweep by its name; those that compare need the grids before them."""
    tasks = {
        "fashion": [
            *("experiment=fashion_small", f"data.root={data}/fashion_mnist"),
            *("trainer.max_epochs=-1", "trainer.check_val_every_n_epoch=1000"),
        ],
        "gpt": [
            *("data=shakespeare", f"data.root={data}/tinyshakespeare", "data.block_size=32", "trainer.max_epochs=-1"),
            *("model=gpt", "model.preset=tiny", "model.block_size=32"),
            *("trainer.limit_val_batches=0", "+trainer.limit_test_batches=0.25", "trainer.log_every_n_steps=50"),
        ],
    }
    made: dict[str, list[str] | Callable[[Path], list[str]]] = {}
    for (task, name), grids in GRIDS.items():
        if smoke and (task, name) != ("fashion", "adamw"):  # the others differ in names only
            continue
        run = [
            *("hparams_search=resumable", *(SMOKE if smoke else tasks[task]), f"optimizer={name}", "callbacks=none"),
            *("optimizer/decay=decoupled", "lr_scheduler.warmup_steps=0.05", "trainer.enable_progress_bar=false"),
            "hydra.sweep.subdir=lr${optimizer.lr}_wd${optimizer.weight_decay}_seed${seed}",
        ]
        choose, compare = (f"seed={','.join(map(str, seeds[: 1 if smoke else None]))}" for seeds in (CHOOSE, COMPARE))
        before = {"global_batch": BATCHES[task], "steps": 8 if smoke else STEPS}
        for change, grid in grids.items():
            _, rows, times, more = CHANGES.get(change, ("", 1, 1, 1))
            batch, steps = before["global_batch"] * rows, int(before["steps"] * times)
            here = [*run, f"data.batch_size={batch}", f"trainer.max_steps={steps}"]
            if not smoke:
                here.append(f"data.train_size={DATA[task] * more}")
            pairs = [
                f"optimizer.{key}={octaves(exponents[:1] * 2 if smoke else exponents)}"
                for key, exponents in zip(("lr", "weight_decay"), grid, strict=True)
            ]
            made[f"{task}/{name}/{change}/grid"] = [*here, *pairs, choose]
            if change == "reference":
                continue
            here.append(compare)
            made[f"{task}/{name}/{change}/best"] = partial(
                at_the_best_cell, here, f"{task}/{name}/{change}/grid", (1.0, 1.0)
            )
            for variant, (factors, own) in variants(name, before, batch, steps, more).items():
                chosen = partial(at_the_best_cell, [*here, *own], f"{task}/{name}/reference/grid", factors)
                made[f"{task}/{name}/{change}/{variant}"] = chosen
    return made


def variants(
    optimizer: str, before: dict[str, int], batch: int, steps: int, more: float
) -> dict[str, tuple[tuple[float, float], list[str]]]:
    """Return the factors of lr and lambda and the overrides of each variant, without those that another one equals."""
    reference = [f"optimizer.reference.{key}={value}" for key, value in before.items()]
    reference.append("+callbacks.plan_summary._target_=lightning_wd.DecayPlanSummary")  # writes down what came out
    carried, decayed = (
        wd.carry_over(1.0, 1.0, reference=before | own, global_batch=batch, steps=steps, family=FAMILIES[optimizer])
        for own in ({}, {"lr_rule": "none"})
    )
    as_it_is, lr_only = (1.0, 1.0), (carried.lr, 1.0)
    epoch = before["global_batch"] / batch * more  # in steps, times that there
    by_epochs = (carried.lr, 1 / (carried.lr * epoch))
    made: dict[tuple[float, float], tuple[str, tuple[float, float], list[str]]] = {}
    for variant, pair, factors, own in (
        ("as_tuned", as_it_is, as_it_is, []),
        ("carried", carried, as_it_is, reference),
        ("lr_only", lr_only, lr_only, []),
        ("decay_only", decayed, as_it_is, [*reference, "optimizer.reference.lr_rule=none"]),
        ("epochs", by_epochs, by_epochs, []),
    ):
        made.setdefault(pair, (variant, factors, own))
    return {variant: (factors, own) for variant, factors, own in made.values()}


def at_the_best_cell(overrides: list[str], grid: str, factors: tuple[float, float], runs: Path) -> list[str]:
    """Add the pair that is best in a grid by the mean over its seeds, times the factors of lr and of lambda."""
    lr, lam = lowest_mean((pair_of(run), score(run)) for run in read_runs(runs / grid))
    return [*overrides, f"optimizer.lr={lr * factors[0]!r}", f"optimizer.weight_decay={lam * factors[1]!r}"]


def score(run: Run) -> float:
    """Return the loss of a run, inf where it was not finite."""
    loss = run.last["test/loss"]
    return loss if math.isfinite(loss) else math.inf


def report(runs: Path, out: Path) -> None:
    """Write each run, and each variant's mean, less that of the best cell (``regret``), and of the tuned pair as is."""
    rows, table = [], []
    for (task, optimizer), grids in GRIDS.items():
        for change in grids:
            values: dict[str, dict[int, float]] = {}
            pairs: dict[str, tuple[float, float]] = {}
            for variant in ("grid", "best", *VARIANTS):
                for run in read_runs(runs / task / optimizer / change / variant):
                    seed, pair, value = run.config["seed"], pair_of(run), score(run)
                    rows.append((task, optimizer, change, variant, *pair, seed, value))
                    values.setdefault(variant, {})[seed], pairs[variant] = value, pair
            for variant, found in values.items():
                if variant != "grid":
                    numbers = [fmean(found.values())]
                    for other in ("best", "as_tuned"):
                        numbers += mean_and_half_width([value - values[other][seed] for seed, value in found.items()])
                    table.append((task, optimizer, change, variant, *pairs[variant], *numbers))
    head = "task optimizer change variant lr weight_decay".split()
    write_csv(out / "runs.csv", [*head, "seed", "value"], rows)
    less = "regret regret_half_width over_as_tuned over_as_tuned_half_width".split()
    write_csv(out / "table.csv", [*head, "value", *less], table)


def pair_of(run: Run) -> tuple[float, float]:
    """Return the learning rate and lambda that a run trained with, carried over or not."""
    plan = run.folder / "decay_plan.json"
    found = (
        json.loads(plan.read_text(encoding="utf-8"))["carried_over"]["here"]
        if plan.exists()
        else run.config["optimizer"]
    )
    return found["lr"], found["weight_decay"]


@in_style()
def draw(out: Path) -> None:
    """Draw the regret of each variant, a row for each optimizer and change; shaded where carrying over is worse."""
    values: dict[tuple[str, ...], dict[float, float]] = defaultdict(dict)
    for row in read_csv(out / "runs.csv"):
        values[row["task"], row["optimizer"], row["change"], row["variant"]][row["seed"]] = row["value"]
    places = [(name, change) for name in FAMILIES for change in GRIDS["gpt", name] if change in CHANGES]
    title = "Regret of a tuned pair after a change of batch and steps (0: the best cell of the grid)"
    figure, grid = panels(2, title, height=3.8, share_y=True)
    for axes, (task, (label, unit)) in zip(grid, MEASURES.items(), strict=True):
        for height, (name, change) in enumerate(places):
            found = {variant: values[task, name, change, variant] for variant in ("best", *VARIANTS)}
            best = found.pop("best")
            if best and all(found["carried"][seed] > value for seed, value in found["as_tuned"].items()):
                axes.axhspan(height - 0.45, height + 0.45, color="0.92")
            for number, (variant, each) in enumerate(found.items()):
                if not each:
                    continue
                regrets = [value - best[seed] for seed, value in each.items()]
                look = {"color": COLORS[number], "linestyle": ""}
                heights = [height + 0.16 * (number - 2)] * len(regrets)
                axes.plot(regrets, heights, "x", alpha=0.7, **look)
                axes.plot(fmean(regrets), heights[0], "o", label=VARIANTS[variant], **look)
                if math.inf in regrets:
                    axes.plot(1, heights[0], ">", transform=axes.get_yaxis_transform(), clip_on=False, **look)
        axes.axvline(0, color="0.4", linestyle=":")
        axes.set(title=label, xlabel=f"regret ({unit})")
    grid[0].set_yticks(range(len(places)), [f"{TITLES[name]}, {CHANGES[change][0]}" for name, change in places])
    grid[0].invert_yaxis()
    text = (
        "Dots: means over the seeds (crosses); arrow: the loss was not finite. Shaded: carrying over is worse "
        "than the tuned pair with each seed. A variant that equals another is drawn once."
    )
    handles, labels = grid[0].get_legend_handles_labels()
    below(figure, text, list(dict(zip(labels, handles, strict=True)).values()))  # one for each variant
    save(figure, out / "transfer.png")
