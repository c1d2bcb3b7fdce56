"""A learning-rate finder sets a rate that the schedule, or the decay, does not know.

https://github.com/Lightning-AI/pytorch-lightning/issues/21068 (pytorch-lightning#21068; also #21030, #16787)

There: the rate that ``LearningRateFinder`` has found is lost when training starts, because the optimizer was built
before. Here: it is the peak from the first step on, for each group times its own multiplier, for the schedule, and for
the amount of decay. ``d_t`` at the peak stays the configured one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from helpers.lit import Lit, fit
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import Tuner

import lightning_wd as wd


class Searching(Lit):
    """Its learning rate is an attribute, as finders want it; it keeps the rate and ``d_t`` of each step of the fit."""

    def __init__(self, lr_scheduler: Any = None, lr: float = 1e-5, **optimizer: Any) -> None:
        super().__init__(None, lr_scheduler)
        self.lr, self.wanted = lr, {"name": "adamw", **optimizer}

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, {**self.wanted, "lr": self.lr}, self.hparams["lr_scheduler"])


class Rates(L.Callback):
    """The groups as each step of the fit finds them; Lightning takes callbacks away while it searches."""

    def __init__(self) -> None:
        self.groups: list[list[dict[str, Any]]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.groups.append([dict(group) for group in optimizer.param_groups])


def searched(
    module: Searching, tmp_path: Path, **keywords: Any
) -> tuple[LearningRateFinder, list[list[dict[str, Any]]]]:
    finder, rates = LearningRateFinder(1e-4, 1.0, 30, early_stop_threshold=None), Rates()
    fit(module, tmp_path, max_epochs=6, callbacks=[finder, rates], **keywords)
    return finder, rates.groups


@pytest.mark.parametrize("lr_scheduler", [None, "constant", "warmup_cosine", {"name": "StepLR", "step_size": 100}])
@pytest.mark.parametrize("style", ["decoupled", "independent", "corrected"])
def test_the_found_rate_is_the_peak(style: str, lr_scheduler: Any, tmp_path: Path) -> None:
    module = Searching(
        lr_scheduler, weight_decay=1e-2, decay={"style": style}, mask={"rules": [{"name": "net.0.*", "lr_mult": 0.5}]}
    )
    finder, groups = searched(module, tmp_path)
    found: Any = finder.optimal_lr.suggestion()  # type: ignore[union-attr]
    assert found not in (None, 1e-5)
    assert module.lr == found
    schedule = wd.schedules.warmup_cosine if lr_scheduler == "warmup_cosine" else None
    for t, step in enumerate(groups):
        eta = 1.0 if schedule is None else schedule(t, total_steps=48, warmup_steps=2)
        for group in step:
            mult = 0.5 if "lr_mult" in group["name"] or "net.0" in " ".join(group["param_names"]) else 1.0
            assert group["base_lr"] == pytest.approx(found * mult)
            assert group["lr"] == pytest.approx(found * mult * eta)
            assert group["weight_decay"] == (1e-2 if group["weight_decay"] else 0.0)


def test_a_timescale_is_that_of_the_found_rate(tmp_path: Path) -> None:
    module = Searching(decay={"timescale_epochs": 2})
    finder, groups = searched(module, tmp_path)
    found: Any = finder.optimal_lr.suggestion()  # type: ignore[union-attr]
    (amount,) = {group["weight_decay"] for step in groups for group in step if group["name"] == "decay"}
    assert amount == pytest.approx(1 / (found * 2 * 8))


def test_under_a_peak_of_the_schedules_own(tmp_path: Path) -> None:
    module = Searching({"name": "OneCycleLR", "max_lr": 1e-5}, weight_decay=1e-4, decay={"style": "independent"})
    finder, groups = searched(module, tmp_path)
    found: Any = finder.optimal_lr.suggestion()  # type: ignore[union-attr]
    assert max(group["lr"] for step in groups for group in step) == pytest.approx(found, rel=1e-2)
    (peak,) = {group["base_lr"] for step in groups for group in step}
    assert peak == pytest.approx(found)


def test_a_tuner_asks_before_the_fit(tmp_path: Path) -> None:
    module = Searching("constant", weight_decay=1e-4, decay={"style": "independent"})
    rates = Rates()
    trainer = L.Trainer(
        max_epochs=2,
        callbacks=[rates],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    search: Any = Tuner(trainer).lr_find(module, min_lr=1e-4, max_lr=1.0, num_training=30, early_stop_threshold=None)
    found = search.suggestion()
    trainer.fit(module)
    assert {(group["lr"], group["base_lr"]) for step in rates.groups for group in step} == {(found, found)}


def test_a_line_of_the_users_own(tmp_path: Path) -> None:
    class Raised(Searching):
        def on_train_start(self) -> None:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = 1e-2

    rates = Rates()
    fit(Raised("constant", weight_decay=1e-4, decay={"style": "independent"}), tmp_path, callbacks=[rates])
    assert {(group["lr"], group["base_lr"]) for step in rates.groups for group in step} == {(1e-2, 1e-2)}


def test_a_warm_up_of_the_users_own_is_no_new_peak(tmp_path: Path) -> None:
    class Warming(Searching):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = self.lr * min(1.0, (self.global_step + 1) / 10)

    rates = Rates()
    fit(Warming(lr=1e-3, weight_decay=1e-4), tmp_path, callbacks=[rates])
    assert {group["base_lr"] for step in rates.groups for group in step} == {1e-3}
