"""What was read when configuring holds at the first step; the reports it answers are in tests/field."""

from __future__ import annotations

import warnings
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


class Rebatched(Lit):
    """Its batch size, and so the steps of an epoch, differ from fit to fit: 32 rows."""

    batch = 4

    def train_dataloader(self) -> Any:
        rows: Any = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader(rows, batch_size=self.batch)


@pytest.mark.parametrize("how", ["fit again", "resumed", "resumed within an epoch"])
@pytest.mark.parametrize("change", [{"batch": 8}, {"batch": 2}, {"accumulate_grad_batches": 2}])
@pytest.mark.filterwarnings("ignore:.* is carried on")
def test_an_epoch_of_another_length(how: str, change: dict[str, int], tmp_path: Path) -> None:
    """The steps done were counted at the old length of an epoch, those that are left are counted at the new one."""
    path = str(tmp_path / "saved.ckpt")
    made = trainer(tmp_path, max_epochs=2, max_steps=13 if how == "resumed within an epoch" else -1)
    module = Rebatched({"lr": 1e-3, "weight_decay": 1.0}, "warmup_cosine")
    made.fit(module)
    made.save_checkpoint(path)
    module.batch = change.get("batch", 4)
    schedule = wd.DecaySchedule("linear", end=0.0)
    limits = {"max_epochs": 4, "accumulate_grad_batches": change.get("accumulate_grad_batches", 1)}
    if how == "fit again":
        made.fit_loop.max_epochs, made.accumulate_grad_batches = 4, limits["accumulate_grad_batches"]
        made.callbacks.append(schedule)  # type: ignore[attr-defined]
        made.fit(module)
    else:
        made = trainer(tmp_path, callbacks=[schedule], **limits)
        made.fit(module, ckpt_path=path)
    scheduler: Any = made.lr_scheduler_configs[0].scheduler
    assert scheduler.settings["total_steps"] == scheduler.last_epoch
    assert made.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)
    assert schedule.state_dict()["steps"] == [schedule.state_dict()["total_steps"]]


@pytest.mark.parametrize(
    ("frequency", "accumulate", "last"), [(2, 2, 8), (3, 2, 2), (3, 1, 4), (2, 1, 8), (5, 1, 2), (4, 2, 4)]
)
def test_a_schedule_that_steps_at_every_few_batches(frequency: int, accumulate: int, last: int, tmp_path: Path) -> None:
    """Lightning counts batches, within each epoch of 8."""
    module = Lit({"lr": 1e-3, "weight_decay": 1.0}, {"name": "warmup_cosine", "frequency": frequency})
    made = fit(module, tmp_path, accumulate_grad_batches=accumulate)
    scheduler: Any = made.lr_scheduler_configs[0].scheduler
    assert (scheduler.last_epoch, scheduler.settings["total_steps"]) == (last, last)


def test_a_frequency_that_never_comes(tmp_path: Path) -> None:
    module = Lit({"lr": 1e-3}, {"name": "warmup_cosine", "frequency": 9})
    with pytest.raises(wd.ConfigError, match="frequency=9 never steps the schedule"):
        fit(module, tmp_path)


def test_a_schedule_of_torch_that_has_ended(tmp_path: Path) -> None:
    lr_scheduler = {"name": "PolynomialLR", "total_iters": 16}
    path = str(tmp_path / "saved.ckpt")
    fit(Lit({"lr": 1e-3}, lr_scheduler), tmp_path).save_checkpoint(path)
    with pytest.warns(UserWarning, match="PolynomialLR has ended: the resumed run goes on at a learning rate of 0"):
        fit(Lit({"lr": 1e-3}, lr_scheduler), tmp_path, path, max_epochs=4)


def test_a_finder_in_a_resumed_run(tmp_path: Path) -> None:
    path = str(tmp_path / "saved.ckpt")
    fit(ByAttribute("constant"), tmp_path, max_epochs=6).save_checkpoint(path)
    finder = LearningRateFinder(1e-4, 1.0, 30, early_stop_threshold=None)
    with pytest.warns(
        UserWarning, match=r"but the resumed run goes on at the checkpoint's rate.*\n  found: lr0 = 1e-05"
    ):
        fit(ByAttribute("constant"), tmp_path, path, callbacks=[finder], max_epochs=12)


@pytest.mark.parametrize(("rate", "said"), [(1e-2, "a step removes 0.001 of a weight"), (1e-4, ""), (1e-3, "")])
def test_a_rate_above_the_peak_in_the_middle_of_the_run(rate: float, said: str, tmp_path: Path) -> None:
    """As StochasticWeightAveraging sets one; below the peak it is a schedule."""

    class Raised(Lit):
        def on_train_epoch_start(self) -> None:
            for group in self.trainer.optimizers[0].param_groups if self.current_epoch else ():
                group["lr"] = rate

    config = {"lr": 1e-3, "weight_decay": 1e-4, "decay": {"style": "independent"}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Raised(config), tmp_path, max_epochs=3)
    found = [str(one.message) for one in caught if "runs at a learning rate of" in str(one.message)]
    assert len(found) == bool(said)
    assert all(said in text for text in found)


def test_a_rate_that_stays_below_the_peak_without_a_schedule(tmp_path: Path) -> None:
    class Lowered(Lit):
        def on_train_start(self) -> None:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = 1e-4

    config = {"lr": 1e-3, "weight_decay": 1e-4, "decay": {"style": "independent"}}
    with pytest.warns(UserWarning, match=r"runs at a learning rate of 0.0001, .* lr0 = 0.001: a step removes 1e-05"):
        fit(Lowered(config), tmp_path)
