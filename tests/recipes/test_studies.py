"""What the studies compute from runs: the cells to compare, intervals, effective decay, the units of a budget."""

from __future__ import annotations

import json
import math
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from data.digits import Digits
from data.fashion_small import FashionSmall
from helpers.real_data import REAL, needs_real_data
from helpers.recipe import ROOT
from models.conv_net import ConvNet
from models.gpt import GPT
from models.mlp import MLP
from studies import (
    best_rates,
    budgets,
    finished_runs,
    forgetting,
    heatmaps,
    hyperball,
    lost_decay,
    muon_against_adamw,
    schedules,
    styles,
    transfer,
    width,
)
from studies.run import STUDIES, refused

import lightning_wd as wd
from lightning_wd.runs.heatmap import Cell, grids
from lightning_wd.runs.sweep import octaves

FASHION = REAL / "fashion_mnist"


@needs_real_data
def test_the_cells_of_a_sweep_share_images_that_stay_on_the_device() -> None:
    """On a GPU if there is one, where a batch must not be pinned."""
    sets = []
    for _ in range(2):
        trainer = L.Trainer(
            devices=1,
            max_steps=2,
            limit_val_batches=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = FashionSmall(str(FASHION))
        trainer.fit(ConvNet(optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2}), data)
        assert data.train.device.type == trainer.strategy.root_device.type
        assert (len(data.train), len(data.val)) == (1000, 5000)
        sets.append(data.read(FASHION, train=True)[0])
    assert sets[0].data_ptr() == sets[1].data_ptr()


def test_cells_of_another_grid_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for cell in ("lr1", "lr2", "lr3/seed0"):
        (tmp_path / "grid" / cell).mkdir(parents=True)
        (tmp_path / "grid" / cell / "metrics.csv").write_text("epoch,step,test/acc\n1,10,0.5\n")
    notes = [{"cells": 2, "started": 0}, {"cell": "lr1", "written": 1}, {"cell": "lr2", "written": 2}]
    (tmp_path / "grid/sweep.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    assert refused(tmp_path)
    assert capsys.readouterr().err == (
        f"{tmp_path}/grid has finished cells that its last sweep did not go over: lr3/seed0\n"
        "fix: delete them, or choose another folder with --work\n"
    )
    shutil.rmtree(tmp_path / "grid/lr3")
    assert not refused(tmp_path)


def test_schedules_compare_cells_that_were_chosen_under_them(tmp_path: Path) -> None:
    """By the mean over seeds: cosine and drop-step in the heatmap, the fixed schedule in a grid of its own."""
    heatmap = ["optimizer,style,unit,lr,amount,seed,error,metric"]
    for optimizer, best in {"adamw": 0.1, "adam_l2": 0.2, "sgdw": 0.4}.items():
        for lr, seed, error in ((best, 0, 13.0), (best, 1, 15.0), (0.8, 0, 12.0), (0.8, 1, 17.0)):
            heatmap.append(f"{optimizer},x,weight_decay,{lr},{lr / 8},{seed},{error},test/acc")
            folder = tmp_path / "runs/grid" / f"{optimizer}_lr{lr}_seed{seed}"
            folder.mkdir(parents=True)
            fixed = {"name": optimizer, "lr": lr / 16, "weight_decay": lr / 32}
            (folder / "config.yaml").write_text(yaml.safe_dump({"optimizer": fixed, "seed": seed}))
            (folder / "metrics.csv").write_text(f"epoch,step,test/acc\n1,10,{1 - error / 100}\n")
    (tmp_path / "heatmaps").mkdir()
    (tmp_path / "heatmaps/heatmap.csv").write_text("\n".join(heatmap) + "\n")
    made = schedules.sweeps(tmp_path, tmp_path / "schedules", False)
    for optimizer, lr in {"adamw": 0.1, "adam_l2": 0.2}.items():
        grid, fixed_best = made[f"grid/{optimizer}"], made[f"fixed/{optimizer}"]
        assert isinstance(grid, list)
        assert "lr_scheduler=constant" in grid
        assert callable(fixed_best)
        assert fixed_best(tmp_path / "runs")[-3:] == [
            "lr_scheduler=constant",
            f"optimizer.lr={lr / 16}",
            f"optimizer.weight_decay={lr / 32}",
        ]
        for schedule in ("cosine", "drop-step"):
            overrides = made[f"{schedule}/{optimizer}"]
            assert isinstance(overrides, list)
            assert {f"optimizer.lr={lr}", f"optimizer.weight_decay={lr / 8}"} < set(overrides)


def test_no_best_cell_of_the_heatmap_lies_at_an_edge() -> None:
    rows = finished_runs.read_csv(ROOT / "docs/studies/heatmaps/heatmap.csv")
    for grid in grids(Cell(*(row[key] for key in Cell._fields)) for row in rows):
        _, *axes = heatmaps.GRIDS[grid.title.partition(",")[0]]
        for values, exponents in zip((grid.lr, grid.amount), axes, strict=True):
            assert values.tolist() == [float(x) for x in octaves(yaml.safe_load(exponents)).split(",")]
        i, j = grid.best
        neighbors = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
        assert min(n for pair in neighbors for n in pair) >= 0
        assert all(grid.mean[beside] > grid.mean[i, j] for beside in neighbors)


def test_the_width_leaves_independent_decay_alone() -> None:
    """At width 256 and the lr where both styles decay alike at width 64; without gradients a step only decays."""
    shares: dict[tuple[str, bool], list[float]] = {}
    for style, amount in width.DECAY.items():
        model = GPT(best_rates.PRESETS[256])
        mask = {"rules": [yaml.safe_load(width.rule(256, False))]}
        optimizer = {"name": "adamw", "lr": 2.0**-8, "weight_decay": amount, "decay": {"style": style}, "mask": mask}
        before = {name: tensor.norm().item() for name, tensor in model.named_parameters() if tensor.ndim == 2}
        for tensor in model.parameters():
            tensor.grad = torch.zeros_like(tensor)
        wd.configure_optimizers(model, optimizer)["optimizer"].step()
        for name, norm in before.items():
            removed = 1 - model.get_parameter(name).norm().item() / norm
            shares.setdefault((style, name.startswith("blocks")), []).append(removed * 2**7)
    assert {key: len(found) for key, found in shares.items()} == {
        (style, hidden): 8 if hidden else 2 for style in width.DECAY for hidden in (False, True)
    }
    for (style, hidden), found in shares.items():
        assert found == pytest.approx([0.25 if hidden and style == "decoupled" else 1.0] * len(found), rel=1e-3)


def test_muon_and_adamw_are_compared_at_the_rate_that_is_best_for_each(tmp_path: Path) -> None:
    """By the loss of the GPT and the error of the ResNet, of seed 0; then with other seeds."""
    values = {"gpt/adamw": (2.0, 1.9, 2.1), "gpt/muon": (2.2, 2.0, 1.8), "resnet/adamw": (0.7, 0.9, 0.8)}
    for sweep, found in values.items():
        for lr, value in zip((0.001, 0.003, 0.01), found, strict=True):
            folder = tmp_path / sweep / "rates" / f"lr{lr}_seed0"
            folder.mkdir(parents=True)
            (folder / "config.yaml").write_text(f"optimizer: {{lr: {lr}}}\n")
            loss, acc = (value, 0.5) if sweep.startswith("gpt") else (1.0, value)
            (folder / "metrics.csv").write_text(f"epoch,step,test/acc,test/loss\n1,10,{acc},{loss}\n")
    made = muon_against_adamw.sweeps(tmp_path, tmp_path, False)
    for sweep, lr in {"gpt/adamw": 0.003, "gpt/muon": 0.01, "resnet/adamw": 0.003}.items():
        first, second = made[f"{sweep}/rates"], made[f"{sweep}/seeds"]
        assert isinstance(first, list)
        assert callable(second)
        assert first[-1] == "seed=0"
        assert second(tmp_path) == [*first[:-2], "seed=1,2,3", f"optimizer.lr={lr}"]


def test_fine_tuning_takes_the_amount_that_is_best_on_both_halves(tmp_path: Path) -> None:
    """Nets that give one answer in each half, by their bias: the label that is rarest there, or the most frequent."""
    data = Digits()
    data.setup("fit")
    old, new = data.val.tensors[1].bincount(minlength=10).float().view(2, 5)
    rare, frequent = (int(old.argmin()), int(new.argmin()) + 5), (int(old.argmax()), int(new.argmax()) + 5)
    for amount, answers in {0.25: (frequent[0], rare[1]), 0.5: frequent, 1.0: (rare[0], frequent[1])}.items():
        state = {name: torch.zeros_like(value) for name, value in MLP(hidden=[4]).state_dict().items()}
        state["net.4.bias"][list(answers)] = 1.0
        folder = tmp_path / "zero/amounts" / f"wd{amount}"
        (folder / "checkpoints").mkdir(parents=True)
        torch.save({"state_dict": state}, folder / "checkpoints/last.ckpt")
        config = {
            "data": {"_target_": "data.digits.Digits", "classes": forgetting.NEW},
            "model": {"_target_": "models.mlp.MLP", "hidden": [4]},
            "optimizer": {"weight_decay": amount},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "metrics.csv").write_text("epoch,step,test/acc,test/loss\n1,10,0.5,1.0\n")
    made = forgetting.sweeps(tmp_path, tmp_path, False)["zero/seeds"]
    assert callable(made)
    assert made(tmp_path)[-2:] == [
        "optimizer.weight_decay=0.5",
        f"init_from='{tmp_path}/first/seed${{seed}}/checkpoints/last.ckpt'",
    ]
    (run,) = [run for run in finished_runs.read_runs(tmp_path) if run.config["optimizer"]["weight_decay"] == 0.5]
    among_five = [100.0 * float(half.max() / half.sum()) for half in (old, new)]
    assert forgetting.accuracies(run, "val") == pytest.approx([*among_five, among_five[0], 0.0])  # of equals the first


@pytest.mark.parametrize("study", [hyperball, width])
def test_the_best_rates_of_the_widths_are_those_of_the_runs(study: Any, tmp_path: Path) -> None:
    known = ROOT / "docs/studies" / study.__name__.rpartition(".")[2]
    for row in finished_runs.read_csv(known / "runs.csv"):
        lr = row["lr"]
        folder = tmp_path / f"{int(row['width'])}/{row['style']}" / f"lr{lr}_seed{row['seed']}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"{{optimizer: {{lr: {lr}}}, seed: {int(row['seed'])}}}\n")
        (folder / "metrics.csv").write_text(f"epoch,step,test/loss\n1,10,{row['loss_nats']}\n")
    study.report(tmp_path, tmp_path / "out")
    for name in ("runs.csv", "table.csv"):
        expected = finished_runs.read_csv(known / name)
        for found, row in zip(finished_runs.read_csv(tmp_path / "out" / name), expected, strict=True):
            assert found == pytest.approx(row, rel=1e-4)  # from losses of six digits


def test_what_is_best_at_the_reference_is_carried_over_by_the_key(tmp_path: Path) -> None:
    """By the mean loss; one that is not finite is never best."""
    # of two seeds; by the first alone the third cell would win, by accuracy the first or the third one
    found = [("0.9,nan", "0.9,1.0"), ("0.7,1.5", "0.7,1.5"), ("0.8,1.4", "0.8,1.8")]
    for task in ("fashion", "gpt"):
        for place, best in {"reference": (0.25, 0.5), "batch": (0.5, 2.0)}.items():
            for (lr, lam), seeds in zip(((0.125, 0.5), best, (1.0, 1.0)), found, strict=True):
                for seed, value in zip((0, 1), seeds, strict=True):
                    folder = tmp_path / f"{task}/sgdw/{place}/grid/lr{lr}_wd{lam}_seed{seed}"
                    folder.mkdir(parents=True)
                    (folder / "config.yaml").write_text(f"optimizer: {{lr: {lr}, weight_decay: {lam}}}\n")
                    (folder / "metrics.csv").write_text(f"epoch,step,test/acc,test/loss\n1,10,{value}\n")
    made = transfer.sweeps(tmp_path, tmp_path, False)
    for task, (batch, data) in {"fashion": (25, 500), "gpt": (8, 10000)}.items():
        here = [f"data.batch_size={4 * batch}", "trainer.max_steps=100", f"data.train_size={data}"]
        here.append("seed=3,4,5,6,7,8")
        tuned = ["optimizer.lr=0.25", "optimizer.weight_decay=0.5"]
        key = [f"optimizer.reference.global_batch={batch}", "optimizer.reference.steps=400"]
        key.append("+callbacks.plan_summary._target_=lightning_wd.DecayPlanSummary")
        for variant, expected in {
            "best": ["optimizer.lr=0.5", "optimizer.weight_decay=2.0"],
            "as_tuned": tuned,
            "carried": [*key, *tuned],
            "decay_only": [*key, "optimizer.reference.lr_rule=none", *tuned],
        }.items():
            sweep = made[f"{task}/sgdw/batch/{variant}"]
            assert callable(sweep)
            assert sweep(tmp_path)[-len(here) - len(expected) :] == [*here, *expected]
    lr_only = made["gpt/sgdw/both/lr_only"]
    assert callable(lr_only)
    assert lr_only(tmp_path)[-2:] == ["optimizer.lr=1.0", "optimizer.weight_decay=0.5"]  # linear in the batch
    factors, own = transfer.variants("adamw", {"global_batch": 8, "steps": 400}, 32, 400, 1)["epochs"]
    assert (factors, own) == ((2.0, 2.0), [])  # lr * lambda is 4 times as large, an epoch has a quarter of the steps


def test_half_of_a_rule_that_is_the_whole_or_nothing_is_not_run_again() -> None:
    before = {"global_batch": 8, "steps": 400}
    found = {
        (name, batch, steps): list(transfer.variants(name, before, batch, steps, 1))
        for name in ("adamw", "sgdw")
        for batch, steps in ((32, 100), (8, 1600), (32, 400))
    }
    assert found == {
        ("adamw", 32, 100): ["as_tuned", "carried", "lr_only", "decay_only"],
        ("adamw", 8, 1600): ["as_tuned", "carried"],
        ("adamw", 32, 400): ["as_tuned", "carried", "lr_only", "epochs"],
        ("sgdw", 32, 100): ["as_tuned", "carried", "decay_only"],
        ("sgdw", 8, 1600): ["as_tuned", "carried"],
        ("sgdw", 32, 400): ["as_tuned", "carried", "lr_only"],
    }
    # on 4 times the data the timescale in epochs and in runs are one
    assert list(transfer.variants("adamw", before, 8, 1600, 4)) == ["as_tuned", "carried"]
    made = transfer.sweeps(Path("data"), Path("out"), False)
    for change, size in {"steps": 10000, "data": 40000}.items():
        grid = made[f"gpt/adamw/{change}/grid"]
        assert isinstance(grid, list)
        assert {"trainer.max_steps=1600", f"data.train_size={size}"} < set(grid)


def test_the_regrets_are_those_of_the_runs(tmp_path: Path) -> None:
    """Pairs that were carried over are read from the run's own plan."""
    for row in finished_runs.read_csv(ROOT / "docs/studies/transfer/runs.csv"):
        if row["variant"] == "grid":
            continue
        place = f"{row['task']}/{row['optimizer']}/{row['change']}/{row['variant']}"
        pair = {"lr": row["lr"], "weight_decay": row["weight_decay"]}
        folder = tmp_path / place / f"seed{row['seed']}"
        folder.mkdir(parents=True)
        if row["variant"] in ("carried", "decay_only"):
            (folder / "decay_plan.json").write_text(json.dumps({"carried_over": {"here": pair}}))
            pair = {"lr": 7.0, "weight_decay": 7.0}
        (folder / "config.yaml").write_text(json.dumps({"optimizer": pair, "seed": int(row["seed"])}))
        (folder / "metrics.csv").write_text(f"epoch,step,test/loss\n1,10,{row['value']}\n")
    transfer.report(tmp_path, tmp_path / "out")
    expected = finished_runs.read_csv(ROOT / "docs/studies/transfer/table.csv")
    for found, known in zip(finished_runs.read_csv(tmp_path / "out/table.csv"), expected, strict=True):
        assert found == pytest.approx(known, rel=1e-3, abs=2e-4, nan_ok=True)  # differences of numbers of six digits


def test_intervals_are_students() -> None:
    mean, half = finished_runs.mean_and_half_width([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert math.isnan(finished_runs.mean_and_half_width([1.0, 2.0])[1])
    assert math.isnan(finished_runs.mean_and_half_width([1.0, 2.0, math.inf])[1])


def test_the_effective_decay_is_what_a_step_of_adam_removes() -> None:
    """In a steady state, where the first moment of the penalty's gradient is ``lam * w``, the step removes d_i * w."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    group: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
    v_hat, step = torch.tensor([4.0, 1.0, 0.25]), 50
    scale, fraction = lost_decay.effective_decay({"exp_avg_sq": v_hat * (1 - 0.999**step), "step": step}, group)
    np.testing.assert_allclose(scale, [2.0, 1.0, 0.5], rtol=1e-6)

    optimizer = wd.AdamW([weight], style="l2", **{key: group[key] for key in ("lr", "weight_decay", "betas", "eps")})
    before = weight.detach().clone()
    optimizer.state[weight] = {
        "step": torch.tensor(float(step - 1)),
        "exp_avg": 0.1 * before * (1 - 0.9 ** (step - 1)),
        "exp_avg_sq": v_hat * (1 - 0.999**step),
    }
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    removed = ((before - weight.detach()) / before).numpy()
    np.testing.assert_allclose(removed, fraction, rtol=0.01)  # v_hat has moved by one step


def test_one_run_in_three_units() -> None:
    """lam 1e-3 over 400 steps, 20 of them an epoch: 1e-3 * 20 normalized, 1000 steps are 50 epochs."""
    point = {"steps": 400, "per_epoch": 20}
    assert budgets._in_unit("raw", 1e-3, point) == 1e-3
    assert budgets._in_unit("normalized", 1e-3, point) == pytest.approx(0.02)
    assert budgets._in_unit("timescale_epochs", 1e-3, point) == pytest.approx(50.0)


def test_the_styles_are_those_of_the_readme() -> None:
    commands = [" ".join(["`.venv/bin/python recipes/train.py", *words]) + "` |" for words in styles.STYLES.values()]
    table = [line for line in (ROOT / "README.md").read_text().splitlines() if line.endswith("` |")]
    assert [command for command in commands if not any(line.endswith(command) for line in table)] == []


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "heatmaps"])
def test_a_picture_is_drawn_from_the_committed_numbers(name: str, tmp_path: Path) -> None:
    for study in {name, "heatmaps"}:  # schedules reads the results of heatmaps
        (tmp_path / study).mkdir()
        for table in (ROOT / "docs/studies" / study).glob("*.csv"):
            shutil.copy(table, tmp_path / study)
    import_module(f"studies.{name}").draw(tmp_path / name)
    assert (tmp_path / name / f"{name}.png").stat().st_size > 20_000


def test_the_best_budgets_are_those_of_the_runs() -> None:
    folder = ROOT / "docs/studies/budgets"
    found = budgets._best(budgets._curves(folder))
    for row, (kind, value, unit, best) in zip(finished_runs.read_csv(folder / "best.csv"), found, strict=True):
        assert (row["changed"], row["value"], row["unit"]) == (kind, value, unit)
        assert row["best"] == pytest.approx(best, rel=1e-5)
