"""OptimizerOverride on modules from elsewhere, and what it refuses."""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.small_run import CrashAfter, CrashError, Data, Net, fit, make_trainer
from lightning.pytorch.demos import LightningTransformer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.demos.lstm import LightningLSTM, SequenceSampler
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lightning_wd as wd

ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}


def groups(trainer: L.Trainer, index: int = 0) -> dict[str, tuple[float, list[str]]]:
    return {g["name"]: (g["weight_decay"], g["param_names"]) for g in trainer.optimizers[index].param_groups}


def run(module: L.LightningModule, tmp_path: Path, *callbacks: L.Callback, data: Any = None, **kw: Any) -> L.Trainer:
    trainer = make_trainer(tmp_path, *callbacks, **{"max_steps": 2, "limit_val_batches": 0, **kw})
    trainer.fit(module, data)
    return trainer


def test_the_boring_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = BoringModel()
    with caplog.at_level(logging.INFO):
        trainer = run(module, tmp_path, wd.OptimizerOverride(ADAMW, "constant"))
    assert groups(trainer) == {"decay": (0.1, ["layer.weight"]), "no_decay": (0.0, ["layer.bias"])}
    assert [type(entry.scheduler).__name__ for entry in trainer.lr_scheduler_configs] == ["LRSchedule"]
    assert (
        "OptimizerOverride replaces the optimizer of BoringModel:\n"
        "  old: SGD, groups group_0 (lr 0.1, weight_decay 0, l2), lr_scheduler StepLR\n"
        "  new: AdamW, groups decay (lr 0.01, weight_decay 0.1, decoupled), no_decay (lr 0.01, weight_decay 0, "
        "decoupled), lr_scheduler constant\n"
    ) in caplog.text
    assert "configure_optimizers" not in vars(module)  # the module is as it was


@pytest.mark.parametrize("name", ["adamw", "sgdw", "adam_l2", "nadamw"])
def test_lightnings_transformer_demo(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LightningTransformer, "prepare_data", lambda self: None)  # it downloads its text
    tokens = torch.randint(33, (8, 5))
    data = DataLoader(TensorDataset(tokens, tokens), 4)
    module = LightningTransformer(vocab_size=33)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    trainer = run(module, tmp_path, wd.OptimizerOverride(name), data=data)
    decaying = set(groups(trainer)["decay"][1])
    assert decaying == {key for key, p in module.named_parameters() if p.ndim == 2}
    assert any(not torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_lightnings_lstm_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LightningLSTM, "prepare_data", lambda self: None)  # it downloads its text
    rows = TensorDataset(torch.randint(30, (8, 3)), torch.randint(30, (8, 3)))
    data = DataLoader(rows, batch_sampler=SequenceSampler(rows, 4))
    module = LightningLSTM(vocab_size=30)
    trainer = run(module, tmp_path, wd.OptimizerOverride({**ADAMW, "name": "sgdw", "lr": 0.5}), data=data)
    assert type(trainer.optimizers[0]).__name__ == "SGDW"
    kinds = {
        name: {key.rpartition(".")[2].rstrip("_l0123") for key in keys} for name, (_, keys) in groups(trainer).items()
    }
    assert kinds == {"decay": {"weight", "weight_ih", "weight_hh"}, "no_decay": {"bias", "bias_ih", "bias_hh"}}


def test_a_transformers_model_in_a_small_wrapper(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    class Wrapper(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            config = transformers.BertConfig(
                vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
            )
            self.model = transformers.BertForSequenceClassification(config)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.model(input_ids=batch[0], labels=batch[1]).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    data = DataLoader(TensorDataset(torch.randint(20, (4, 6)), torch.zeros(4, dtype=torch.long)), 2)
    trainer = run(Wrapper(), tmp_path, wd.OptimizerOverride(ADAMW), data=data)
    decaying = groups(trainer)["decay"][1]
    assert "model.bert.encoder.layer.0.attention.self.query.weight" in decaying
    assert not [name for name in decaying if "bias" in name or "LayerNorm" in name]


def test_only_parameters_that_the_module_trains_are_trained(tmp_path: Path) -> None:
    class HeadOnly(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.head.parameters(), lr=0.1)

    module = HeadOnly()
    frozen = module.state_dict()["backbone.0.weight"].clone()
    with pytest.warns(UserWarning, match=r"no optimizer trains.\n  found: backbone\.0\.weight"):
        trainer = fit(module, tmp_path, wd.OptimizerOverride(ADAMW))
    assert groups(trainer) == {"decay": (0.1, ["head.weight"]), "no_decay": (0.0, ["head.bias"])}
    assert torch.equal(module.state_dict()["backbone.0.weight"], frozen)
    assert all(p.requires_grad for p in module.parameters())
    row = trainer.optimizers[0].decay_plan["backbone.0.weight"]  # type: ignore[attr-defined]
    assert (row.group, row.reason) == (None, "not trained by the SGD that is replaced")


@pytest.mark.parametrize("added", [False, True])
def test_a_warning_names_parameters_that_the_module_unfreezes(added: bool, tmp_path: Path) -> None:
    class Unfreezes(Net):
        def __init__(self) -> None:
            super().__init__()
            self.backbone.requires_grad_(False)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)  # it holds what is frozen, and trains it later

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.backbone.requires_grad_(True)
                if added:
                    self.trainer.optimizers[0].add_param_group({"params": self.backbone.parameters()})

    override = wd.OptimizerOverride({"name": "adamw", "fused": False})
    if added:
        fit(Unfreezes(), tmp_path, override)  # warnings are errors here
        return
    words = (
        r"no optimizer trains.*\n  found: backbone\.0\.weight, backbone\.0\.bias, .*, and 3 more\n  fix: to unfreeze"
    )
    with pytest.warns(UserWarning, match=words) as caught:
        fit(Unfreezes(), tmp_path, override)
    assert len([one for one in caught if "no optimizer trains" in str(one.message)]) == 1


def test_an_interrupted_run_resumes_with_the_override(tmp_path: Path) -> None:
    whole = BoringNet()
    fit(whole, tmp_path, wd.OptimizerOverride(ADAMW, "warmup_cosine"))
    with pytest.raises(CrashError):
        fit(BoringNet(), tmp_path, wd.OptimizerOverride(ADAMW, "warmup_cosine"), CrashAfter(7, tmp_path / "c.ckpt"))
    resumed = BoringNet()
    fit(resumed, tmp_path, wd.OptimizerOverride(ADAMW, "warmup_cosine"), ckpt_path=tmp_path / "c.ckpt")
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
    with pytest.raises(wd.CheckpointMismatchError, match="trained with another decay style"):
        fit(BoringNet(), tmp_path, wd.OptimizerOverride("adam_l2"), ckpt_path=tmp_path / "c.ckpt")


class BoringNet(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Manual(L.LightningModule):
    """A module with two optimizers, like a GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(6, 3), nn.Linear(6, 3)

    def configure_optimizers(self) -> Any:
        optimizers = [torch.optim.Adam(net.parameters()) for net in (self.generator, self.critic)]
        return optimizers, [torch.optim.lr_scheduler.StepLR(optimizer, 1) for optimizer in optimizers]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for net, optimizer in zip((self.generator, self.critic), self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(net(batch[0]).square().mean())
            optimizer.step()


def test_several_optimizers_need_an_index(tmp_path: Path) -> None:
    with pytest.raises(wd.ConfigError) as caught:
        fit(Manual(), tmp_path, wd.OptimizerOverride(ADAMW))
    assert str(caught.value) == (
        "OptimizerOverride must be told which optimizer of Manual to replace: the module has 2 optimizers.\n"
        "  found: 0: Adam, 1: Adam\n"
        "  fix: write OptimizerOverride(..., index=0), and check that the module's own calls fit the new optimizer"
    )
    trainer = fit(Manual(), tmp_path, wd.OptimizerOverride(ADAMW, index=1))
    assert [type(optimizer).__name__ for optimizer in trainer.optimizers] == ["Adam", "AdamW"]
    assert groups(trainer, 1) == {"decay": (0.1, ["critic.weight"]), "no_decay": (0.0, ["critic.bias"])}
    (schedule,) = [entry.scheduler for entry in trainer.lr_scheduler_configs]
    assert schedule.optimizer is trainer.optimizers[0]  # the replaced optimizer's own schedule is gone
    with pytest.raises(
        wd.ConfigError, match=r"index=2\) is out of range for the optimizers of Manual.\n  found: 0: Adam, 1: Adam"
    ):
        fit(Manual(), tmp_path, wd.OptimizerOverride(ADAMW, index=2))


def test_manual_optimization_needs_an_index(tmp_path: Path) -> None:
    class One(Manual):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    with pytest.raises(wd.ConfigError, match="the module has manual optimization"):
        fit(One(), tmp_path, wd.OptimizerOverride(ADAMW))


@pytest.mark.parametrize(
    "configured",
    [
        lambda o, s: o,
        lambda o, s: [o],
        lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "epoch"}},
        lambda o, s: [{"optimizer": o, "lr_scheduler": s}],
        lambda o, s: ([o], [s]),
        lambda o, s: ([o], [{"scheduler": s, "interval": "step"}]),
    ],
    ids=["optimizer", "list", "dict", "list of dicts", "two lists", "two lists of dicts"],
)
def test_every_form_that_configure_optimizers_returns(configured: Any, tmp_path: Path) -> None:
    class Form(BoringModel):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return configured(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1))

    trainer = run(Form(), tmp_path, wd.OptimizerOverride(ADAMW))
    assert [type(optimizer).__name__ for optimizer in trainer.optimizers] == ["AdamW"]
    assert trainer.lr_scheduler_configs == []


def test_what_cannot_be_replaced_is_refused(tmp_path: Path) -> None:
    class Nothing(BoringModel):
        def configure_optimizers(self) -> Any:
            return None

    class Stray(BoringModel):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([nn.Parameter(torch.ones(1)), *self.parameters()], lr=0.1)

    class Manual(Nothing):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(wd.ConfigError, match=r"Manual\.configure_optimizers returns no optimizer"):
        run(Manual(), tmp_path, wd.OptimizerOverride(ADAMW))
    with pytest.raises(wd.ConfigError, match="the SGD of Stray trains 1 tensors that are not parameters of the module"):
        run(Stray(), tmp_path, wd.OptimizerOverride(ADAMW))


def test_all_parameters_are_trained_where_the_module_configures_none(tmp_path: Path) -> None:
    class Nothing(BoringModel):
        def configure_optimizers(self) -> Any:
            return None

    module = Nothing()
    before = module.layer.weight.detach().clone()
    (optimizer,) = run(module, tmp_path, wd.OptimizerOverride(ADAMW, "constant")).optimizers
    names = {group["name"]: group["param_names"] for group in optimizer.param_groups}
    assert names == {"decay": ["layer.weight"], "no_decay": ["layer.bias"]}
    assert not torch.equal(before, module.layer.weight)


def test_settings_are_checked_before_any_training() -> None:
    with pytest.raises(wd.ConfigError, match="nearest: 'weight_decay'"):
        wd.OptimizerOverride({"name": "adamw", "weight_decy": 0.1})
    with pytest.raises(wd.ConfigError, match="OptimizerConfig is a description of what to build; it cannot be called"):
        wd.OptimizerOverride(functools.partial(wd.OptimizerConfig, name="adamw"))  # type: ignore[arg-type]
    with pytest.raises(wd.ConfigError, match="nearest: 'constant'"):
        wd.OptimizerOverride("adamw", "constnt")
    with pytest.raises(wd.ConfigError, match="index must be a whole number >= 0 but got -1"):
        wd.OptimizerOverride("adamw", index=-1)


def test_a_failed_fit_restores_the_modules_own_method(tmp_path: Path) -> None:
    class Broken(BoringModel):
        def configure_model(self) -> None:
            raise CrashError

    module, override = Broken(), wd.OptimizerOverride(ADAMW)
    with pytest.raises(CrashError):
        run(module, tmp_path, override)
    assert "configure_optimizers" not in vars(module)
    assert type(module.configure_optimizers()[0][0]).__name__ == "SGD"


def test_from_a_hydra_config(tmp_path: Path) -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    node = OmegaConf.create(
        {
            "_target_": "lightning_wd.OptimizerOverride",
            "optimizer": {
                "_target_": "lightning_wd.OptimizerConfig",
                "_convert_": "all",
                **ADAMW,
                "betas": [0.9, 0.95],
            },
            "lr_scheduler": {"name": "constant"},
        }
    )
    trainer = run(BoringModel(), tmp_path, instantiate(node))
    assert trainer.optimizers[0].param_groups[0]["betas"] == (0.9, 0.95)


class Layered(Net):
    """A rate of its own for the backbone, like RF-DETR."""

    rates = (1e-5, 1e-3)

    def configure_optimizers(self) -> Any:
        parts = zip((self.backbone, self.head), self.rates, strict=True)
        return torch.optim.AdamW([{"params": net.parameters(), "lr": lr} for net, lr in parts])


def test_a_warning_names_the_rates_that_are_lost(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="at the full rate") as caught:
        fit(Layered(), tmp_path, wd.OptimizerOverride({**ADAMW, "fused": False}))
    assert [str(one.message) for one in caught if "at the full rate" in str(one.message)] == [
        "OptimizerOverride trains 6 parameters of Layered at the full rate, 0.01, where its own AdamW has a lower "
        "one.\n"
        "  found: group_0 (lr 1e-05: backbone.0.weight, backbone.0.bias, and 4 more), group_1 (lr 0.001: head.weight, "
        "head.bias)\n"
        "  fix: give rates by rules, optimizer.mask.rules=[{name: 'backbone.*', lr_mult: 0.01}], or by depth with "
        "optimizer.mask.layer_decay where the model has numbered layers"
    ]


def test_each_rule_names_what_it_covers_and_the_warning_stays_until_all_are_there(tmp_path: Path) -> None:
    class Mixed(Layered):
        def __init__(self) -> None:
            super().__init__()
            self.pos = torch.nn.Parameter(torch.zeros(8))

        def configure_optimizers(self) -> Any:
            slow = [self.pos, *self.backbone[0].parameters()]
            rest = [*self.backbone[1:].parameters(), *self.head.parameters()]
            return torch.optim.AdamW([{"params": slow, "lr": 1e-5}, {"params": rest, "lr": 1e-3}])

    rules = [{"name": name, "lr_mult": 0.01} for name in ("pos", "backbone.0.weight", "backbone.0.bias")]
    shown = ", ".join(f"{{name: '{rule['name']}', lr_mult: 0.01}}" for rule in rules)
    with pytest.warns(UserWarning, match=f"rules=.{re.escape(shown)}."):
        fit(Mixed(), tmp_path, wd.OptimizerOverride(ADAMW))
    with pytest.warns(UserWarning, match="trains 2 parameters of Mixed at the full rate"):
        fit(Mixed(), tmp_path, wd.OptimizerOverride({**ADAMW, "mask": {"rules": rules[:1]}}))
    fit(Mixed(), tmp_path, wd.OptimizerOverride({**ADAMW, "mask": {"rules": rules}}))


def test_the_rate_that_lr_find_has_found_is_taken(tmp_path: Path) -> None:
    module: Any = Net()
    module.lr = 1e-5
    override = wd.OptimizerOverride({**ADAMW, "lr": 1e-5}, "constant")
    trainer = make_trainer(tmp_path, override, max_epochs=8)
    search: Any = Tuner(trainer).lr_find(
        module, datamodule=Data(), min_lr=1e-4, max_lr=1.0, num_training=30, early_stop_threshold=None
    )
    trainer.fit(module, Data())
    assert {group["base_lr"] for group in trainer.optimizers[0].param_groups} == {search.suggestion()}


def test_the_rules_that_the_warning_names_keep_the_rates(tmp_path: Path) -> None:
    mask = {"rules": [{"name": "backbone.*", "lr_mult": 0.01}]}
    trainer = fit(Layered(), tmp_path, wd.OptimizerOverride({**ADAMW, "lr": 1e-3, "mask": mask}))  # no warning
    rates = {name: g["lr"] for g in trainer.optimizers[0].param_groups for name in g["param_names"]}
    assert rates == {name: pytest.approx(1e-5 if name.startswith("backbone") else 1e-3) for name in rates}
    assert len(rates) == 8


def test_groups_of_one_rate_are_no_cause_to_warn(tmp_path: Path) -> None:
    module = Layered()
    module.rates = (1e-3, 1e-3)
    fit(module, tmp_path, wd.OptimizerOverride(ADAMW))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(6), torch.zeros(3))] * 8)


class ManualOne(BoringNet):
    """Manual optimization, like the modules of scvi-tools."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


@pytest.mark.filterwarnings("ignore:The lr scheduler dict contains the key")  # under manual optimization
def test_steps_that_the_trainer_cannot_know_are_passed(tmp_path: Path) -> None:
    data = DataLoader(Stream(), 4)
    with pytest.raises(wd.ConfigError) as caught:
        make_trainer(tmp_path, wd.OptimizerOverride(ADAMW, "warmup_cosine"), max_epochs=2).fit(BoringNet(), data)
    assert str(caught.value) == (
        "lr_scheduler 'warmup_cosine' needs the number of optimizer steps, which is not known here.\n"
        "  found: the length of an epoch is unknown (iterable data)\n"
        "  fix: set trainer.max_steps, or trainer.limit_train_batches to a whole number, or pass them: "
        "OptimizerOverride(..., total_steps=<optimizer steps of the run>, "
        "steps_per_epoch=<optimizer steps of an epoch>)"
    )
    for module, index in ((BoringNet(), None), (ManualOne(), 0)):
        override = wd.OptimizerOverride(
            {**ADAMW, "weight_decay": None, "decay": {"timescale_epochs": 5}},
            "warmup_cosine",
            index=index,
            total_steps=40,
            steps_per_epoch=20,
        )
        trainer = make_trainer(tmp_path, override, max_epochs=1)
        trainer.fit(module, data)
        schedule: Any = trainer.lr_scheduler_configs[0].scheduler
        assert (schedule.settings["warmup_steps"], schedule.settings["total_steps"]) == (2, 40)
        assert trainer.optimizers[0].param_groups[0]["weight_decay"] == pytest.approx(1 / (0.01 * 5 * 20))


def test_steps_are_checked_before_any_training() -> None:
    with pytest.raises(wd.ConfigError, match="total_steps must be a whole number >= 1 but got 0"):
        wd.OptimizerOverride("adamw", total_steps=0)
    with pytest.raises(
        wd.ConfigError, match=r"no key 'total_steps'.*\n.*\n  fix: pass it to wd.configure_optimizers or Op"
    ):
        wd.OptimizerOverride("adamw", {"name": "warmup_cosine", "total_steps": 8})
