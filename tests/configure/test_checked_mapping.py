"""How a config knows what its user calls it, so that errors say ``model.optimizer.lr`` where that was typed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.recipe import ROOT
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.demos.boring_classes import BoringModel

import lightning_wd as wd


@pytest.fixture(autouse=True)
def _pack() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


class Net(BoringModel):
    """Its hyperparameters have names of their own."""

    def __init__(self, opt: Any = None, plan: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, self.hparams["opt"], self.hparams["plan"])


def refusal(*overrides: str) -> str:
    with pytest.raises(InstantiationException) as caught:
        instantiate(compose(overrides=list(overrides)))
    error: BaseException = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert isinstance(error, wd.ConfigError)
    return str(error)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.optimizer.lr=-1"], ["model.optimizer.lr must be", "fix: write model.optimizer.lr=1, without"]),
        (
            ["+model.optimizer.nesterov=true"],
            [
                "model.optimizer.nesterov is not a setting of adamw",
                "`optimizer@model.optimizer=adamw` without `+` on the command line",
                "`override /optimizer@model.optimizer: adamw` in the defaults list",
            ],
        ),
        (
            ["model.optimizer.name=adam_l2"],
            ["fix: write optimizer@model.optimizer=adamw optimizer/decay@model.optimizer.decay=decoupled"],
        ),
        (
            ["model.optimizer.decay.normalized=1"],
            ["found: model.optimizer.weight_decay=0.01, model.optimizer.decay.normalized=1"],
        ),
        (["model.optimizer.decay=l2"], ["fix: write optimizer/decay@model.optimizer.decay=l2, or"]),
    ],
)
def test_a_nested_group_is_called_by_its_place(overrides: list[str], words: list[str]) -> None:
    message = refusal("+optimizer@model.optimizer=adamw", *overrides)
    assert [word for word in words if word not in message] == []


def test_of_two_groups_the_one_that_is_wrong_is_named() -> None:
    message = refusal("+optimizer@optimizer.gen=adamw", "+optimizer@optimizer.disc=sgdw", "optimizer.disc.lr=-1")
    assert message.startswith("optimizer.disc.lr must be a number >= 0 but got -1.")
    assert message.endswith("fix: write optimizer.disc.lr=1, without the sign")


def test_a_model_that_hydra_builds_may_build_a_config_of_its_own() -> None:
    target = f"{__name__}.own_config"
    with pytest.raises(InstantiationException) as caught:
        instantiate({"model": {"_target_": target}})
    assert str(caught.value.__cause__).startswith("optimizer.lr must be a number >= 0 but got -1.")


def own_config() -> Any:
    return wd.OptimizerConfig(lr=-1)


@pytest.mark.parametrize("at", ["model.scheduler", "lr_scheduler"])
def test_what_is_found_later_is_called_by_the_same_place(at: str) -> None:
    config = compose(overrides=[f"+lr_scheduler@{at}=none", f"{at}.name=ReduceLROnPlateau"])
    schedule = instantiate(config)["model"]["scheduler"] if at != "lr_scheduler" else instantiate(config)[at]
    with pytest.raises(wd.ConfigError, match=rf"fix: write {at}\.monitor=val/loss"):
        Net(None, schedule).configure_optimizers()


def test_a_mapping_is_called_as_the_modules_hyperparameters_are() -> None:
    with pytest.raises(wd.ConfigError, match=r"^opt\.lr must be a number >= 0 but got -1\.[\s\S]*write opt\.lr=1, "):
        Net({"lr": -1}).configure_optimizers()
    with pytest.raises(wd.ConfigError, match=r"fix: write plan\.monitor=val/loss"):
        Net({}, {"name": "ReduceLROnPlateau"}).configure_optimizers()


def test_a_class_in_place_of_a_mapping_is_named_by_its_path() -> None:
    fix = r"fix: pass OptimizerConfig\(name='torch\.optim\.adamw\.AdamW'\) or the same keys as a dict"
    with pytest.raises(
        wd.ConfigError, match=rf"^optimizer must be a mapping, as OptimizerConfig is, but got type\.\n.*\n  {fix}"
    ):
        Net(torch.optim.AdamW).configure_optimizers()


def test_a_resumed_optimizer_says_where_on_resume_is_typed() -> None:
    def build(**settings: Any) -> torch.optim.Optimizer:
        config = compose(overrides=["+optimizer@model.optimizer=adamw"])
        optimizer = instantiate(config)["model"]["optimizer"]
        made = Net({**optimizer, **settings}) if settings else Net(optimizer)
        return made.configure_optimizers()["optimizer"]  # type: ignore[no-any-return]

    saved = build(weight_decay=0.5).state_dict()
    with pytest.warns(UserWarning, match=r"fix: write model\.optimizer\.on_resume=config to use the configured"):
        build().load_state_dict(saved)
    with pytest.warns(UserWarning, match=r"fix: write opt\.on_resume=config to use the configured"):
        build(lr=0.1).load_state_dict(saved)
