"""MaskedFinetuning: what is frozen, what joins which group when, and the same in a resumed run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.recipe import ROOT
from helpers.small_run import CrashAfter, CrashError, DecaysUsed, Net, fit
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lightning_wd as wd

ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}
STAGES = {1: ["backbone.4.*"], 2: ["backbone.*"]}


def groups(trainer: L.Trainer) -> dict[str, tuple[float, list[str]]]:
    return {g["name"]: (g["weight_decay"], g["param_names"]) for g in trainer.optimizers[0].param_groups}


def group_dicts(trainer: L.Trainer) -> list[dict[str, Any]]:
    return trainer.optimizers[0].param_groups


def finetuning(**kw: Any) -> wd.MaskedFinetuning:
    return wd.MaskedFinetuning(["backbone.*"], STAGES, **kw)


class Trains(L.Callback):
    """The names of trained parameters at the start of each epoch, and the weights at its end."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self.names.append([name for name, p in pl_module.named_parameters() if p.requires_grad])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.weights.append({key: value.clone() for key, value in pl_module.state_dict().items()})


def test_groups_are_split_by_the_mask_when_they_join(tmp_path: Path) -> None:
    trains = Trains()
    trainer = fit(Net(ADAMW), tmp_path, finetuning(), trains)
    assert groups(trainer) == {
        "decay": (0.1, ["head.weight"]),
        "no_decay": (0.0, ["head.bias"]),
        "decay_epoch_1": (0.1, ["backbone.4.weight"]),
        "no_decay_epoch_1": (0.0, ["backbone.4.bias"]),
        "decay_epoch_2": (0.1, ["backbone.0.weight"]),
        "no_decay_epoch_2": (0.0, ["backbone.0.bias", "backbone.1.weight", "backbone.1.bias"]),
    }
    late = ["backbone.4.weight", "backbone.4.bias"]
    assert trains.names[0] == ["head.weight", "head.bias"]
    assert trains.names[1] == [*late, "head.weight", "head.bias"]
    assert len(trains.names[2]) == 8
    first, second, third = trains.weights
    for name in late:
        assert not torch.equal(first[name], second[name])
    assert torch.equal(first["backbone.0.weight"], second["backbone.0.weight"])
    assert not torch.equal(second["backbone.0.weight"], third["backbone.0.weight"])


def test_the_plan_is_updated(tmp_path: Path) -> None:
    plan = fit(Net(ADAMW), tmp_path, finetuning()).optimizers[0].decay_plan  # type: ignore[attr-defined]
    assert (plan["backbone.1.weight"].group, plan["backbone.1.weight"].wd_mult) == ("no_decay_epoch_2", 0.0)
    assert plan["backbone.1.weight"].reason == "norm layer LayerNorm; unfrozen at epoch 2"
    assert plan["head.weight"].reason == "weight"


def test_two_norms_of_equal_values_both_join(tmp_path: Path) -> None:
    """Lightning's BaseFinetuning compares values, and leaves out a LayerNorm that equals an earlier one."""

    class Twins(Net):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3))  # type: ignore[assignment]

    module = Twins(ADAMW)
    weights = module.state_dict()
    assert torch.equal(weights["backbone.1.weight"], weights["head.0.weight"])
    trainer = fit(module, tmp_path, wd.MaskedFinetuning(["backbone.1.*"], {0: ["*"]}), max_epochs=1)
    assert groups(trainer)["no_decay_epoch_0"] == (0.0, ["backbone.1.weight", "backbone.1.bias"])
    held = [id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters())


@pytest.mark.parametrize(
    ("freeze", "unfreeze"),
    [(["head.*", "twin.*"], {1: ["twin.*"], 2: ["head.*"]}), (["head.*"], {1: ["twin.weight"], 2: ["head.bias"]})],
)
def test_a_tied_tensor_joins_once_whichever_name_matches(freeze: Any, unfreeze: Any, tmp_path: Path) -> None:
    class Tied(Net):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.twin = nn.Linear(8, 3, bias=False)
            self.twin.weight = self.head.weight

    trainer = fit(Tied(ADAMW), tmp_path, wd.MaskedFinetuning(freeze, unfreeze))
    assert [groups(trainer)[name] for name in ("decay_epoch_1", "no_decay_epoch_2")] == [
        (0.1, ["head.weight"]),
        (0.0, ["head.bias"]),
    ]
    with pytest.raises(
        wd.MaskError, match=r"unfreeze\[2\] pattern 'head\.weight' matches no parameter that is still frozen"
    ):
        fit(Tied(ADAMW), tmp_path, wd.MaskedFinetuning(freeze, {1: ["twin.*"], 2: ["head.weight"]}))


SCHEDULES = {
    "warmup_cosine": "warmup_cosine",
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, [lambda t: 1 / (1 + t)] * len(o.param_groups)),
    "OneCycleLR": {"name": "OneCycleLR", "max_lr": 0.01},
    "CyclicLR": {"name": "CyclicLR", "max_lr": 0.01, "base_lr": 0.001, "step_size_up": 7, "cycle_momentum": False},
    "ReduceLROnPlateau": {
        "name": "ReduceLROnPlateau",
        "monitor": "train/loss",
        "patience": 0,
        "factor": 0.7,
        "interval": "step",
    },
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.LinearLR(o, 0.1), torch.optim.lr_scheduler.CosineAnnealingLR(o, 8)], [7]
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_new_groups_follow_the_schedule(schedule: str, tmp_path: Path) -> None:
    """A rule of the mask sets a tenth of the learning rate: it holds at every step after the groups have joined."""

    class Rates(L.Callback):
        seen: list[dict[str, float]]

        def __init__(self) -> None:
            self.seen = []

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            self.seen.append({g["name"]: g["lr"] for g in trainer.optimizers[0].param_groups})

    rates = Rates()
    mask = {"rules": [{"name": "backbone.*", "lr_mult": 0.1}]}
    fit(Net(ADAMW, SCHEDULES[schedule]), tmp_path, finetuning(mask=mask), rates)
    assert len(rates.seen[-1]) == 6
    for t, lrs in enumerate(rates.seen):
        for name, lr in lrs.items():
            expected = lrs["decay"] * (0.1 if "lr_x0.1" in name else 1.0)
            assert lr == pytest.approx(expected, rel=1e-9), (t, name)
    assert schedule == "ReduceLROnPlateau" or len({lrs["decay"] for lrs in rates.seen}) > 5


def test_the_configured_mask_is_the_default(tmp_path: Path) -> None:
    config = {**ADAMW, "mask": {"rules": [{"name": "*.4.weight", "wd_mult": 0.5, "lr_mult": 2.0}]}}
    trainer = fit(Net(config), tmp_path, finetuning())
    assert groups(trainer)["decay_x0.5_lr_x2_epoch_1"] == (0.05, ["backbone.4.weight"])
    assert trainer.optimizers[0].param_groups[3]["base_lr"] == 0.02


HEAD = {"rules": [{"name": "head.*", "lr_mult": 10}, {"name": "head.weight", "wd_mult": 0.5}]}


@pytest.mark.parametrize(
    ("configured", "mask", "name", "lr", "decay"),
    [
        ("standard", {"rules": [{"lr_mult": 0.1}]}, "decay_lr_x0.1_epoch_1", 0.001, 0.1),
        ("standard", {"rules": [{"name": "*.weight", "ndim": 2, "wd_mult": 0.5}]}, "decay_x0.5_epoch_1", 0.01, 0.05),
        (HEAD, {"rules": [{"name": "backbone.*", "lr_mult": 0.1}]}, "decay_lr_x0.1_epoch_1", 0.001, 0.1),
        (HEAD, "standard", "decay_epoch_1", 0.01, 0.1),
    ],
)
def test_its_own_mask_multiplies_the_configured_values(
    configured: Any, mask: Any, name: str, lr: float, decay: float, tmp_path: Path
) -> None:
    """Not those that the optimizer's mask gave the head."""
    trainer = fit(
        Net({**ADAMW, "mask": configured}),
        tmp_path,
        wd.MaskedFinetuning(["backbone.*"], {1: ["*"]}, mask=mask),
        max_epochs=2,
    )
    group = next(g for g in trainer.optimizers[0].param_groups if g["name"] == name)
    assert (group["base_lr"], group["lr"], group["weight_decay"]) == pytest.approx((lr, lr, decay), rel=1e-12)


def test_its_own_mask_with_an_optimizer_of_torch(tmp_path: Path) -> None:
    class Own(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, weight_decay=0.01)

    trainer = fit(Own(), tmp_path, finetuning(mask={"rules": [{"lr_mult": 0.1}]}))
    assert [(g.get("name"), g["lr"]) for g in trainer.optimizers[0].param_groups[:2]] == [
        (None, 0.1),
        ("decay_lr_x0.1_epoch_1", pytest.approx(0.01)),
    ]


def test_the_configured_amount_is_used_where_nothing_decays_yet(tmp_path: Path) -> None:
    config = {**ADAMW, "mask": {"rules": [{"name": "head.*", "wd_mult": 0}]}}
    trainer = fit(Net(config), tmp_path, finetuning())
    assert groups(trainer)["decay_epoch_1"] == (0.1, ["backbone.4.weight"])


def test_a_decay_schedule_drives_the_new_groups(tmp_path: Path) -> None:
    record = DecaysUsed()
    fit(Net(ADAMW), tmp_path, finetuning(), wd.DecaySchedule("linear", end=0.0), record)
    assert record.seen[12] == pytest.approx([0.1 * 0.2, 0.0] * 3)


def test_an_optimizer_of_torch_gets_plain_groups(tmp_path: Path) -> None:
    class Own(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, weight_decay=0.01)

    trainer = fit(Own(), tmp_path, finetuning())
    found = [(g.get("name"), g["weight_decay"], len(g["params"])) for g in trainer.optimizers[0].param_groups]
    assert found[1:3] == [("decay_epoch_1", 0.01, 1), ("no_decay_epoch_1", 0.0, 1)]
    assert "base_lr" not in trainer.optimizers[0].param_groups[1]


@pytest.mark.parametrize("at", [5, 7, 10, 12])
def test_a_resumed_run_has_the_same_groups_and_trained_parameters(at: int, tmp_path: Path) -> None:
    """Lightning's BaseFinetuning freezes everything again (lightning#21901)."""
    callbacks = lambda: (finetuning(), wd.DecaySchedule("cosine"))  # noqa: E731
    whole = Net(ADAMW, "warmup_cosine")
    trainer = fit(whole, tmp_path, *callbacks())
    with pytest.raises(CrashError):
        fit(Net(ADAMW, "warmup_cosine"), tmp_path, *callbacks(), CrashAfter(at, tmp_path / "c.ckpt"))
    resumed, trains = Net(ADAMW, "warmup_cosine"), Trains()
    again = fit(resumed, tmp_path, *callbacks(), trains, ckpt_path=tmp_path / "c.ckpt")
    assert groups(again) == groups(trainer)
    assert all(p.requires_grad for p in resumed.parameters())
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
    assert (
        torch.load(tmp_path / "c.ckpt", weights_only=True)["callbacks"]["MaskedFinetuning"]["unfrozen"]
        == [
            [1, ["backbone.4.weight", "backbone.4.bias"]],
            [2, ["backbone.0.weight", "backbone.0.bias", "backbone.1.weight", "backbone.1.bias"]],
        ][: (at >= 6) + (at >= 11)]
    )


def test_a_checkpoint_of_another_finetuning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        fit(Net(ADAMW), tmp_path, finetuning(), CrashAfter(7, tmp_path / "c.ckpt"))
    other = wd.MaskedFinetuning(["backbone.0.*"], {2: ["*"]})
    with pytest.raises(wd.CheckpointMismatchError, match=r"unfroze parameters at epoch 1 that are not frozen here"):
        fit(Net(ADAMW), tmp_path, other, ckpt_path=tmp_path / "c.ckpt")


def test_a_resumed_run_may_unfreeze_in_other_epochs(tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        fit(Net(ADAMW), tmp_path, finetuning(), CrashAfter(7, tmp_path / "c.ckpt"))
    late = wd.MaskedFinetuning(["backbone.*"], {1: ["backbone.0.*"], 2: ["backbone.4.*"]})
    with pytest.raises(
        wd.CheckpointMismatchError, match=r"past epoch 1 but did not unfreeze .*\n  found: backbone.0.bias"
    ):
        fit(Net(ADAMW), tmp_path, late, ckpt_path=tmp_path / "c.ckpt")
    moved = wd.MaskedFinetuning(["backbone.*"], {2: ["backbone.4.*"]})
    fit(Net(ADAMW), tmp_path, moved, ckpt_path=tmp_path / "c.ckpt")
    assert moved.state_dict() == {"unfrozen": [[1, ["backbone.4.weight", "backbone.4.bias"]], [2, []]]}


def test_what_joins_goes_to_the_optimizer_of_its_rule(tmp_path: Path) -> None:
    rules = [
        {"name": "backbone.*.bias", "optimizer": "sgdw", "lr": 0.1, "momentum": 0.5},
        {"name": "head.*", "betas": [0.8, 0.9]},
    ]
    config = {**ADAMW, "betas": [0.7, 0.9], "mask": {"rules": rules}}
    plain, trains = Trains(), Trains()
    trainer = fit(Net(config, "warmup_cosine"), tmp_path / "whole", finetuning(), plain)
    said = {g["name"]: (g["optimizer"], g["base_lr"], g.get("betas"), g["param_names"]) for g in group_dicts(trainer)}
    late = [(name, *rest) for name, rest in said.items() if "epoch" in name]
    assert late == [
        ("decay_epoch_1", "adamw", 0.01, (0.7, 0.9), ["backbone.4.weight"]),
        ("no_decay_lr_0.1_sgdw_momentum_0.5_epoch_1", "sgdw", 0.1, None, ["backbone.4.bias"]),
        ("decay_epoch_2", "adamw", 0.01, (0.7, 0.9), ["backbone.0.weight"]),
        ("no_decay_epoch_2", "adamw", 0.01, (0.7, 0.9), ["backbone.1.weight"]),
        ("no_decay_lr_0.1_sgdw_momentum_0.5_epoch_2", "sgdw", 0.1, None, ["backbone.0.bias", "backbone.1.bias"]),
    ]
    plan = {row.name: (row.optimizer, row.group) for row in trainer.optimizers[0].decay_plan}  # type: ignore[attr-defined]
    assert plan["backbone.4.bias"] == ("sgdw", "no_decay_lr_0.1_sgdw_momentum_0.5_epoch_1")
    path = tmp_path / "killed.ckpt"
    with pytest.raises(CrashError):
        fit(Net(config, "warmup_cosine"), tmp_path / "killed", finetuning(), CrashAfter(12, path))
    fit(Net(config, "warmup_cosine"), tmp_path / "rest", finetuning(), trains, ckpt_path=path)
    assert all(torch.equal(trains.weights[-1][name], value) for name, value in plain.weights[-1].items())


def test_a_mask_of_its_own_brings_no_other_optimizer(tmp_path: Path) -> None:
    mask = wd.Mask([wd.Rule(name="backbone.*", optimizer="sgdw")])
    with pytest.raises(wd.ConfigError) as caught:
        fit(Net(ADAMW), tmp_path, finetuning(mask=mask))
    assert str(caught.value) == (
        "group 'decay_sgdw' is of sgdw, but this run has AdamW alone.\n  found: backbone.4.weight\n"
        "  fix: write the rule with that optimizer into optimizer.mask, which the run is built from"
    )


def test_matrices_that_join_go_to_muon(tmp_path: Path) -> None:
    trainer = fit(Net({"name": "muon", "lr": 0.01, "weight_decay": 0.1}), tmp_path, finetuning())
    by_muon = {g["name"]: (g["use_muon"], g["param_names"]) for g in trainer.optimizers[0].param_groups}
    assert by_muon["decay_muon_epoch_1"] == (True, ["backbone.4.weight"])
    assert by_muon["decay_muon_epoch_2"] == (True, ["backbone.0.weight"])
    assert by_muon["decay"] == (False, ["head.weight"])
    assert not any(muon for name, (muon, _) in by_muon.items() if name.startswith("no_decay"))


def test_parameters_created_after_setup_are_an_error(tmp_path: Path) -> None:
    class Late(Net):
        def setup(self, stage: str) -> None:
            self.neck = nn.Linear(3, 3)

    with pytest.raises(
        wd.MaskError, match=r"created after its setup.*\n  found: neck.weight, neck.bias\n  fix: create them in"
    ):
        fit(Late(ADAMW), tmp_path, wd.MaskedFinetuning([r"regex:^(?!head)"]))


def test_parameters_frozen_by_the_module_stay_frozen(tmp_path: Path) -> None:
    module = Net(ADAMW)
    module.backbone[0].weight.requires_grad_(False)
    fit(module, tmp_path, finetuning())
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == ["backbone.0.weight"]


@pytest.mark.parametrize(
    ("freeze", "unfreeze", "words"),
    [
        (["backbon.*"], {}, r"freeze pattern 'backbon\.\*' matched no parameter.*nearest: 'backbone\.\*'"),
        (["backbone.*"], {1: ["haed.*"]}, r"unfreeze\[1\] pattern 'haed\.\*' matched no parameter"),
        (
            ["backbone.*"],
            {1: ["head.*"]},
            r"unfreeze\[1\] pattern 'head\.\*' matches no parameter that is still frozen.*"
            r"fix: add 'head\.weight' or a pattern for it to freeze",
        ),
        (
            ["backbone.*"],
            {1: ["*"], 2: ["backbone.0.*"]},
            r"unfreeze\[2\] pattern 'backbone\.0\.\*' matches no parameter that.*fix: remove it: unfreeze\[1\] has unf",
        ),
    ],
)
def test_dead_patterns_are_errors(freeze: Any, unfreeze: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(wd.MaskError, match=f"(?s){words}"):
        fit(Net(ADAMW), tmp_path, wd.MaskedFinetuning(freeze, unfreeze))


def test_what_the_module_froze_itself_is_not_said_to_belong_in_freeze(tmp_path: Path) -> None:
    module = Net(ADAMW)
    module.head.requires_grad_(False)
    with pytest.raises(wd.MaskError, match=r"unfreeze\[1\] pattern 'head\.\*'(?s:.*)fix: leave them at requires_grad"):
        fit(module, tmp_path, wd.MaskedFinetuning(["backbone.*"], {1: ["head.*"]}))


def test_a_dead_rule_of_its_mask_is_an_error_before_anything_trains(tmp_path: Path) -> None:
    trains = Trains()
    with pytest.raises(wd.MaskError, match=r"mask pattern 'bakcbone\.\*' matched no parameter"):
        fit(Net(ADAMW), tmp_path, finetuning(mask={"rules": [{"name": "bakcbone.*", "lr_mult": 0.1}]}), trains)
    assert trains.names == []


def test_refusals(tmp_path: Path) -> None:
    class All(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    with pytest.raises(
        wd.MaskError,
        match=r"cannot unfreeze into new groups what the optimizer already holds.\n  found: 6 frozen param",
    ):
        fit(All(), tmp_path, finetuning())
    with pytest.raises(
        wd.ConfigError, match=r"freeze must be a list of patterns but got 'net\.\*'\.\n  fix: write \['net\.\*'\]"
    ):
        wd.MaskedFinetuning("net.*")  # type: ignore[arg-type]
    with pytest.raises(wd.ConfigError, match=r"MaskedFinetuning's epoch must be a whole number >= 0 but got 1.5"):
        wd.MaskedFinetuning(["*"], {1.5: ["*"]})  # type: ignore[dict-item]
    with pytest.raises(wd.ConfigError, match=r"MaskedFinetuning's epoch must be a whole number .*'²'"):
        wd.MaskedFinetuning(["*"], {"²": ["*"]})  # type: ignore[dict-item]
    with pytest.raises(wd.ConfigError, match=r"unfreeze has epoch 1 twice.\n  found: '1', 1"):
        wd.MaskedFinetuning(["*"], {"1": ["a.*"], 1: ["b.*"]})  # type: ignore[dict-item]
    with pytest.raises(wd.ConfigError, match=r"unfreeze must be a mapping of epochs to patterns but got \['a'\]"):
        wd.MaskedFinetuning(["*"], ["a"])  # type: ignore[arg-type]
    with pytest.warns(
        UserWarning, match=r"never reaches unfreeze\[2\]: epochs are counted from 0\.\n  found: a run of 2 epochs"
    ):
        fit(Net(ADAMW), tmp_path, finetuning(), max_epochs=2)


class OwnDDP(SingleDeviceStrategy):
    """A strategy that wraps the module by itself."""

    def setup(self, trainer: L.Trainer) -> None:
        super().setup(trainer)
        assert self.model is not None
        self.model = DistributedDataParallel(self.model)


def test_a_ddp_that_cannot_be_rebuilt_is_refused(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(wd.ConfigError, match=r"cannot rebuild DDP .*\n  found: OwnDDP, which has no configure_ddp"):
            fit(Net(ADAMW), tmp_path, finetuning(), strategy=OwnDDP("cpu"), max_epochs=3)
    finally:
        torch.distributed.destroy_process_group()


DDP_SCRIPT = """
import sys, torch, lightning as L, lightning_wd as wd
from helpers.small_run import Net, fit
module = Net({"name": "sgdw", "lr": 0.1, "weight_decay": 0.1})
fit(module, sys.argv[1], wd.MaskedFinetuning(["backbone.*"], {1: ["backbone.4.*"], 2: ["backbone.*"]}),
    strategy="ddp", devices=2)
mine = torch.cat([p.detach().flatten() for p in module.parameters()])
both = [torch.zeros_like(mine) for _ in range(2)]
torch.distributed.all_gather(both, mine)
print("equal" if torch.equal(*both) else "apart", flush=True)
"""


@pytest.mark.slow
def test_ddp_averages_the_gradients_of_unfrozen_parameters(tmp_path: Path) -> None:
    """DDP averages what was trainable when it was made: without a new wrapper the ranks drift apart."""
    script = tmp_path / "run.py"
    script.write_text(DDP_SCRIPT)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = os.pathsep.join(str(path) for path in (ROOT, ROOT / "recipes", ROOT / "tests"))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal") == 2, done.stdout


def test_what_is_unfrozen_follows_the_rate_of_weight_averaging(tmp_path: Path) -> None:
    averaging = StochasticWeightAveraging(1e-3, swa_epoch_start=1, annealing_epochs=1)
    finetuning = wd.MaskedFinetuning(["backbone.*"], {2: ["backbone.*"]})
    trainer = fit(Net({"name": "adamw", "lr": 0.01}), tmp_path, averaging, finetuning, max_epochs=4)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([1e-3] * 4)
