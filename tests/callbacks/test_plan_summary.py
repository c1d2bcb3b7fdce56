"""DecayPlanSummary: what it prints, writes and warns of."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import rich
import torch
from helpers.small_run import CrashAfter, CrashError, Net, TwoOptimizers, fit, make_trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

import lightning_wd as wd


def plan_of(folder: Path) -> Any:
    return json.loads((folder / "decay_plan.json").read_text())


def test_the_folder_gets_the_plan_with_the_amount_in_every_unit(tmp_path: Path) -> None:
    fit(Net({"name": "adamw", "lr": 0.01, "weight_decay": 5.0}), tmp_path, wd.DecayPlanSummary())
    plan = plan_of(tmp_path)
    assert {row["name"]: (row["group"], row["reason"]) for row in plan["parameters"]} == {
        "backbone.0.weight": ("decay", "weight"),
        "backbone.0.bias": ("no_decay", "bias"),
        "backbone.1.weight": ("no_decay", "norm layer LayerNorm"),
        "backbone.1.bias": ("no_decay", "bias"),
        "backbone.4.weight": ("decay", "weight"),
        "backbone.4.bias": ("no_decay", "bias"),
        "head.weight": ("decay", "weight"),
        "head.bias": ("no_decay", "bias"),
    }
    assert plan["totals"] == {"decay": {"tensors": 3, "numel": 136}, "no_decay": {"tensors": 5, "numel": 35}}
    assert (plan["optimizer"], plan["total_steps"], plan["steps_per_epoch"]) == ("AdamW", 15, 5)
    decay, no_decay = plan["groups"]
    assert (decay["name"], decay["style"], decay["weight_decay"], decay["lr"]) == ("decay", "decoupled", 5.0, 0.01)
    assert decay["units"] == pytest.approx(
        {
            "decoupled": 5.0,
            "independent": 0.05,
            "normalized": 0.05 * math.sqrt(15),
            "timescale_steps": 20,
            "timescale_epochs": 4,
            "timescale_runs": 20 / 15,
        }
    )
    assert "units" not in no_decay
    assert plan["warnings"] == []


def test_piped_output_is_never_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = Net({"name": "adamw", "mask": {"rules": [{"name": "*.4.[a-z]*", "wd_mult": 0.125, "lr_mult": 10}]}})
    inner = nn.Sequential(nn.Linear(6, 8))
    inner.add_module("a_name_that_is_much_longer_than_any_terminal_of_eighty_columns_would_ever_take", nn.Linear(8, 8))
    module.backbone[0] = inner
    fit(module, tmp_path, wd.DecayPlanSummary())
    printed = capsys.readouterr().out
    assert "…" not in printed
    for name, _ in module.named_parameters():
        assert f" {name} " in printed
    for words in ("decay_x0.125_lr_x10", "*.4.[a-z]*", "norm layer LayerNorm", "timescale runs", "15 optimizer"):
        assert words in printed


def test_on_a_terminal_the_plan_stands_above_the_progress_bar(tmp_path: Path) -> None:
    screen = io.StringIO()
    bar = RichProgressBar(console_kwargs={"file": screen, "force_terminal": True, "width": 80})
    quiet: Any = {"default_root_dir": tmp_path, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = L.Trainer(max_steps=1, limit_val_batches=1, callbacks=[bar, wd.DecayPlanSummary()], **quiet)
    trainer.fit(BoringModel())  # the bar of its sanity check is still there
    rich.reconfigure()
    above, printed, _ = screen.getvalue().partition("Decay plan of SGD, 1 optimizer steps")
    assert printed
    line = re.split(r"[\r\n]", above)[-1]
    assert re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", line) == ""


def test_a_big_plan_has_one_row_for_names_that_differ_in_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Net()
    module.backbone[4] = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(30)])
    fit(module, tmp_path, wd.DecayPlanSummary(), max_epochs=1)
    printed = capsys.readouterr().out
    assert "backbone.*.*.*.weight" in printed
    assert printed.count("(30)") == 2
    assert "(60)" in printed
    assert len(plan_of(tmp_path)["parameters"]) == 4 + 120 + 2


@pytest.mark.parametrize(
    ("weight_decay", "words"),
    [
        (1e-3, ["the timescale is 1e+03 times the run", "decay hardly acts"]),
        (50.0, ["the timescale is 2 steps, 0.02 of the run: weights forget what came before"]),
    ],
)
def test_a_timescale_out_of_proportion_is_warned_of(
    weight_decay: float, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(
        Net({"name": "adamw", "lr": 0.01, "weight_decay": weight_decay}), tmp_path, wd.DecayPlanSummary(), max_epochs=20
    )
    (caution,) = plan_of(tmp_path)["warnings"]
    assert caution.startswith("group 'decay': ")
    assert [word for word in words if word not in caution] == []
    assert f"warning: {caution}" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:a step of group 'decay' decays weights by d_t = 2")
def test_a_step_that_removes_whole_weights_is_warned_of(tmp_path: Path) -> None:
    fit(Net({"name": "sgdw", "lr": 0.1, "weight_decay": 20.0}), tmp_path, wd.DecayPlanSummary(), max_epochs=1)
    assert plan_of(tmp_path)["warnings"] == [
        "group 'decay': a step at the peak learning rate removes 2 of each weight (d_t >= 1): lower weight_decay"
    ]


def test_an_infinite_timescale_is_valid_json(tmp_path: Path) -> None:
    fit(Net({"name": "adamw", "lr": 0.0, "weight_decay": 0.1}), tmp_path, wd.DecayPlanSummary(), max_epochs=1)
    assert plan_of(tmp_path)["groups"][0]["units"]["timescale_epochs"] is None


def test_a_module_with_an_optimizer_of_torch_is_shown_by_its_groups(tmp_path: Path) -> None:
    class Own(BoringModel):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(
                [
                    {"params": [self.layer.weight], "weight_decay": 0.1},
                    {"params": [self.layer.bias], "weight_decay": 0.0, "name": "rest"},
                ],
                lr=0.1,
            )

    make_trainer(tmp_path, wd.DecayPlanSummary(), max_epochs=1, limit_train_batches=2, limit_val_batches=0).fit(Own())
    plan = plan_of(tmp_path)
    assert [(r["name"], r["group"], r["wd_mult"], r["style"], r["reason"]) for r in plan["parameters"]] == [
        ("layer.weight", "group_0", 1.0, "decoupled", "weight_decay 0.1 of its group"),
        ("layer.bias", "rest", 0.0, "decoupled", "weight_decay 0 of its group"),
    ]
    assert plan["groups"][0]["units"]["timescale_steps"] == pytest.approx(100)


def test_two_optimizers_have_a_plan_each(tmp_path: Path) -> None:
    fit(TwoOptimizers(), tmp_path, wd.DecayPlanSummary(), max_epochs=1)
    plans = plan_of(tmp_path)["optimizers"]
    assert [[row["name"] for row in plan["parameters"]] for plan in plans] == [["weight", "bias"]] * 2
    assert plans[0]["total_steps"] is None  # manual optimization: the trainer cannot know


RESTARTS = {"name": "cosine_restarts", "first_cycle_epochs": 1}
NORMALIZED = {"name": "adamw", "lr": 0.01, "decay": {"style": "independent", "normalized": 0.5}}


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    ("schedule", "optimizer", "lr", "base", "largest"),
    [
        (lambda: wd.DecaySchedule("cosine", end=10), {"weight_decay": 0.4}, None, 0.4, 9.9016),  # step 14 of 15
        (lambda: wd.DecaySchedule("constant", start=3), {"weight_decay": 0.4}, None, 0.4, 3),
        (lambda: wd.DecaySchedule("follow_lr"), {"weight_decay": 0.4}, "warmup_cosine", 0.4, 1),
        (lambda: wd.DecaySchedule(lambda p: 2 - p), {"weight_decay": 0.4}, None, 0.4, 2),
        (lambda: wd.DecaySchedule("linear", end_weight_decay=0.2), {"weight_decay": 0.4}, None, 0.4, 1),
        (lambda: wd.DecaySchedule("restarts"), NORMALIZED, RESTARTS, 0.5 / math.sqrt(15), math.sqrt(15 / 5)),
    ],
    ids=["cosine", "constant", "follow_lr", "function", "absolute end", "restarts"],
)
def test_a_schedule_is_shown_with_the_base_and_largest_amount(
    schedule: Any,
    optimizer: Any,
    lr: Any,
    base: float,
    largest: float,
    first: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    callbacks = [wd.DecayPlanSummary(), schedule()][:: 1 if first else -1]
    fit(Net({"name": "adamw", "lr": 0.01, **optimizer}, lr), tmp_path, *callbacks, max_epochs=3, limit_val_batches=0)
    plan = plan_of(tmp_path)
    assert plan["groups"][0]["weight_decay"] == pytest.approx(base)
    assert plan["decay_schedule"]["largest"] == pytest.approx([base * largest, 0.0], rel=1e-4)
    shape, most = plan["decay_schedule"]["shape"], base * largest
    assert f"DecaySchedule '{shape}': weight_decay is at most {most:.4g} in decay\n" in capsys.readouterr().out


def test_warnings_are_about_the_largest_amount_of_a_schedule(tmp_path: Path) -> None:
    """A base of d_t = 0.2, raised tenfold, removes more than a whole weight at the end."""
    fit(
        Net({"name": "sgdw", "lr": 0.1, "weight_decay": 2.0}),
        tmp_path,
        wd.DecaySchedule("linear", end=10),
        wd.DecayPlanSummary(),
    )
    assert plan_of(tmp_path)["warnings"] == [
        "group 'decay' at its largest weight_decay 18.8: a step at the peak learning rate removes 1.88 of each weight "
        "(d_t >= 1): lower weight_decay"
    ]


def test_a_resumed_optimizer_of_torch_shows_its_base(tmp_path: Path) -> None:
    """Its groups hold only the scheduled value."""

    class Own(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.04)

    for order in (1, -1):
        crash = tmp_path / f"{order}.ckpt"
        with pytest.raises(CrashError):
            fit(Own(), tmp_path, wd.DecaySchedule("linear", end=0.0), CrashAfter(7, crash))
        fit(Own(), tmp_path, *[wd.DecayPlanSummary(), wd.DecaySchedule("linear", end=0.0)][::order], ckpt_path=crash)
        plan = plan_of(tmp_path)
        assert plan["groups"][0]["weight_decay"] == 0.04
        assert plan["parameters"][0]["reason"] == "weight_decay 0.04 of its group"
