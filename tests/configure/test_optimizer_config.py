"""The optimizer's config: what it accepts, what it refuses and in which words, and how it travels."""

from __future__ import annotations

import copy
import functools
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.lit import ADAMW, Lit, fit, groups_of
from hydra.errors import InstantiationException
from hydra.utils import instantiate

import lightning_wd as wd
from lightning_wd import errors
from lightning_wd.configure import LRSchedulerConfig, OptimizerConfig, configure_optimizers
from lightning_wd.errors import as_typed


def test_a_config_survives_save_hyperparameters(tmp_path: Path) -> None:
    rules = [{"name": "net.2.*", "wd_mult": 0.5, "module_types": ["Linear"]}]
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
    rules = [wd.Rule(wd_mult=0.5, module_types=(torch.nn.Linear,))]
    config = OptimizerConfig(name="adamw", mask=wd.Mask(rules))
    assert config["mask"]["rules"] == [{"module_types": ["torch.nn.modules.linear.Linear"], "wd_mult": 0.5}]
    assert groups_of(configure_optimizers(Lit().net, config)["optimizer"])["decay_x0.5"] == [
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    ]
    head = wd.Mask([wd.Rule(wd_mult=0.0, predicate=lambda name, parameter, module: name.startswith("2."))])
    with pytest.raises(wd.ConfigError, match=r"a rule with a predicate[\s\S]*build it in configure_optimizers"):
        OptimizerConfig(name="adamw", mask=head)
    built = configure_optimizers(Lit().net, {"name": "adamw", "mask": head})["optimizer"]
    assert groups_of(built)["decay"] == ["0.weight"]


def test_a_mapping_may_come_first_with_keywords_over_it() -> None:
    assert OptimizerConfig({"name": "sgdw", "lr": 1.0}, lr=3.0)["lr"] == 3.0
    with pytest.raises(wd.ConfigError, match="optimizer sgdw has no key 'bogus'"):
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


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "adamww"}, ["optimizer.name 'adamww' is unknown", "nearest: 'adamw'", "adam_l2", "fix: write"]),
        (
            {"weight_decy": 1},
            [
                "optimizer adamw has no key 'weight_decy'",
                "fix: write optimizer.weight_decay",
                "nearest: 'weight_decay'",
            ],
        ),
        ({"lr": "abc"}, ["optimizer.lr must be a number >= 0 but got 'abc'"]),
        ({"lr": -1}, ["optimizer.lr must be a number >= 0 but got -1"]),
        ({"lr": "1e-4"}, ["optimizer.lr must be a number >= 0 but got '1e-4'", "write 1.0e-4"]),
        ({"weight_decay": float("nan")}, ["optimizer.weight_decay must be a number >= 0 but got nan"]),
        (
            {"weight_decay": 0.1, "decay": {"normalized": 0.05}},
            ["more than one amount", "optimizer.weight_decay=0.1, optimizer.decay.normalized=0.05"],
        ),
        (
            {"decay": {"style": "l2", "normalized": 0.05}},
            ["style 'l2' cannot be given by optimizer.decay.normalized=0.05"],
        ),
        ({"decay": {"normalised": 0.05}}, ["optimizer.decay has no key 'normalised'", "nearest: 'normalized'"]),
        ({"decay": {"style": "decopled"}}, ["optimizer.decay.style 'decopled'", "nearest: 'decoupled'"]),
        (
            {"decay": "independnt"},
            [
                "optimizer.decay must be a mapping but got 'independnt'",
                "fix: write optimizer/decay=independent, or in Python decay={'style': 'independent'}",
            ],
        ),
        ({"corrected_weight_decay": True}, ["fix: timm's corrected_weight_decay=True is style 'corrected'"]),
        ({"decay": {"style": "normalized"}}, ["optimizer.decay.style 'normalized'", "optimizer/decay=normalized"]),
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
        (
            {"betas": [0.9, 1.0]},
            [
                "optimizer.betas[1] must be a number >= 0 and < 1 but got 1.0",
                "fix: set optimizer.betas[1] to <a finite",
            ],
        ),
        ({"fused": "yes"}, ["optimizer.fused must be true, false or null but got 'yes'"]),
        ({"amsgrad": 1}, ["optimizer.amsgrad must be true or false but got 1"]),
        ({"name": ["adamw"]}, ["optimizer.name ['adamw'] is unknown"]),
        ({"name": "sgdw", "momentum": 1.5}, ["optimizer.momentum must be a number >= 0 and < 1 but got 1.5"]),
        ({"name": "sgdw", "momentum": 0.0, "nesterov": True}, ["optimizer sgdw cannot be built: Nesterov momentum"]),
        ({"fused": True, "foreach": True}, ["optimizer adamw cannot be built", "optimizer.fused=True"]),
        ({"decay": {"typical": {"adm": 3}}}, ["optimizer.decay.typical has no key 'adm'", "nearest: 'adam'"]),
        ({"decay": {"cautious": "yes"}}, ["optimizer.decay.cautious must be true or false but got 'yes'"]),
        (
            {"decay": {"corrected_on": "invariant"}},
            ["fix: no batch is there when", "--batch", "Write optimizer/decay=decoupled, and a rule for each"],
        ),
        ({"on_resume": "chekpoint"}, ["optimizer.on_resume 'chekpoint' is unknown", "nearest: 'checkpoint'"]),
        ({"_target_": "torch.optim.AdamW"}, ["optimizer._target_ is 'torch.optim.AdamW'", "optimizer.name"]),
    ],
)
def test_optimizer_settings_refused(config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(wd.ConfigError) as caught:
        configure_optimizers(Lit(), config)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_config_is_read_only() -> None:
    config = OptimizerConfig(**ADAMW)
    for change in (
        lambda: config.__setitem__("lr", -1.0),
        lambda: config.update(lr=-1.0),
        lambda: config.pop("lr"),
        lambda: config.setdefault("x", 1),
    ):
        with pytest.raises(wd.ConfigError, match="OptimizerConfig is read-only: it was checked when it was built"):
            change()
    assert OptimizerConfig.of({**config, "lr": 0.5})["lr"] == 0.5
    assert OptimizerConfig.of(config) is config


@pytest.mark.parametrize(
    "amount",
    [
        {"weight_decay": 0.1234},
        {"weight_decay": 0.1234, "decay": {"style": "constant"}},
        {"decay": {"normalized": 0.1234}},
        {"decay": {"timescale_epochs": 0.1234}},
        {"decay": {"timescale_runs": 0.1234, "style": "independent"}},
    ],
    ids=str,
)
def test_each_setting_is_checked_at_most_twice(amount: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the config to a built optimizer: once at the config's door, once by the optimizer's constructor."""
    checked: list[Any] = []

    def counted(check: Any) -> Any:
        def counting(name: str, value: object, *args: Any, **bounds: Any) -> Any:
            checked.append((name, value))
            return check(name, value, *args, **bounds)

        return counting

    checks = {"number": counted(errors.number), "choice": counted(errors.choice)}
    for module in [m for n, m in sys.modules.items() if n.startswith("lightning_wd")]:
        for name in checks.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, checks[name])
    config = OptimizerConfig(name="adamw", lr=0.4321, betas=[0.87, 0.98], eps=1.5e-7, **amount)
    built = configure_optimizers(Lit(), config, total_steps=100, steps_per_epoch=10)["optimizer"]
    first, second = built.param_groups
    assert first["style"] == second["style"] == config.decay.style
    for value in (0.4321, 0.1234, 0.87, 0.98, 1.5e-7, first["weight_decay"], config.decay.style):
        assert [v for _, v in checked].count(value) <= 2, [c for c in checked if c[1] == value]
    assert ("optimizer.decay.style", config.decay.style) in checked


def test_an_amount_in_runs() -> None:
    """2505.13738: tau = 1 / (lr * lam), as a part of the run."""
    config = {"name": "adamw", "lr": 0.01, "decay": {"timescale_runs": 0.5}}
    group = configure_optimizers(Lit(), config, total_steps=400)["optimizer"].param_groups[0]
    assert group["weight_decay"] == pytest.approx(1 / (0.01 * 0.5 * 400))
    with pytest.raises(wd.ConfigError, match=r"optimizer\.decay\.timescale_runs needs the number of optimizer steps"):
        configure_optimizers(Lit(), config)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: OptimizerConfig(cautious=True),
            "optimizer adamw has no key 'cautious'.(?s:.*)write optimizer.decay.cautious, or",
        ),
        (lambda: OptimizerConfig(wd=0.1), "nearest: 'weight_decay'\n  fix: write optimizer.weight_decay, or"),
        (
            lambda: LRSchedulerConfig(name="wsd", eta_min=0.1),
            "lr_scheduler 'wsd' has no key 'eta_min'.(?s:.*)write lr_scheduler.min_lr_factor, a factor of lr",
        ),
        (lambda: OptimizerConfig(decay={"style": "palm"}), "fix: PaLM's d_t = lr_t\\^2 \\* lam is style 'corrected'"),
        (lambda: OptimizerConfig(decay={"style": "PaLM"}), "fix: PaLM's d_t = lr_t\\^2 \\* lam is style 'corrected'"),
        (lambda: OptimizerConfig(fixed_decay=True), "no key 'fixed_decay'.(?s:.*)fix: .*style 'constant'"),
        (lambda: OptimizerConfig(decouple_lr=True), "no key 'decouple_lr'.(?s:.*)fix: .*style 'independent'"),
        (lambda: OptimizerConfig(decoupled=True), "no key 'decoupled'.(?s:.*)fix: write optimizer/decay=decoupled"),
        (lambda: OptimizerConfig(decay={"weight_decay": 1}), "fix: write optimizer.weight_decay: the amount"),
        (lambda: OptimizerConfig(decay={"cautious_wd": True}), "fix: write optimizer.decay.cautious, or"),
        (lambda: OptimizerConfig(name="muon", decay={"style": "l2"}), "muon does not do optimizer.decay.style 'l2'"),
        (lambda: OptimizerConfig(name="adafactor", decay={"style": "l2"}), "adafactor does not do"),
    ],
)
def test_old_and_foreign_names_are_told_the_new_one(make: Any, words: str) -> None:
    with pytest.raises(wd.ConfigError, match=words):
        make()


def test_an_error_of_the_mask_is_spelled_where_the_optimizer_is() -> None:
    with (
        as_typed({"optimizer": "model.optimizer"}),
        pytest.raises(wd.MaskError, match=r"\Amodel.optimizer.mask.base 'foo'"),
    ):
        OptimizerConfig(mask={"base": "foo"})
