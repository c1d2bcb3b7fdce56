"""An interrupted and resumed run equals the unbroken one: weights, decays, metrics, bit for bit."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from helpers.small_run import CrashAfter, CrashError, Data, DecaysUsed, Net, fit, make_trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

import lightning_wd as wd
from lightning_wd.callbacks import RestartSnapshot
from lightning_wd.runs.folder import RunCSVLogger

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw", "lr": 0.02, "weight_decay": 0.5},
    "sgdw": {"name": "sgdw", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "adam_l2": {"name": "adam_l2", "lr": 0.02, "weight_decay": 0.1},
    "cautious": {"name": "adamw", "lr": 0.02, "weight_decay": 0.5, "decay": {"cautious": True}},
    "compensated": {"name": "sgdw", "lr": 0.1, "weight_decay": 0.1, "kahan": True},
    "muon": {"name": "muon", "lr": 0.02, "weight_decay": 0.1, "decay": {"cautious": True}},
}
NORMALIZED = {"name": "adamw", "lr": 0.02, "decay": {"style": "independent", "normalized": 0.1}}
RESTARTS = {"name": "cosine_restarts", "first_cycle_epochs": 1}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


class Pair:
    """The same run twice: whole, and interrupted after some optimizer steps and resumed."""

    def __init__(self, folder: Path, at: int, module: Any, callbacks: Any, **settings: Any) -> None:
        self.whole, self.parts = folder / "whole", folder / "parts"
        self.settings, self.module, self.callbacks = settings, module, callbacks
        self.modules, self.decays = [module(), module()], [DecaysUsed(), DecaysUsed()]
        self._fit(self.modules[0], self.whole, self.decays[0])
        with pytest.raises(CrashError):
            self._fit(module(), self.parts, self.decays[1], CrashAfter(at, self.parts / "c.ckpt"))
        self._fit(self.modules[1], self.parts, self.decays[1], ckpt_path=self.parts / "c.ckpt")

    def _fit(self, module: L.LightningModule, folder: Path, *callbacks: L.Callback, ckpt_path: Any = None) -> None:
        logger = RunCSVLogger(folder, flush_logs_every_n_steps=1)
        settings = {"logger": logger, "log_every_n_steps": 1, "ckpt_path": ckpt_path, **self.settings}
        fit(module, folder, *self.callbacks(), *callbacks, **settings)

    def check(self) -> None:
        whole, resumed = self.modules
        different = [
            n for (n, p), q in zip(whole.named_parameters(), resumed.parameters(), strict=True) if (p != q).any()
        ]
        assert different == []
        assert self.decays[0].seen == self.decays[1].seen
        assert rows(self.whole) == rows(self.parts)
        assert any("train/loss" in row for row in rows(self.whole))


@pytest.mark.parametrize(
    ("name", "at"), [("adamw", 3), ("sgdw", 10), ("adam_l2", 5), ("cautious", 7), ("compensated", 14), ("muon", 4)]
)
def test_each_optimizer_with_schedule_and_monitor(name: str, at: int, tmp_path: Path) -> None:
    """In the middle of an epoch, and at the last batch of one."""
    callbacks = lambda: (wd.DecaySchedule("cosine"), wd.DecayMonitor(2), wd.DecayPlanSummary())  # noqa: E731
    Pair(tmp_path, at, lambda: Net(OPTIMIZERS[name], "warmup_cosine"), callbacks).check()


@pytest.mark.parametrize("at", [3, 5, 8])
def test_in_either_cycle_of_warm_restarts(at: int, tmp_path: Path) -> None:
    """Cycles of 5 and 10 steps: in the first, at the restart, in the second; lam changes at the restart."""
    callbacks = lambda: (wd.DecaySchedule("restarts"), RestartSnapshot(), wd.DecayMonitor(2))  # noqa: E731
    pair = Pair(tmp_path, at, lambda: Net(NORMALIZED, RESTARTS), callbacks, enable_checkpointing=True)
    pair.check()
    assert len({decay for decay, _ in pair.decays[0].seen}) == 2
    for cycle in (0, 1):
        whole, parts = (
            torch.load(folder / f"checkpoints/cycle_{cycle}.ckpt", weights_only=True)
            for folder in (pair.whole, pair.parts)
        )
        assert whole["global_step"] == parts["global_step"] == (5, 15)[cycle]
        assert all(torch.equal(value, parts["state_dict"][name]) for name, value in whole["state_dict"].items())


def test_with_accumulation(tmp_path: Path) -> None:
    pair = Pair(
        tmp_path,
        4,
        lambda: Net(OPTIMIZERS["adamw"], "warmup_cosine"),
        lambda: (wd.DecaySchedule("linear"), wd.DecayMonitor(1)),
        accumulate_grad_batches=2,
    )
    pair.check()


def test_with_weight_averaging(tmp_path: Path) -> None:
    """Lightning's checkpoint holds the average as the model's weights and the raw ones apart."""
    callbacks = lambda: (EMAWeightAveraging(decay=0.9), wd.DecaySchedule("cosine"), wd.DecayMonitor(2))  # noqa: E731
    Pair(tmp_path, 7, lambda: Net(OPTIMIZERS["adamw"], "warmup_cosine"), callbacks).check()


def test_with_finetuning_and_an_overridden_optimizer(tmp_path: Path) -> None:
    class Own(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    def callbacks() -> tuple[L.Callback, ...]:
        return (
            wd.OptimizerOverride(OPTIMIZERS["sgdw"], "wsd"),
            wd.MaskedFinetuning(["backbone.*"], {1: ["backbone.4.*"], 2: ["backbone.*"]}),
            wd.DecaySchedule("linear"),
            wd.DecayMonitor(3),
        )

    Pair(tmp_path, 8, Own, callbacks).check()


def test_the_checkpoint_holds_plain_data_only(tmp_path: Path) -> None:
    """It loads without pickle, names its groups and their parameters, and holds no config object."""

    class Keeps(Net):
        def __init__(self, optimizer: Any = None, lr_scheduler: Any = None) -> None:
            super().__init__(optimizer, lr_scheduler)
            self.save_hyperparameters()

    config = wd.OptimizerConfig(**OPTIMIZERS["adamw"], betas=[0.9, 0.95])
    callbacks = (wd.DecaySchedule("cosine"), wd.DecayMonitor(2), wd.MaskedFinetuning(["backbone.0.*"], {1: ["*"]}))
    trainer = fit(Keeps(config, wd.LRSchedulerConfig(name="warmup_cosine")), tmp_path, *callbacks)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    loaded = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert set(loaded["callbacks"]) == {"DecaySchedule", "DecayMonitor", "MaskedFinetuning"}
    assert loaded["hyper_parameters"]["optimizer"]["betas"] == [0.9, 0.95]
    groups = loaded["optimizer_states"][0]["param_groups"]
    assert [(g["name"], g["style"], g["base_lr"], g["base_weight_decay"]) for g in groups] == [
        ("decay", "decoupled", 0.02, 0.5),
        ("no_decay", "decoupled", 0.02, 0.0),
        ("decay_epoch_1", "decoupled", 0.02, 0.5),
        ("no_decay_epoch_1", "decoupled", 0.02, 0.0),
    ]
    assert groups[0]["param_names"] == ["backbone.4.weight", "head.weight"]
    assert yaml.safe_load(yaml.safe_dump(loaded["callbacks"]["DecaySchedule"]))["total_steps"] == 15
    again = Keeps.load_from_checkpoint(tmp_path / "c.ckpt", weights_only=True)
    assert again.hparams["optimizer"]["name"] == "adamw"


def interrupted(tmp_path: Path, config: Any, schedule: Any = None) -> Path:
    with pytest.raises(CrashError):
        fit(Net(config, schedule), tmp_path, CrashAfter(4, tmp_path / "c.ckpt"))
    return tmp_path / "c.ckpt"


@pytest.mark.parametrize(
    ("saved", "configured", "words"),
    [
        ("adamw", "adam_l2", "group 'decay' was trained with another decay style.\n  found: style 'decoupled'"),
        ("adam_l2", "adamw", "group 'decay' was trained with another decay style.\n  found: style 'l2'"),
        ("adamw", "sgdw", "group 'decay' is of another optimizer"),
    ],
)
def test_another_variant_is_refused(saved: str, configured: str, words: str, tmp_path: Path) -> None:
    """Adam with L2 never silently becomes AdamW, nor the other way round."""
    path = interrupted(tmp_path, OPTIMIZERS[saved])
    with pytest.raises(wd.CheckpointMismatchError) as caught:
        fit(Net(OPTIMIZERS[configured]), tmp_path, ckpt_path=path)
    assert words in str(caught.value)


@pytest.mark.parametrize(("saved", "configured"), [("adam_l2", "adamw"), ("adamw", "adam_l2")])
def test_a_run_switches_its_style_on_request(saved: str, configured: str, tmp_path: Path) -> None:
    path = interrupted(tmp_path, OPTIMIZERS[saved])
    with pytest.warns(UserWarning, match=r"group 'decay': style .* the configuration; group 'no_decay': style"):
        trainer = fit(Net({**OPTIMIZERS[configured], "on_resume": "config"}), tmp_path, ckpt_path=path)
    own = OPTIMIZERS[configured]
    style = "l2" if configured == "adam_l2" else "decoupled"
    assert [(g["style"], g["weight_decay"]) for g in trainer.optimizers[0].param_groups] == [
        (style, own["weight_decay"]),
        (style, 0.0),
    ]
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {trainer.global_step}


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("all", "loaded state dict has a different number of parameter groups"),
        (
            {"rules": [{"name": "head.weight", "wd_mult": 0}]},
            "group 'decay' has other parameters.\n  found: head.weight",
        ),
    ],
)
def test_other_groups_or_members_are_refused_with_their_names(mask: Any, words: str, tmp_path: Path) -> None:
    path = interrupted(tmp_path, OPTIMIZERS["adamw"])
    with pytest.raises(wd.CheckpointMismatchError) as caught:
        fit(Net({**OPTIMIZERS["adamw"], "mask": mask}), tmp_path, ckpt_path=path)
    assert words in str(caught.value)
    assert "'decay'" in str(caught.value)


def test_a_changed_decay_is_kept_taken_or_refused_as_on_resume_says(tmp_path: Path) -> None:
    path = interrupted(tmp_path, OPTIMIZERS["adamw"])
    changed = {**OPTIMIZERS["adamw"], "weight_decay": 0.1}
    words = "weight_decay is 0.5 in the checkpoint, 0.1 in the configuration"
    with pytest.warns(UserWarning, match=words):
        kept = fit(Net(changed), tmp_path, ckpt_path=path)
    with pytest.warns(UserWarning, match=words):
        taken = fit(Net({**changed, "on_resume": "config"}), tmp_path, ckpt_path=path)
    assert [t.optimizers[0].param_groups[0]["weight_decay"] for t in (kept, taken)] == [0.5, 0.1]
    with pytest.raises(wd.CheckpointMismatchError, match=words):
        fit(Net({**changed, "on_resume": "error"}), tmp_path, ckpt_path=path)


def test_through_distributed_checkpoint_adam_l2_stays_adam_l2(tmp_path: Path) -> None:
    """torch's own load turns Adam with L2 into AdamW; neither of its state dict APIs may do so here."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    modules = {name: Net(OPTIMIZERS[name]) for name in ("adamw", "adam_l2")}
    optimizers = {name: module.configure_optimizers()["optimizer"] for name, module in modules.items()}
    for name, module in modules.items():
        module.head(torch.ones(2, 8)).sum().backward()
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        optimizers[name].step()
    state = get_optimizer_state_dict(modules["adamw"], optimizers["adamw"])
    with pytest.raises(wd.CheckpointMismatchError, match="trained with another decay style"):
        set_optimizer_state_dict(modules["adam_l2"], optimizers["adam_l2"], state)
    weights = [p.clone() for p in modules["adamw"].parameters()]
    set_optimizer_state_dict(modules["adamw"], optimizers["adamw"], state)
    assert all(map(torch.equal, weights, modules["adamw"].parameters()))
    assert {group["style"] for group in optimizers["adamw"].param_groups} == {"decoupled"}


@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled, )?unavailable or uninitialized")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch 2.6 about itself
def test_a_distributed_checkpoint_on_disk_is_loaded_whole_or_refused(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    def stepped(name: str, steps: int) -> tuple[Net, torch.optim.Optimizer]:
        module = Net(OPTIMIZERS[name])
        optimizer = module.configure_optimizers()["optimizer"]
        for step in range(steps):
            torch.manual_seed(step)
            for p in module.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
        optimizer.zero_grad()
        return module, optimizer

    def load(module: Net, optimizer: torch.optim.Optimizer) -> None:
        state = {"optimizer": get_optimizer_state_dict(module, optimizer)}
        dcp.load(state, checkpoint_id=tmp_path / "saved")
        set_optimizer_state_dict(module, optimizer, state["optimizer"])

    module, optimizer = stepped("adamw", 3)
    dcp.save({"optimizer": get_optimizer_state_dict(module, optimizer)}, checkpoint_id=tmp_path / "saved")
    with pytest.raises(wd.CheckpointMismatchError, match="trained with another decay style"):
        load(*stepped("adam_l2", 1))
    again, loaded = stepped("adamw", 0)
    weights = [p.detach().clone() for p in again.parameters()]
    load(again, loaded)
    assert all(map(torch.equal, weights, again.parameters()))  # preparing the state has decayed nothing
    for mine, theirs in zip(loaded.param_groups, optimizer.param_groups, strict=True):
        assert {k: v for k, v in mine.items() if k != "params"} == {k: v for k, v in theirs.items() if k != "params"}
    for p, q in zip(again.parameters(), module.parameters(), strict=True):
        assert loaded.state[p].keys() == optimizer.state[q].keys()
        assert all(torch.equal(loaded.state[p][key], value) for key, value in optimizer.state[q].items())


def test_a_second_fit_of_the_same_trainer_resets_the_callbacks(tmp_path: Path) -> None:
    schedule, monitor, record = wd.DecaySchedule("linear", end=0.0), wd.DecayMonitor(1), DecaysUsed()
    trainer = make_trainer(tmp_path, schedule, monitor, record)
    trainer.fit(Net(OPTIMIZERS["adamw"]), Data())
    trainer.fit_loop.max_epochs = 6
    trainer.fit(Net(OPTIMIZERS["adamw"]), Data())
    assert record.seen[15][0] == pytest.approx(0.5)  # step 0 of this fit's 15
    assert [row["step"] for row in monitor.state_dict()["history"]] == list(range(15, 30))
