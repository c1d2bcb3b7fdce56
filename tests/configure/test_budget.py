"""Optimizer steps of a run and of an epoch: read from the trainer, given, or asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.lit import Endless, Lit, fit

import lightning_wd as wd
from lightning_wd.configure import configure_optimizers


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
        weight_decay = fit(module, tmp_path, **{**keywords, setting: 4}).optimizers[0].param_groups[0]["weight_decay"]
        assert weight_decay == pytest.approx(value / 4**0.5 if amount == "normalized" else 1 / (0.01 * value * 4))


def test_given_steps_are_taken() -> None:
    config = {"name": "sgdw", "decay": {"style": "independent", "normalized": 0.05}}
    group = configure_optimizers(Lit(), config, total_steps=2500)["optimizer"].param_groups[0]
    assert group["weight_decay"] == pytest.approx(1e-3)
