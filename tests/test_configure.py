"""configure_optimizers and its configs: groups by name, steps, schedules, resume, and the words of the errors."""

from __future__ import annotations

import copy
import functools
import pickle
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch.optim import lr_scheduler as torch_schedulers

import lightning_wd as wd
from lightning_wd.configure import LRSchedulerConfig, OptimizerConfig, configure_optimizers
from lightning_wd.configure.lr_scheduler import LRSchedule

ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}


class Lit(L.LightningModule):
    """Linear, LayerNorm, Linear on random data; 8 batches an epoch unless `batches` says otherwise."""

    def __init__(self, optimizer: Any = None, lr_scheduler: Any = None, batches: int = 8, **steps: Any) -> None:
        super().__init__()
        self.save_hyperparameters("optimizer", "lr_scheduler", "batches")
        self.steps = steps
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.net(batch).square().mean()
        self.log("train/loss", loss, on_epoch=True)
        return loss

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        return torch.utils.data.DataLoader(torch.randn(4 * self.hparams.batches, 4, generator=generator), batch_size=4)

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self, self.hparams.optimizer, self.hparams.lr_scheduler, **self.steps)


def trainer(tmp_path: Path, **keywords: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"max_epochs": 2, "enable_checkpointing": False, "accelerator": "cpu", "default_root_dir": tmp_path}
    return L.Trainer(**{**quiet, **defaults, **keywords})


def fit(module: Lit, tmp_path: Path, ckpt_path: str | None = None, **keywords: Any) -> L.Trainer:
    made = trainer(tmp_path, **keywords)
    made.fit(module, ckpt_path=ckpt_path)
    return made


def groups_of(optimizer: torch.optim.Optimizer) -> dict[str, list[str]]:
    return {group["name"]: list(group["param_names"]) for group in optimizer.param_groups}


# --- what is built ---


@pytest.mark.parametrize("prefixed", [False, True])
def test_groups_by_name_in_plain_torch_and_in_lightning(prefixed: bool) -> None:
    lit = Lit()
    optimizer = configure_optimizers(lit if prefixed else lit.net, ADAMW)["optimizer"]
    net = "net." if prefixed else ""
    assert groups_of(optimizer) == {
        "decay": [f"{net}0.weight", f"{net}2.weight"],
        "no_decay": [f"{net}0.bias", f"{net}1.weight", f"{net}1.bias", f"{net}2.bias"],
    }
    assert [(g["weight_decay"], g["lr"], g["base_lr"], g["style"]) for g in optimizer.param_groups] == [
        (0.1, 0.01, 0.01, "decoupled"),
        (0.0, 0.01, 0.01, "decoupled"),
    ]
    assert [row.reason for row in optimizer.decay_plan][:3] == ["weight", "bias", "norm layer LayerNorm"]


@pytest.mark.parametrize(
    ("name", "style", "cls", "base"),
    [
        ("adamw", "decoupled", "AdamW", torch.optim.AdamW),
        ("adamw", "independent", "AdamW", torch.optim.AdamW),
        ("sgdw", "decoupled", "SGDW", torch.optim.SGD),
        ("adam_l2", "l2", "AdamL2", torch.optim.Adam),
        ("adamw", "l2", "AdamL2", torch.optim.Adam),
        ("sgd_l2", "l2", "SGDL2", torch.optim.SGD),
        ("adam_l2", "none", "AdamW", torch.optim.AdamW),
    ],
)
def test_classes(name: str, style: str, cls: str, base: type) -> None:
    config = {"name": name, "weight_decay": 0.01, "decay": {"style": style}}
    optimizer = configure_optimizers(Lit(), config)["optimizer"]
    assert (type(optimizer).__name__, isinstance(optimizer, base)) == (cls, True)
    if style == "l2":
        assert not isinstance(optimizer, torch.optim.AdamW)


def test_hyperparameters_reach_the_optimizer() -> None:
    adam = configure_optimizers(Lit(), {**ADAMW, "betas": [0.8, 0.9], "eps": 1e-6, "amsgrad": True})["optimizer"]
    assert (adam.defaults["betas"], adam.defaults["eps"], adam.defaults["amsgrad"]) == ((0.8, 0.9), 1e-6, True)
    sgd = configure_optimizers(Lit(), {"name": "sgdw", "momentum": 0.5, "nesterov": True})["optimizer"]
    assert [(g["momentum"], g["nesterov"]) for g in sgd.param_groups] == [(0.5, True)] * 2
    cautious = configure_optimizers(Lit(), {**ADAMW, "decay": {"cautious": True}})["optimizer"]
    assert [g["cautious"] for g in cautious.param_groups] == [True, True]


def test_the_lr_multiplier_scales_the_decay_of_decoupled_not_of_independent() -> None:
    rules = {"rules": [{"name": "2.*", "lr": 10}]}
    for style, fraction in (("decoupled", 0.1 * 0.01 * 10), ("independent", 0.1)):
        config = {**ADAMW, "decay": {"style": style}, "mask": rules}
        head = configure_optimizers(Lit().net, config)["optimizer"].param_groups[2]
        assert (head["name"], head["lr"], head["base_lr"]) == ("decay_lr_x10", 0.1, 0.1)
        from lightning_wd.decay import step_fraction

        d = step_fraction(style, weight_decay=head["weight_decay"], lr=head["lr"], base_lr=head["base_lr"])
        assert d == pytest.approx(fraction)


def test_with_fabric() -> None:
    fabric = L.Fabric(accelerator="cpu", devices=1)
    net = Lit().net
    built = configure_optimizers(net, {**ADAMW, "decay": {"style": "constant"}, "weight_decay": 0.5})
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    model, optimizer = fabric.setup(net, built["optimizer"])
    fabric.backward(model(torch.zeros(2, 4)).sum() * 0)
    optimizer.step()
    after = dict(net.named_parameters())
    torch.testing.assert_close(after["0.weight"], before["0.weight"] * 0.5)
    torch.testing.assert_close(after["0.bias"], before["0.bias"], rtol=0, atol=0)


# --- steps ---


@pytest.mark.parametrize(
    ("keywords", "total", "epoch"),
    [
        ({}, 16, 8),
        ({"accumulate_grad_batches": 3}, 6, 3),
        ({"max_steps": 5, "max_epochs": -1}, 5, 8),
        ({"limit_train_batches": 2}, 4, 2),
    ],
)
def test_steps_are_optimizer_steps(keywords: dict[str, Any], total: int, epoch: int, tmp_path: Path) -> None:
    normalized = Lit({"name": "adamw", "lr": 0.01, "decay": {"style": "independent", "normalized": 0.05}})
    group = fit(normalized, tmp_path, **keywords).optimizers[0].param_groups[0]
    assert group["weight_decay"] == pytest.approx(0.05 / total**0.5)
    timescale = Lit({"name": "adamw", "lr": 0.01, "decay": {"timescale_epochs": 4}})
    group = fit(timescale, tmp_path, **keywords).optimizers[0].param_groups[0]
    assert group["weight_decay"] == pytest.approx(1 / (0.01 * 4 * epoch))


class Endless(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        while True:
            yield torch.zeros(4)


@pytest.mark.parametrize("amount", ["normalized", "timescale_epochs"])
@pytest.mark.parametrize("case", ["iterable", "max_time", "manual", "accumulation", "no trainer"])
def test_unknown_steps_ask_for_the_two_arguments(amount: str, case: str, tmp_path: Path) -> None:
    style, value = ("independent", 0.05) if amount == "normalized" else ("decoupled", 50.0)
    config = {"name": "adamw", "lr": 0.01, "decay": {"style": style, amount: value}}
    keywords: dict[str, Any] = {"max_epochs": 2}
    module = Lit(config)
    if case == "iterable":
        module.train_dataloader = lambda: torch.utils.data.DataLoader(Endless(), batch_size=4)  # type: ignore[method-assign]
    elif case == "max_time":
        if amount == "timescale_epochs":
            pytest.skip("the length of an epoch is known under max_time")
        keywords = {"max_time": "00:00:10:00", "max_epochs": None}
    elif case == "manual":
        module.automatic_optimization = False
    elif case == "accumulation":
        from lightning.pytorch.callbacks import GradientAccumulationScheduler

        keywords["callbacks"] = [GradientAccumulationScheduler({0: 1, 1: 2})]
    attempt = module.configure_optimizers if case == "no trainer" else lambda: fit(module, tmp_path, **keywords)
    with pytest.raises(wd.ConfigError) as caught:
        attempt()
    assert f"optimizer.decay.{amount} needs the number of optimizer steps" in str(caught.value)
    assert "total_steps=<optimizer steps of the run>, steps_per_epoch=" in str(caught.value)
    if case in ("iterable", "max_time"):  # a setting of the trainer helps too: the one that is named
        setting = "max_steps" if amount == "normalized" else "limit_train_batches"
        assert f"fix: set trainer.{setting}" in str(caught.value)
        weight_decay = fit(module, tmp_path, **keywords, **{setting: 4}).optimizers[0].param_groups[0]["weight_decay"]
        assert weight_decay == pytest.approx(value / 4**0.5 if amount == "normalized" else 1 / (0.01 * value * 4))


def test_given_steps_are_taken() -> None:
    config = {"name": "sgdw", "decay": {"style": "independent", "normalized": 0.05}}
    group = configure_optimizers(Lit(), config, total_steps=2500)["optimizer"].param_groups[0]
    assert group["weight_decay"] == pytest.approx(1e-3)


# --- schedules ---


def lrs(built: dict[str, Any], steps: int, group: int = 0) -> list[float]:
    """Return the learning rate of each step."""
    values = []
    for _ in range(steps):
        values.append(built["optimizer"].param_groups[group]["lr"])
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step()
    return values


def test_warmup_cosine_steps_each_optimizer_step(tmp_path: Path) -> None:
    module = Lit(ADAMW, {"name": "warmup_cosine", "warmup_steps": 4, "eta_min": 0.5})
    seen: list[float] = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            seen.append(optimizer.param_groups[0]["lr"])

    made = fit(module, tmp_path, callbacks=[Watch()])
    config = made.lr_scheduler_configs[0]
    assert (config.interval, config.frequency) == ("step", 1)
    from lightning_wd.schedules import warmup_cosine

    expected = [0.01 * warmup_cosine(t, total_steps=16, warmup_steps=4, eta_min=0.5) for t in range(16)]
    assert seen == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("none", None),
        (None, None),
        ({}, None),
        ("constant", [1] * 6),
        ({"name": "constant", "warmup_steps": 0.2}, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ({"name": "wsd", "warmup_steps": 0, "decay_steps": 0.4}, [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        ({"name": "cosine_restarts", "first_cycle_epochs": 1}, [1, 0.5, 1, 0.853553, 0.5, 0.146447, 1]),
        ({"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2, "gamma": 0.5}, [1, 1, 0.5, 0.5, 0.25]),
        ({"name": "StepLR", "step_size": 2, "gamma": 0.5, "interval": "epoch"}, [1, 1, 0.5, 0.5, 0.25]),
        (functools.partial(torch_schedulers.StepLR, step_size=2, gamma=0.5), [1, 1, 0.5, 0.5, 0.25]),
        (lambda optimizer: torch_schedulers.ExponentialLR(optimizer, 0.5), [1, 0.5, 0.25]),
        ({"scheduler": functools.partial(torch_schedulers.StepLR, step_size=1, gamma=0.5)}, [1, 0.5, 0.25]),
    ],
)
def test_every_form_of_schedule(config: Any, expected: list[float] | None) -> None:
    built = configure_optimizers(Lit(), ADAMW, config, total_steps=10, steps_per_epoch=2)
    if expected is None:
        assert set(built) == {"optimizer"}
        return
    assert lrs(built, len(expected)) == pytest.approx([0.01 * eta for eta in expected], rel=1e-5)
    told = config["interval"] if isinstance(config, dict) and "interval" in config else "step"
    assert built["lr_scheduler"]["interval"] == told


def test_a_schedule_per_epoch_counts_epochs() -> None:
    config = {"name": "warmup_cosine", "warmup_steps": 0, "interval": "epoch"}
    built = configure_optimizers(Lit(), ADAMW, config, total_steps=40, steps_per_epoch=10)
    assert built["lr_scheduler"]["scheduler"].settings["total_steps"] == 4


def test_plateau_watches_a_metric(tmp_path: Path) -> None:
    config = {"name": "ReduceLROnPlateau", "patience": 0, "monitor": "train/loss", "threshold": 10.0, "mode": "max"}
    made = fit(Lit(ADAMW, config), tmp_path, max_epochs=3)
    assert made.lr_scheduler_configs[0].reduce_on_plateau
    assert made.lr_scheduler_configs[0].interval == "epoch"
    assert made.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.1**2)
    with pytest.raises(wd.ConfigError, match="needs the metric to watch"):
        configure_optimizers(Lit(), ADAMW, "ReduceLROnPlateau")


@pytest.mark.parametrize("scheduler", ["OneCycleLR", "CyclicLR"])
def test_a_schedule_with_its_own_peak_redefines_lr0(scheduler: str) -> None:
    """OneCycleLR writes max_lr/25 into lr and initial_lr: reckoned from that, decay would be 25 times too strong."""
    keywords: dict[str, Any] = {"max_lr": 0.5}
    if scheduler == "CyclicLR":
        keywords |= {"base_lr": 0.05, "step_size_up": 5}
    config = {
        "name": "adamw",
        "lr": 123.0,
        "decay": {"style": "independent"},
        "weight_decay": 0.25,
        "mask": {"rules": [{"name": "2.*", "lr": 0.1}]},
    }

    def built() -> dict[str, Any]:
        return configure_optimizers(Lit().net, config, {"name": scheduler, **keywords}, total_steps=10)

    assert {g["name"]: g["base_lr"] for g in built()["optimizer"].param_groups} == {
        "decay": 0.5,
        "no_decay": 0.5,
        "decay_lr_x0.1": 0.05,
        "no_decay_lr_x0.1": 0.05,
    }
    peaks = [max(lrs(built(), 10, group)) for group in range(4)]
    assert peaks == pytest.approx([0.5, 0.5, 0.05, 0.05])


def test_a_list_of_peaks_is_one_for_each_group() -> None:
    build = functools.partial(configure_optimizers, Lit(), ADAMW, total_steps=10)
    built = build({"name": "OneCycleLR", "max_lr": [0.5, 0.25]})
    assert [g["base_lr"] for g in built["optimizer"].param_groups] == [0.5, 0.25]
    with pytest.raises(wd.ConfigError, match=r"max_lr has 3 entries for 2 parameter groups"):
        build({"name": "OneCycleLR", "max_lr": [1, 2, 3]})


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"name": "warmup_cosine", "frequency": 2}, 20),
        ({"name": "warmup_cosine", "interval": "epoch"}, 4),
        ({"name": "OneCycleLR", "max_lr": 1.0, "frequency": 2}, 20),
        ({"name": "OneCycleLR", "max_lr": 1.0, "interval": "epoch"}, 4),
    ],
)
def test_a_schedule_ends_with_the_run_whatever_its_clock(config: dict[str, Any], length: int) -> None:
    built = configure_optimizers(Lit(), ADAMW, config, total_steps=40, steps_per_epoch=10)
    scheduler = built["lr_scheduler"]["scheduler"]
    ours = isinstance(scheduler, LRSchedule)
    assert (scheduler.settings["total_steps"] if ours else scheduler.total_steps) == length


def test_normalized_under_restarts_says_how_to_follow_the_cycles() -> None:
    config = {"name": "adamw", "decay": {"style": "independent", "normalized": 0.05}}
    with pytest.warns(UserWarning, match=r"resolved for the whole run[\s\S]*callbacks=decay_restarts"):
        configure_optimizers(Lit(), config, "cosine_restarts", total_steps=40, steps_per_epoch=10)


def test_a_schedule_longer_than_the_run_warns() -> None:
    with pytest.warns(UserWarning, match="warms up and decays for 100 steps, but the run has 10"):
        configure_optimizers(Lit(), ADAMW, {"name": "warmup_cosine", "warmup_steps": 100}, total_steps=10)


# --- resume ---


def test_on_resume_of_the_schedule() -> None:
    def built(total: int, lr: float, on_resume: str = "checkpoint") -> dict[str, Any]:
        config = {**ADAMW, "lr": lr, "on_resume": on_resume}
        return configure_optimizers(Lit(), config, {"name": "warmup_cosine", "warmup_steps": 0}, total_steps=total)

    first = built(10, 0.01)
    lrs(first, 5)
    saved = [first["optimizer"].state_dict(), first["lr_scheduler"]["scheduler"].state_dict()]

    def resumed(*args: Any) -> float:
        again = built(*args)
        again["optimizer"].load_state_dict(copy.deepcopy(saved[0]))
        again["lr_scheduler"]["scheduler"].load_state_dict(copy.deepcopy(saved[1]))
        return float(again["optimizer"].param_groups[0]["lr"])

    assert resumed(10, 0.01) == pytest.approx(0.005)
    with pytest.warns(UserWarning, match="learning-rate schedule of the checkpoint differs"):
        assert resumed(20, 0.01) == pytest.approx(0.005)
    with (
        pytest.warns(UserWarning, match=r"checkpoint's settings differ"),
        pytest.warns(UserWarning, match=r"(?s)schedule of the checkpoint differs.*now: the configured one is used"),
    ):
        assert resumed(20, 0.02, "config") == pytest.approx(0.02 * 0.853553, rel=1e-5)
    with pytest.raises(wd.CheckpointMismatchError, match="learning-rate schedule of the checkpoint differs"):
        resumed(20, 0.01, "error")


COSINE = {"name": "warmup_cosine", "warmup_steps": 4}
STEP = {"name": "StepLR", "step_size": 2, "gamma": 0.5}


@pytest.mark.parametrize(
    ("saved", "configured", "names", "config_lrs"),
    [
        (COSINE, None, ("LRSchedule()", "none"), [0.01, 0.01]),
        (None, COSINE, ("none", "LRSchedule()"), [0.002, 0.004]),  # from its start: the checkpoint has no point of it
        (STEP, COSINE, ("StepLR(gamma=0.5, step_size=2)", "LRSchedule()"), [0.008, 0.01]),
        (COSINE, STEP, ("LRSchedule()", "StepLR(gamma=0.5, step_size=2)"), None),  # config cannot be had with StepLR
    ],
    ids=["removed", "added", "to ours", "to torch's"],
)
def test_another_kind_of_schedule_is_refused_or_taken(
    saved: Any, configured: Any, names: tuple[str, str], config_lrs: list[float] | None
) -> None:
    """Lightning restores schedules by position: one that is gone left its mid-run rate, one that is new began anew."""

    def built(schedule: Any, on_resume: str = "checkpoint") -> dict[str, Any]:
        return configure_optimizers(Lit(), {**ADAMW, "lr": 0.01, "on_resume": on_resume}, schedule, total_steps=40)

    first = built(saved)
    first["optimizer"].step()
    if saved:
        lrs(first, 3)
    state = first["optimizer"].state_dict()
    for on_resume in ("checkpoint", "error"):
        with pytest.raises(wd.CheckpointMismatchError) as caught:
            built(configured, on_resume)["optimizer"].load_state_dict(copy.deepcopy(state))
        assert f"another learning-rate schedule.\n  found: {names[0]}\n  valid: {names[1]}\n" in str(caught.value)
    for group in state["param_groups"]:
        del group["lr_scheduler"]
    built(configured)["optimizer"].load_state_dict(copy.deepcopy(state))  # as older versions saved it
    if config_lrs is None:
        return
    second = built(configured, "config")
    with pytest.warns(UserWarning, match=rf"lr_scheduler is {re.escape(names[0])} in the checkpoint"):
        second["optimizer"].load_state_dict(first["optimizer"].state_dict())
    if saved and configured:
        with pytest.warns(UserWarning, match="now: the configured one is used"):
            second["lr_scheduler"]["scheduler"].load_state_dict(first["lr_scheduler"]["scheduler"].state_dict())
        assert not {"gamma", "step_size"} & vars(second["lr_scheduler"]["scheduler"]).keys()
    group = second["optimizer"].param_groups[0]
    seen = [group["lr"]]
    if configured:
        second["optimizer"].step()
        second["lr_scheduler"]["scheduler"].step()
    assert [*seen, group["lr"]] == pytest.approx(config_lrs)
    assert group["lr_scheduler"] == names[1]


def test_settings_of_torchs_schedules_are_compared() -> None:
    """torch restores the checkpoint's without a word."""
    first = configure_optimizers(Lit(), ADAMW, STEP)
    state, changed = first["optimizer"].state_dict(), {**STEP, "gamma": 0.9}
    words = r"lr_scheduler is StepLR\(gamma=0.5, step_size=2\) in the checkpoint, StepLR\(gamma=0.9, step_size=2\) in"
    with pytest.warns(UserWarning, match=words):
        configure_optimizers(Lit(), ADAMW, changed)["optimizer"].load_state_dict(copy.deepcopy(state))
    with pytest.raises(wd.CheckpointMismatchError, match=words):
        configure_optimizers(Lit(), {**ADAMW, "on_resume": "error"}, changed)["optimizer"].load_state_dict(state)


def test_the_state_of_another_class_of_schedule_is_refused() -> None:
    """In a checkpoint whose groups do not name their schedule."""
    step = configure_optimizers(Lit(), ADAMW, STEP)["lr_scheduler"]["scheduler"].state_dict()
    ours = configure_optimizers(Lit(), ADAMW, COSINE, total_steps=40)["lr_scheduler"]["scheduler"]
    with pytest.raises(
        wd.CheckpointMismatchError,
        match=r"found: checkpoint a state with step_size, gamma.*(?s:.*)or write lr_scheduler",
    ):
        ours.load_state_dict(step)


def test_on_resume_config_refuses_learning_rates_that_the_schedule_brings_back() -> None:
    step = {"name": "StepLR", "step_size": 2}
    saved = configure_optimizers(Lit(), {**ADAMW, "lr": 0.02}, step)["optimizer"].state_dict()

    def load(schedule: Any, **changed: Any) -> Any:
        optimizer = configure_optimizers(Lit(), {**ADAMW, "lr": 0.02, "on_resume": "config", **changed}, schedule)
        optimizer["optimizer"].load_state_dict(copy.deepcopy(saved))
        return optimizer["optimizer"].param_groups[0]

    words = (
        r"on_resume=config cannot replace the learning rates that its schedule restores.\n  found: lr_scheduler StepLR"
    )
    with pytest.raises(wd.CheckpointMismatchError, match=words):
        load(step, lr=0.01)
    with pytest.raises(wd.CheckpointMismatchError, match="cannot replace the learning rates"):
        load({"name": "ExponentialLR", "gamma": 0.9})
    with pytest.warns(UserWarning, match="weight_decay is .* in the checkpoint, 0.5 in the configuration"):
        assert load(step, weight_decay=0.5)["weight_decay"] == 0.5
    with pytest.warns(UserWarning, match="style 'decoupled'"):
        assert load(step, name="adam_l2")["style"] == "l2"


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    config = {"name": "sgdw", "lr": 0.1, "decay": {"style": "independent"}, "weight_decay": 0.01}
    schedule = {"name": "warmup_cosine", "warmup_steps": 3}
    torch.manual_seed(0)
    start = copy.deepcopy(Lit(config, schedule, batches=4).state_dict())
    whole = Lit(config, schedule, batches=4)
    whole.load_state_dict(start)
    fit(whole, tmp_path, max_epochs=4)

    half = Lit(config, schedule, batches=4, total_steps=16)
    half.load_state_dict(start)
    fit(half, tmp_path, max_epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    resumed = Lit(config, schedule, batches=4)
    fit(resumed, tmp_path, max_epochs=4, ckpt_path=str(tmp_path / "half.ckpt"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


# --- hyperparameters ---


def test_a_config_survives_save_hyperparameters(tmp_path: Path) -> None:
    rules = [{"name": "net.2.*", "decay": 0.5, "module_types": ["Linear"]}]
    config = OptimizerConfig(**ADAMW, betas=[0.9, 0.95], mask=wd.Mask(rules))
    schedule = LRSchedulerConfig(name="constant", warmup_steps=2)
    from lightning.pytorch.loggers import CSVLogger

    made = fit(Lit(config, schedule), tmp_path, logger=CSVLogger(tmp_path, "", ""))
    path = tmp_path / "x.ckpt"
    made.save_checkpoint(path)
    loaded = torch.load(path, weights_only=True)["hyper_parameters"]
    assert loaded["optimizer"] == dict(config)
    assert isinstance(loaded["optimizer"], dict)
    assert not isinstance(loaded["optimizer"], OptimizerConfig)
    again = Lit.load_from_checkpoint(path, weights_only=True)
    assert groups_of(again.configure_optimizers()["optimizer"]).keys() == {"decay_x0.5", "decay", "no_decay"}
    written = yaml.safe_load((tmp_path / "hparams.yaml").read_text())
    assert written["optimizer"] == dict(config)
    assert written["lr_scheduler"] == dict(schedule)


@pytest.mark.parametrize("merged", [True, False])
def test_what_hydra_hands_over_as_omegaconf_still_resumes(merged: bool, tmp_path: Path) -> None:
    """Hydra merges keywords through OmegaConf, which turns a config into a DictConfig."""
    from omegaconf import OmegaConf

    if merged:
        node = {"_target_": f"{__name__}.Lit", "batches": 4}
        module = instantiate(node, optimizer=OptimizerConfig(**ADAMW), lr_scheduler=LRSchedulerConfig(name="constant"))
    else:
        module = Lit(OmegaConf.create(ADAMW), OmegaConf.create({"name": "constant"}), batches=4)
    assert OmegaConf.is_config(module.hparams.optimizer)
    fit(module, tmp_path, max_epochs=1).save_checkpoint(tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True)["hyper_parameters"]["optimizer"]["name"] == "adamw"


def test_numbers_of_numpy_become_plain(tmp_path: Path) -> None:
    import numpy as np

    config = OptimizerConfig(name="adamw", weight_decay=np.float64(0.1), betas=[np.float64(0.9), 0.99])
    schedule = LRSchedulerConfig(name="wsd", warmup_steps=np.float64(0.1))
    assert type(config["weight_decay"]) is type(config["betas"][0]) is type(schedule["warmup_steps"]) is float
    assert yaml.safe_load(yaml.dump(dict(config)))["weight_decay"] == 0.1


def test_a_mask_of_classes_is_kept_by_name_and_a_predicate_only_in_code() -> None:
    rules = [wd.Rule(0.5, module_types=(torch.nn.Linear,))]
    config = OptimizerConfig(name="adamw", mask=wd.Mask(rules))
    assert config["mask"]["rules"] == [{"module_types": ["torch.nn.modules.linear.Linear"], "decay": 0.5}]
    assert groups_of(configure_optimizers(Lit().net, config)["optimizer"])["decay_x0.5"] == [
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    ]
    head = wd.Mask([wd.Rule(0.0, predicate=lambda name, parameter, module: name.startswith("2."))])
    with pytest.raises(wd.ConfigError, match=r"a rule with a predicate[\s\S]*build it in configure_optimizers"):
        OptimizerConfig(name="adamw", mask=head)
    built = configure_optimizers(Lit().net, {"name": "adamw", "mask": head})["optimizer"]
    assert groups_of(built)["decay"] == ["0.weight"]


def test_a_mapping_may_come_first_with_keywords_over_it() -> None:
    assert OptimizerConfig({"name": "sgdw", "lr": 1.0}, lr=3.0)["lr"] == 3.0
    with pytest.raises(wd.ConfigError, match=r"optimizer\.bogus is not a setting"):
        OptimizerConfig({"name": "sgdw"}, bogus=1)


def test_a_config_copies_as_itself_and_pickles_as_plain_data() -> None:
    config = OptimizerConfig(**ADAMW)
    assert type(copy.deepcopy(config)) is type(config.copy()) is OptimizerConfig
    plain = pickle.loads(pickle.dumps(config))
    assert plain == dict(config)
    assert not isinstance(plain, OptimizerConfig)
    assert config() == dict(config)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda: OptimizerConfig(params=[1]),
        lambda: OptimizerConfig(**ADAMW)(params=[1]),
        lambda: OptimizerConfig(**ADAMW)([1]),
        lambda: functools.partial(OptimizerConfig, **ADAMW)([1]),
        lambda: configure_optimizers(Lit(), functools.partial(OptimizerConfig, **ADAMW)),
        lambda: configure_optimizers(Lit(), {**ADAMW, "_partial_": True}),
        lambda: configure_optimizers(
            Lit(), instantiate({"_target_": "lightning_wd.OptimizerConfig", "_partial_": True, **ADAMW})
        ),
        lambda: instantiate({"_target_": "lightning_wd.OptimizerConfig", "_partial_": True, **ADAMW})(params=[1]),
    ],
)
def test_a_left_over_partial_is_refused(misuse: Any) -> None:
    with pytest.raises((wd.ConfigError, InstantiationException)) as caught:
        misuse()
    error = caught.value if isinstance(caught.value, wd.ConfigError) else caught.value.__cause__
    assert isinstance(error, wd.ConfigError)
    assert "wd.configure_optimizers(self, self.hparams.optimizer" in str(error)
    assert "_partial_: true" in str(error)


# --- refusals ---


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "adamww"}, ["optimizer.name 'adamww' is unknown", "nearest: 'adamw'", "adam_l2", "fix: write"]),
        ({"weight_decy": 1}, ["optimizer.weight_decy is not a setting of adamw", "nearest: 'weight_decay'"]),
        ({"lr": "abc"}, ["optimizer.lr must be a number >= 0 but got 'abc'"]),
        ({"lr": -1}, ["optimizer.lr must be a number >= 0 but got -1"]),
        ({"lr": "1e-4"}, ["optimizer.lr must be a number >= 0 but got '1e-4'", "write 1.0e-4"]),
        ({"weight_decay": float("nan")}, ["optimizer.weight_decay must be a number >= 0 but got nan"]),
        (
            {"weight_decay": 0.1, "decay": {"normalized": 0.05}},
            ["more than one amount", "optimizer.weight_decay=0.1, optimizer.decay.normalized=0.05"],
        ),
        ({"decay": {"style": "l2", "normalized": 0.05}}, ["style 'l2' cannot be given by normalized=0.05"]),
        ({"decay": {"normalised": 0.05}}, ["optimizer.decay.normalised is not a setting", "nearest: 'normalized'"]),
        ({"decay": {"style": "decopled"}}, ["optimizer.decay.style 'decopled'", "nearest: 'decoupled'"]),
        ({"decay": "independent"}, ["optimizer.decay must be a mapping but got 'independent'"]),
        (
            {"name": "adam_l2", "decay": {"style": "independent"}},
            ["optimizer=adam_l2 is the L2 form", "fix: write optimizer=adamw optimizer/decay=independent"],
        ),
        ({"name": "sgd_l2", "decay": {"style": "decoupled"}}, ["fix: write optimizer=sgdw optimizer/decay=decoupled"]),
        (
            {"name": "sgdw", "amsgrad": True},
            ["optimizer.amsgrad is not a setting of sgdw", "belongs to adamw", "override /optimizer: sgdw"],
        ),
        ({"betas": [0.9]}, ["optimizer.betas must be 2 numbers but got [0.9]"]),
        ({"betas": [0.9, 1.0]}, ["optimizer.betas[1] must lie in [0, 1) but got 1.0"]),
        ({"fused": "yes"}, ["optimizer.fused must be one of true, false, null but got 'yes'"]),
        ({"amsgrad": 1}, ["optimizer.amsgrad must be one of true, false but got 1"]),
        ({"name": ["adamw"]}, ["optimizer.name ['adamw'] is unknown"]),
        ({"name": "sgdw", "momentum": 1.5}, ["optimizer.momentum must lie in [0, 1) but got 1.5"]),
        ({"name": "sgdw", "momentum": 0.0, "nesterov": True}, ["optimizer sgdw cannot be built: Nesterov momentum"]),
        ({"fused": True, "foreach": True}, ["optimizer adamw cannot be built", "optimizer.fused=True"]),
        ({"decay": {"typical": {"adm": 3}}}, ["optimizer.decay.typical.adm is not a setting", "nearest: 'adam'"]),
        ({"decay": {"cautious": "yes"}}, ["optimizer.decay.cautious must be true or false but got 'yes'"]),
        ({"on_resume": "chekpoint"}, ["optimizer.on_resume 'chekpoint' is unknown", "nearest: 'checkpoint'"]),
        ({"_target_": "torch.optim.AdamW"}, ["optimizer._target_ is 'torch.optim.AdamW'", "optimizer.name"]),
    ],
)
def test_optimizer_settings_refused(config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(wd.ConfigError) as caught:
        configure_optimizers(Lit(), config)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("warmup_cosin", ["lr_scheduler 'warmup_cosin'", "nearest: 'warmup_cosine'"]),
        ("StepL", ["nearest: 'torch.optim.lr_scheduler.StepLR'"]),
        ("os.system", ["lr_scheduler 'os.system' is not a schedule of this package"]),
        ({"name": "wsd", "warmup": 3}, ["lr_scheduler.warmup is not a setting of 'wsd'", "nearest: 'warmup_steps'"]),
        ({"name": "wsd", "warmup_steps": 3.5}, ["a whole number of steps, or a fraction of the run below 1"]),
        ({"name": "wsd", "eta_min": 2}, ["lr_scheduler.eta_min is a multiplier of the peak lr, in [0, 1]"]),
        ({"name": "StepLR", "step": 3}, ["lr_scheduler.step is not an argument of StepLR", "nearest: 'step_size'"]),
        ({"name": "StepLR"}, ["lr_scheduler StepLR cannot be built", "step_size"]),
        ({"name": "wsd", "interval": "steps"}, ["lr_scheduler.interval 'steps' is unknown", "nearest: 'step'"]),
        ({"name": ["wsd"]}, ["lr_scheduler ['wsd'] is not a schedule"]),
        ({"name": "wsd", "strict": "no"}, ["lr_scheduler.strict must be true or false but got 'no'"]),
        ({"name": "wsd", "monitor": 5}, ["lr_scheduler.monitor must be a metric's name but got 5"]),
        ({"scheduler": lambda optimizer: None, "inteval": "step"}, ["'inteval' is unknown", "nearest: 'interval'"]),
        ({"name": "OneCycleLR", "max_lr": []}, ["lr_scheduler.max_lr is an empty list"]),
        ({"name": "StepLR", "step_size": "abc"}, ["lr_scheduler.step_size must be a number > 0 but got 'abc'"]),
        ({"name": "StepLR", "step_size": 0}, ["lr_scheduler.step_size must be a number > 0 but got 0"]),
        (
            lambda optimizer: torch_schedulers.OneCycleLR(optimizer, max_lr=0.5, total_steps=10),
            ["brings its own peak learning rate", "functools.partial(OneCycleLR, max_lr=...)"],
        ),
        ({"name": "wsd", "frequency": 0}, ["lr_scheduler.frequency must be a whole number >= 1 but got 0"]),
    ],
)
def test_schedule_settings_refused(config: Any, words: list[str]) -> None:
    with pytest.raises(wd.ConfigError) as caught:
        configure_optimizers(Lit(), ADAMW, config, total_steps=10)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_built_scheduler_is_refused() -> None:
    other = torch.optim.SGD(Lit().parameters(), lr=1)
    with pytest.raises(wd.ConfigError, match="already built on another optimizer"):
        configure_optimizers(Lit(), ADAMW, torch_schedulers.ConstantLR(other))
    assert issubclass(LRSchedule, torch_schedulers.LRScheduler)
