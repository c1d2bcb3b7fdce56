"""What was read when configuring holds at the first step; the reports it answers are in tests/field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.lit import Lit, fit, trainer
from lightning.pytorch.callbacks import LearningRateFinder

import lightning_wd as wd


class ByAttribute(Lit):
    """A learning rate that finders may set; ``config`` is the rest of the optimizer's."""

    def __init__(self, lr_scheduler: Any = None, **config: Any) -> None:
        super().__init__(None, lr_scheduler)
        self.lr, self.config = 1e-5, {"name": "adamw", **config}

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, {**self.config, "lr": self.lr}, self.hparams["lr_scheduler"])


class FinderAt(LearningRateFinder):
    """The finder of Lightning's documentation: it searches again where an epoch begins."""

    def __init__(self, *epochs: int) -> None:
        super().__init__(1e-4, 1.0, 30, early_stop_threshold=None)
        self.epochs, self.rates = epochs, [0.0]

    def on_fit_start(self, *args: Any) -> None:
        pass

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch in self.epochs:
            self.lr_find(trainer, pl_module)
            self.rates.append(float(self.optimal_lr.suggestion()))  # type: ignore[arg-type, union-attr]


def fractions(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return ``d_t`` of each group whose style is independent."""
    return [group["lr"] / group["base_lr"] * group["weight_decay"] for group in optimizer.param_groups]


def test_a_finder_in_the_middle_of_the_run(tmp_path: Path) -> None:
    module = ByAttribute(weight_decay=1e-4, decay={"style": "independent"})
    finder, schedule = FinderAt(1, 2), wd.DecaySchedule("linear", end=0.0)
    made = fit(module, tmp_path, callbacks=[finder, schedule], max_epochs=6)
    group = made.optimizers[0].param_groups[0]
    assert group["lr"] == group["base_lr"] == finder.rates[-1] != 1e-5
    assert group["weight_decay"] == pytest.approx(0.0)  # after the last step of 48
    assert schedule.state_dict()["steps"] == [48]


def test_rules_keep_their_own_rates(tmp_path: Path) -> None:
    rules = [{"name": "net.0.*", "lr": 1e-4}, {"name": "net.2.*", "lr_mult": 0.1}]
    module = ByAttribute("constant", weight_decay=1.0, mask={"rules": rules})
    finder = LearningRateFinder(1e-4, 1.0, 30, early_stop_threshold=None)
    made = fit(module, tmp_path, callbacks=[finder], max_epochs=6)
    found: Any = finder.optimal_lr.suggestion()  # type: ignore[union-attr]
    rates = {name: group["lr"] for group in made.optimizers[0].param_groups for name in group["param_names"]}
    assert rates["net.0.weight"] == 1e-4
    assert rates["net.2.weight"] == pytest.approx(0.1 * found)
    assert rates["net.1.weight"] == pytest.approx(found)


def test_parameters_that_join_have_the_found_rate(tmp_path: Path) -> None:
    module = ByAttribute("constant", weight_decay=1e-4, decay={"style": "independent"})
    finder = LearningRateFinder(1e-4, 1.0, 30, early_stop_threshold=None)
    masked = wd.MaskedFinetuning(freeze=["net.0.*"], unfreeze={1: ["net.0.*"]})
    made = fit(module, tmp_path, callbacks=[finder, masked], max_epochs=6)
    found = finder.optimal_lr.suggestion()  # type: ignore[union-attr]
    groups = made.optimizers[0].param_groups
    assert [group["name"] for group in groups] == ["decay", "no_decay", "decay_epoch_1", "no_decay_epoch_1"]
    assert [rate for group in groups for rate in (group["base_lr"], group["lr"])] == pytest.approx([found] * 8)


def test_restarts_follow_the_found_rate(tmp_path: Path) -> None:
    """The normalized amount of each cycle: ``lam_norm / sqrt(T_i)``, whatever the rate is."""
    module = ByAttribute({"name": "cosine_restarts", "first_cycle_epochs": 2}, decay={"normalized": 0.05})
    finder = LearningRateFinder(1e-4, 1.0, 30, early_stop_threshold=None)
    made = fit(module, tmp_path, callbacks=[finder, wd.DecaySchedule("restarts")], max_epochs=6)
    found: Any = finder.optimal_lr.suggestion()  # type: ignore[union-attr]
    group = made.optimizers[0].param_groups[0]
    assert group["base_weight_decay"] * found == pytest.approx(0.05 / 48**0.5)


def test_limits_that_a_callback_changes_as_training_starts(tmp_path: Path) -> None:
    class Longer(wd.DecayPlanSummary):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_start(trainer, pl_module)
            trainer.fit_loop.max_epochs = 3

    module = Lit({"lr": 1e-3, "decay": {"timescale_runs": 1}}, "warmup_cosine")
    schedule = wd.DecaySchedule("linear", end=0.0)
    made = fit(module, tmp_path, callbacks=[schedule, Longer()])
    scheduler: Any = made.lr_scheduler_configs[0].scheduler
    assert (scheduler.settings["total_steps"], scheduler.last_epoch) == (24, 24)
    assert schedule.state_dict()["total_steps"] == 24
    assert made.optimizers[0].param_groups[0]["base_weight_decay"] == pytest.approx(1 / (1e-3 * 24))


def test_a_fit_again_under_on_resume_config(tmp_path: Path) -> None:
    """A resumed run that is longer takes the amount of its own length."""
    path = str(tmp_path / "saved.ckpt")
    config = {"lr": 1e-3, "decay": {"timescale_runs": 1}, "on_resume": "config"}
    fit(Lit(config, "constant"), tmp_path).save_checkpoint(path)
    with pytest.warns(UserWarning, match="weight_decay is 62.5 in the checkpoint, 31.25 in the configuration"):
        made = fit(Lit(config, "constant"), tmp_path, path, max_epochs=4)
    assert made.optimizers[0].param_groups[0]["weight_decay"] == pytest.approx(31.25)


def test_manual_optimization_reads_once(tmp_path: Path) -> None:
    class Manual(Lit):
        def __init__(self) -> None:
            super().__init__({"lr": 1e-3, "weight_decay": 0.1}, "constant")
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            optimizer = self.optimizers()
            for group in optimizer.param_groups:  # type: ignore[union-attr]
                group["lr"] = 1e-3 * (1 + batch_idx)  # a schedule of its own, which is no new peak
            optimizer.zero_grad()  # type: ignore[union-attr]
            self.manual_backward(self.net(batch).square().mean())
            optimizer.step()  # type: ignore[union-attr]

    made = trainer(tmp_path)
    made.fit(Manual())
    assert {group["base_lr"] for group in made.optimizers[0].param_groups} == {1e-3}


def test_a_plain_module_is_left_as_it_is() -> None:
    module = torch.nn.Linear(2, 2)
    built = wd.configure_optimizers(module, {"lr": 1e-3, "decay": {"timescale_runs": 1}}, total_steps=10)
    built["optimizer"].param_groups[0]["lr"] = 1.0
    module(torch.ones(1, 2)).sum().backward()
    built["optimizer"].step()
    assert built["optimizer"].param_groups[0]["base_lr"] == 1e-3
