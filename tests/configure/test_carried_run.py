"""``optimizer.reference`` in a run: the tuned numbers at the batch and steps of the trainer, carried over once."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.lit import Endless, Lit, fit, trainer
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader

import lightning_wd as wd
from lightning_wd.configure import configure_optimizers

TUNED = {"lr": 1e-3, "weight_decay": 0.1}
TWO_BY_32 = {"global_batch": 2, "steps": 32}  # Lit has batches of 4 rows, 8 in each of 2 epochs: T = 16


def of_group(made: Any, group: int = 0) -> tuple[float, float]:
    found = made.optimizers[0].param_groups[group]
    return found["base_lr"], found["weight_decay"]


@pytest.mark.parametrize(("accumulate", "batch", "steps"), [(1, 4, 16), (2, 8, 8), (3, 12, 6)])
@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw", "sgd_l2"])
def test_the_batch_of_a_step_counts_accumulation(
    name: str, accumulate: int, batch: int, steps: int, tmp_path: Path
) -> None:
    module = Lit({"name": name, **TUNED, "reference": TWO_BY_32})
    factor = batch / 2 if "sgd" in name else math.sqrt(batch / 2)
    lr, lam = of_group(fit(module, tmp_path, accumulate_grad_batches=accumulate))
    assert (lr, lam) == pytest.approx((1e-3 * factor, 0.1 * 32 / (factor * steps)), rel=1e-14)
    family = "sgd" if "sgd" in name else "adam"
    on_paper = wd.carry_over(1e-3, 0.1, reference=TWO_BY_32, global_batch=batch, steps=steps, family=family)
    assert (lr, lam) == on_paper


@pytest.mark.parametrize(("accumulate", "batch_size"), [(16, 4), (1, 1000), (3, 1000)])
@pytest.mark.filterwarnings("ignore:The `batch_idx` argument")
def test_a_step_sees_no_more_rows_than_an_epoch_has(accumulate: int, batch_size: int, tmp_path: Path) -> None:
    """Lightning steps at the end of an epoch, of 32 rows: B = 32, T = 2."""
    module = Sized({**TUNED, "reference": TWO_BY_32}, batch_size=batch_size)
    assert of_group(fit(module, tmp_path, accumulate_grad_batches=accumulate)) == pytest.approx((4e-3, 0.4))


def test_a_scheduler_of_accumulation_that_has_one_number(tmp_path: Path) -> None:
    """It sets the trainer's when the first epoch starts, after the summary."""
    module = Lit({**TUNED, "reference": {"global_batch": 4, "steps": 32}}, "warmup_cosine")
    made = fit(module, tmp_path, callbacks=[GradientAccumulationScheduler({0: 4}), wd.DecayPlanSummary()])
    assert of_group(made) == pytest.approx((2e-3, 0.4))  # B = 16, T = 2 epochs of 2
    plan = json.loads((tmp_path / "decay_plan.json").read_text())
    assert plan["carried_over"]["here"] == pytest.approx(
        {"global_batch": 16, "steps": 4, "lr": 2e-3, "weight_decay": 0.4}
    )
    assert (plan["total_steps"], plan["steps_per_epoch"]) == (4, 2)


@pytest.mark.parametrize(
    ("decay", "amount", "expected"),
    [  # lr is 2e-3 at B = 8, and T = 16 where T0 = 32
        ({"style": "corrected"}, {"weight_decay": 0.1}, 0.1),
        ({"style": "independent"}, {"weight_decay": 1e-4}, 2e-4),
        ({"style": "constant"}, {"weight_decay": 1e-4}, 2e-4),
        ({"style": "none"}, {"weight_decay": 0.1}, 0.0),
        ({"style": "independent", "normalized": 0.05}, {}, 0.05 / 4),
        ({"timescale_runs": 0.5}, {}, 1 / (2e-3 * 0.5 * 16)),
        ({"timescale_epochs": 5}, {}, 1 / (2e-3 * 5 * 8)),
    ],
)
def test_every_style_and_unit(decay: dict[str, Any], amount: dict[str, float], expected: float) -> None:
    config = {"lr": 1e-3, **amount, "decay": decay, "reference": TWO_BY_32}
    built = configure_optimizers(Lit(), config, total_steps=16, steps_per_epoch=8, global_batch=8)
    group = built["optimizer"].param_groups[0]
    assert (group["base_lr"], group["weight_decay"]) == pytest.approx((2e-3, expected))


def test_the_reference_itself_changes_nothing_bit_for_bit() -> None:
    rules = [{"name": "net.0.weight", "lr": 0.007, "weight_decay": 0.033}, {"name": "net.2.*", "style": "constant"}]
    config = {"lr": 0.0123, "weight_decay": 0.0457, "mask": {"rules": rules}}
    schedule = {"name": "OneCycleLR", "max_lr": 0.0789, "total_steps": 7}
    for lr_scheduler in (None, schedule):
        reference = {"global_batch": 7, "steps": 11}
        plain, carried = (
            configure_optimizers(Lit(), {**config, **extra}, lr_scheduler, total_steps=11, global_batch=7)
            for extra in ({}, {"reference": reference})
        )
        rows = [
            [{k: v for k, v in group.items() if k != "params"} for group in built["optimizer"].param_groups]
            for built in (plain, carried)
        ]
        assert rows[0] == rows[1]


def test_numbers_of_rules_are_tuned_too() -> None:
    rules = [
        {"name": "net.0.weight", "lr": 1e-2, "weight_decay": 0.4},
        {"name": "net.2.weight", "style": "independent", "weight_decay": 1e-3},
        {"name": "net.2.bias", "lr_mult": 10},
    ]
    config = {**TUNED, "mask": {"rules": rules}, "reference": TWO_BY_32}
    built = configure_optimizers(Lit(), config, total_steps=16, global_batch=8)["optimizer"]
    groups = {name: group for group in built.param_groups for name in group["param_names"]}
    assert (groups["net.0.weight"]["lr"], groups["net.0.weight"]["weight_decay"]) == pytest.approx((2e-2, 0.4))
    assert (groups["net.2.weight"]["lr"], groups["net.2.weight"]["weight_decay"]) == pytest.approx((2e-3, 2e-3))
    assert groups["net.2.bias"]["lr"] == pytest.approx(2e-2)
    assert built.decay_plan["net.0.weight"].settings == pytest.approx({"lr": 2e-2, "weight_decay": 0.4})


def test_optimizers_whose_rates_follow_the_batch_by_different_rules() -> None:
    rules = [{"name": "net.0.weight", "optimizer": "sgdw"}]
    config = {**TUNED, "mask": {"rules": rules}, "reference": TWO_BY_32}
    with pytest.raises(wd.ConfigError) as caught:
        configure_optimizers(Lit(), config, total_steps=16, global_batch=8)
    assert str(caught.value) == (
        "optimizer.reference carries lr over by the rule for adamw, which is not that of sgdw, the optimizer of "
        "net.0.weight.\n  valid: sqrt, linear, none\n  fix: write optimizer.reference.lr_rule=sqrt, the one "
        "rule for both, or remove optimizer.reference"
    )
    config["reference"] = {**TWO_BY_32, "lr_rule": "none"}
    built = configure_optimizers(Lit(), config, total_steps=16, global_batch=8)["optimizer"]
    assert {group["optimizer"]: group["lr"] for group in built.param_groups} == {"sgdw": 1e-3, "adamw": 1e-3}


def test_the_peak_of_a_schedule_is_tuned_too() -> None:
    for max_lr in (1e-3, [1e-3, 4e-3]):
        schedule = {"name": "CyclicLR", "base_lr": 1e-4, "max_lr": max_lr, "step_size_up": 8}
        config = {**TUNED, "lr": 7.0, "reference": TWO_BY_32}
        built = configure_optimizers(Lit(), config, schedule, total_steps=16, global_batch=8)
        scheduler = built["lr_scheduler"]["scheduler"]
        peaks = [2e-3, 2e-3 if max_lr == 1e-3 else 8e-3]
        assert scheduler.max_lrs == pytest.approx(peaks)
        assert [group["base_lr"] for group in built["optimizer"].param_groups] == pytest.approx(peaks)
        assert scheduler.base_lrs == pytest.approx([2e-4, 2e-4])


class Sized(Lit):
    """Its batch size is an attribute, which a finder sets: 32 rows."""

    def __init__(self, optimizer: Any = None, lr_scheduler: Any = None, batch_size: int = 4) -> None:
        super().__init__(optimizer, lr_scheduler)
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        rows: Any = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader(rows, batch_size=self.batch_size)


@pytest.mark.filterwarnings("ignore:The `batch_idx` argument")
def test_a_batch_size_finder(tmp_path: Path) -> None:
    finder = BatchSizeFinder(mode="power", steps_per_trial=1, init_val=4, max_trials=2)
    rules = [{"name": "net.0.weight", "lr": 1e-2, "weight_decay": 0.4}]
    module = Sized({**TUNED, "mask": {"rules": rules}, "reference": TWO_BY_32}, "warmup_cosine")
    made = fit(module, tmp_path, callbacks=[finder, wd.DecayPlanSummary()])
    assert module.batch_size == 8  # B = 8, T = 2 epochs of 4
    assert of_group(made) == pytest.approx((2e-3, 0.1 * 32 / (2 * 8)))
    own = next(group for group in made.optimizers[0].param_groups if "net.0.weight" in group["param_names"])
    assert (own["base_lr"], own["weight_decay"]) == pytest.approx((2e-2, 0.4 * 32 / (2 * 8)))
    here = json.loads((tmp_path / "decay_plan.json").read_text())["carried_over"]["here"]
    assert here == pytest.approx({"global_batch": 8, "steps": 8, "lr": 2e-3, "weight_decay": 0.2})


@pytest.mark.parametrize("override", [False, True])
def test_a_rate_that_a_finder_finds_is_this_runs_own(override: bool, tmp_path: Path) -> None:
    """It is not carried over, and the decay keeps its timescale: lam = lam0 * (lr0*T0)/(lr*T).

    A rate that a rule sets is carried over, and the decay beside it.
    """
    config = {**TUNED, "mask": {"rules": [{"name": "net.0.weight", "lr": 1e-2}]}, "reference": TWO_BY_32}
    finder = LearningRateFinder(1e-4, 1.0, 30, early_stop_threshold=None)
    callbacks: list[Any] = [finder, wd.DecayPlanSummary()]
    if override:
        callbacks.append(wd.OptimizerOverride(config, "constant"))
    module = Lit(None if override else config, "constant")
    module.lr = 1e-3  # type: ignore[assignment]  # what Lightning's finder asks for
    made = fit(module, tmp_path, callbacks=callbacks, max_epochs=6)
    found: Any = finder.optimal_lr.suggestion()  # type: ignore[union-attr]
    assert of_group(made) == pytest.approx((found, 0.1 * (1e-3 * 32) / (found * 48)))
    carried = json.loads((tmp_path / "decay_plan.json").read_text())["carried_over"]
    assert carried["here"]["lr"] == found
    assert carried["rules"]["lr"] == "a finder's, not the rule's 0.001414"
    ruled = next(g for g in made.optimizers[0].param_groups if "net.0.weight" in g["param_names"])
    factor = math.sqrt(2)  # B/B0 = 2
    assert (ruled["base_lr"], ruled["weight_decay"]) == pytest.approx((1e-2 * factor, 0.1 * 32 / (factor * 48)))
    if override:  # a second fit takes the rate from the first, as lr_find of a Tuner gives it
        made.callbacks.remove(finder)  # type: ignore[attr-defined]
        made.fit_loop.max_epochs = 12
        made.fit(Lit())
        assert of_group(made) == pytest.approx((found, 0.1 * (1e-3 * 32) / (found * 48)))


@pytest.mark.parametrize("by", ["tuner", "callback"])
def test_a_rate_that_an_earlier_fit_has_found_is_not_carried_over(by: str, tmp_path: Path) -> None:
    """The finder has written it into the module, in place of the tuned one."""

    class Rated(Lit):
        lr: Any = 1e-3

        def configure_optimizers(self) -> Any:
            return configure_optimizers(self, {**TUNED, "lr": self.lr, "reference": TWO_BY_32}, "constant")

    module = Rated()
    if by == "tuner":
        search: Any = Tuner(trainer(tmp_path)).lr_find(
            module, min_lr=1e-4, max_lr=1.0, num_training=30, early_stop_threshold=None
        )
    else:
        finder = LearningRateFinder(1e-4, 1.0, 30, early_stop_threshold=None)
        fit(module, tmp_path, callbacks=[finder], max_epochs=6)
        search = finder.optimal_lr
    found = search.suggestion()
    assert module.lr == found != 1e-3
    for _ in range(2):
        assert of_group(fit(module, tmp_path)) == pytest.approx((found, 0.1 * (1e-3 * 32) / (found * 16)))
    module.lr = 2e-3  # the user's own
    assert of_group(fit(module, tmp_path)) == pytest.approx((2e-3 * math.sqrt(2), 0.1 * 2 / math.sqrt(2)))


def test_an_amount_that_a_schedule_of_decay_ends_at(tmp_path: Path) -> None:
    schedule = wd.DecaySchedule("linear", end_weight_decay=0.26)
    here = Lit({**TUNED, "reference": {"global_batch": 4, "steps": 16}})  # nothing changes
    made = fit(here, tmp_path, callbacks=[schedule])
    assert made.optimizers[0].param_groups[0]["weight_decay"] == 0.26
    with pytest.raises(wd.ConfigError) as caught:
        fit(Lit({**TUNED, "reference": TWO_BY_32}), tmp_path, callbacks=[schedule])
    assert str(caught.value) == (
        "DecaySchedule ends at a weight_decay of 0.26, which optimizer.reference does not carry over.\n"
        "  found: 0.26 there is 0.3677 here\n"
        "  fix: write end_weight_decay=null and end=2.6: a multiple of an amount that is carried over"
    )


def test_a_second_fit_is_carried_from_the_tuned_numbers(tmp_path: Path) -> None:
    module = Sized({**TUNED, "reference": TWO_BY_32}, "warmup_cosine")
    made = fit(module, tmp_path)
    assert of_group(made) == pytest.approx((1e-3 * math.sqrt(2), 0.1 * 2 / math.sqrt(2)))
    module.batch_size, made.fit_loop.max_epochs = 8, 4
    made.fit(module)  # B = 8, T = 2 epochs of 4
    assert of_group(made) == pytest.approx((2e-3, 0.1 * 4 / 2))


def test_an_interrupted_run_equals_one_that_was_not(tmp_path: Path) -> None:
    config, path = {**TUNED, "reference": TWO_BY_32}, str(tmp_path / "saved.ckpt")
    torch.manual_seed(0)
    whole = Lit(config, "warmup_cosine")
    torch.manual_seed(0)
    part = Lit(config, "warmup_cosine")
    made = fit(whole, tmp_path)

    class Stop(wd.DecayPlanSummary):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(path)
            trainer.should_stop = True

    fit(part, tmp_path, callbacks=[Stop()])
    resumed = fit(Lit(config, "warmup_cosine"), tmp_path, path, callbacks=[wd.DecayPlanSummary()])
    assert of_group(resumed) == of_group(made)
    for one, other in zip(whole.parameters(), resumed.lightning_module.parameters(), strict=True):
        assert torch.equal(one, other)
    carried = json.loads((tmp_path / "decay_plan.json").read_text())["carried_over"]
    assert (carried["here"]["lr"], carried["here"]["weight_decay"]) == of_group(made)
    assert carried["rules"]["lr"] == "lr0 * sqrt(B/B0), arXiv 2205.10287"


@pytest.mark.parametrize("on_resume", ["checkpoint", "config"])
def test_a_resume_with_another_batch(on_resume: str, tmp_path: Path) -> None:
    config, path = {**TUNED, "reference": TWO_BY_32, "on_resume": on_resume}, str(tmp_path / "saved.ckpt")
    saved = fit(Sized(config, "constant"), tmp_path)
    saved.save_checkpoint(path)
    module, summary = Sized(config, "constant", batch_size=8), wd.DecayPlanSummary()
    with pytest.warns(UserWarning, match=r"\(base_lr\) is 0\.00141421.* in the checkpoint, 0\.002 in"):
        made = fit(module, tmp_path, path, max_epochs=6, callbacks=[summary])
    carried = json.loads((tmp_path / "decay_plan.json").read_text())["carried_over"]
    assert (carried["here"]["lr"], carried["here"]["weight_decay"]) == of_group(made)
    if on_resume == "checkpoint":
        assert of_group(made) == of_group(saved)
        assert carried["rules"]["lr"] == "the checkpoint's, not the rule's 0.002"
        assert carried["rules"]["weight_decay"] == "the checkpoint's, not the rule's 0.07071"
    else:  # 16 steps done, and 4 epochs of 4
        assert of_group(made) == pytest.approx((2e-3, 0.1 * 32 / (2 * 32)))


def test_what_is_unfrozen_later_is_carried_over_too(tmp_path: Path) -> None:
    rules = [{"name": "net.0.weight", "lr": 1e-2, "weight_decay": 0.4}]
    module = Lit({**TUNED, "mask": {"rules": rules}, "reference": TWO_BY_32}, "constant")
    made = fit(module, tmp_path, callbacks=[wd.MaskedFinetuning(freeze=["net.0.*"], unfreeze={1: ["net.0.*"]})])
    groups = {name: group for group in made.optimizers[0].param_groups for name in group["param_names"]}
    factor = math.sqrt(2)
    late = groups["net.0.weight"]
    assert (late["base_lr"], late["weight_decay"]) == pytest.approx((1e-2 * factor, 0.4 * 2 / factor))
    assert groups["net.0.bias"]["base_lr"] == pytest.approx(1e-3 * factor)


class Of(Lit):
    """Its training data are what ``make`` returns for a loader's data."""

    make: Any = None

    def train_dataloader(self) -> Any:
        return self.make(super().train_dataloader().dataset)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch["a"] if isinstance(batch, dict) else batch, batch_idx)


def sampled(rows: Any) -> Any:
    sampler = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(rows), 4, drop_last=True)
    return torch.utils.data.DataLoader(rows, batch_sampler=sampler)


@pytest.mark.parametrize(
    "make",
    [
        sampled,
        lambda rows: torch.utils.data.DataLoader(Endless(), batch_size=4),
        lambda rows: torch.utils.data.DataLoader(rows, batch_size=4, drop_last=True),
        lambda rows: CombinedLoader(torch.utils.data.DataLoader(rows, batch_size=4)),
    ],
)
def test_the_batch_is_read_off_the_loader(make: Any, tmp_path: Path) -> None:
    module = Of({**TUNED, "reference": {"global_batch": 1, "steps": 6}})
    module.make = make
    assert of_group(fit(module, tmp_path, max_steps=6)) == pytest.approx((2e-3, 0.05))


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (
            lambda rows: torch.utils.data.DataLoader(rows.view(8, 4, 4), batch_size=None),
            "the training data are a DataL",
        ),
        (lambda rows: {"a": torch.utils.data.DataLoader(rows, 4)}, "the training data are a dict, which has no batch_"),
        (None, "gradient accumulation changes during the run"),
    ],
)
def test_a_batch_that_is_not_known_is_asked_for(make: Any, found: str, tmp_path: Path) -> None:
    keywords: dict[str, Any] = {"max_steps": 6}
    if make is None:
        keywords["callbacks"] = [GradientAccumulationScheduler({0: 1, 1: 2})]
    module = Of({**TUNED, "reference": {"global_batch": 1, "steps": 6}})
    module.make = make or torch.utils.data.DataLoader
    with pytest.raises(wd.ConfigError) as caught:
        fit(module, tmp_path, **keywords)
    assert "optimizer.reference needs the global batch, which is not known here.\n  found: " + found in str(
        caught.value
    )
    steps = ", total_steps=<optimizer steps of the run>, steps_per_epoch=<optimizer steps of an epoch>" * (make is None)
    fix = f"fix: pass it: configure_optimizers(self, ..., global_batch=<rows that an optimizer step sees>{steps})"
    assert fix in str(caught.value)
    module.steps = {"global_batch": 4, "total_steps": 6}
    assert of_group(fit(module, tmp_path, **keywords)) == pytest.approx((2e-3, 0.05))


def test_without_a_trainer_both_numbers_are_asked_for() -> None:
    config = {**TUNED, "reference": TWO_BY_32}
    with pytest.raises(wd.ConfigError, match=r"needs the global batch.*\n  found: the module is not attached to a Tr"):
        configure_optimizers(Lit(), config, total_steps=16)
    with pytest.raises(wd.ConfigError, match=r"optimizer\.reference needs the number of optimizer st"):
        configure_optimizers(Lit(), config, global_batch=8)
    with pytest.raises(wd.ConfigError, match="global_batch must be a whole number >= 1 but got 0"):
        configure_optimizers(Lit(), config, global_batch=0)


def test_an_override_takes_a_reference_and_a_batch(tmp_path: Path) -> None:
    override = wd.OptimizerOverride({**TUNED, "reference": TWO_BY_32}, global_batch=8)
    assert of_group(fit(Lit(), tmp_path, callbacks=[override])) == pytest.approx((2e-3, 0.1))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "adam_l2"}, "optimizer.reference has no tested rule for style 'l2' of an adaptive optimizer."),
        (
            {
                "name": "torch.optim.SGD",
                "decay": {"style": "l2"},
                "reference": {**TWO_BY_32, "lr_rule": "linear"},
            },
            "optimizer.reference has no tested rule for style 'l2' of this optimizer.",
        ),
        ({"name": "muon"}, "optimizer.reference has no tested rule for the learning rate of muon."),
        ({"name": "adafactor"}, "fix: write optimizer.reference.lr_rule=none to keep lr and carry the decay over"),
        ({"reference": {"global_batch": 4}}, "optimizer.reference has no steps."),
        ({"reference": {"global_batch": 4, "stps": 4}}, "nearest: 'steps'"),
        (
            {"mask": {"rules": [{"name": "net.0.weight", "style": "l2"}]}},
            "optimizer.reference has no tested rule for st",
        ),
    ],
)
def test_what_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(wd.ConfigError) as caught:
        configure_optimizers(Lit(), {**TUNED, "reference": TWO_BY_32, **config}, total_steps=16, global_batch=8)
    assert words in str(caught.value)


def test_an_optimizer_without_a_tested_rule_takes_the_users() -> None:
    config = {"name": "muon", **TUNED, "reference": {**TWO_BY_32, "lr_rule": "none"}}
    built = configure_optimizers(Lit(), config, total_steps=16, global_batch=8)["optimizer"]
    assert {(group["name"], group["base_lr"], group["weight_decay"]) for group in built.param_groups} == {
        ("decay", 1e-3, 0.2),
        ("decay_muon", 1e-3, 0.2),
        ("no_decay", 1e-3, 0.0),
    }


def test_the_summary_says_what_was_carried_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(Lit({**TUNED, "reference": TWO_BY_32}), tmp_path, callbacks=[wd.DecayPlanSummary()], accumulate_grad_batches=2)
    assert (
        "Carried over from optimizer.reference:\n"
        "  global_batch 2 -> 8\n"
        "  steps 32 -> 8\n"
        "  lr 0.001 -> 0.002 (lr0 * sqrt(B/B0), arXiv 2205.10287)\n"
        "  weight_decay 0.1 -> 0.2 (lam0 * (lr0*T0)/(lr*T), arXiv 2405.13698)\n"
    ) in capsys.readouterr().out
    config = {"lr": 1e-3, "decay": {"style": "independent", "normalized": 0.05}, "reference": TWO_BY_32}
    fit(Lit(config), tmp_path, callbacks=[wd.DecayPlanSummary()], accumulate_grad_batches=1)
    carried = json.loads((tmp_path / "decay_plan.json").read_text())["carried_over"]
    assert carried["reference"] == {**TWO_BY_32, "lr": 1e-3}
    assert carried["rules"]["weight_decay"] == "normalized 0.05, taken as it stands"
    assert carried["remarks"] == ["normalized has a rule of its own: its timescale, in runs, is 1.41 x as long here"]


def test_more_rows_than_the_reference_saw_are_remarked(tmp_path: Path) -> None:
    config = {**TUNED, "reference": {"global_batch": 4, "steps": 4}}
    fit(Lit(config), tmp_path, callbacks=[wd.DecayPlanSummary()])
    carried = json.loads((tmp_path / "decay_plan.json").read_text())["carried_over"]
    by_parameters, by_epochs = carried["remarks"]
    assert by_parameters.startswith("4 x the reference's rows are seen: ")
    assert by_parameters.endswith("(tokens per parameter)^-0.527 (arXiv 2505.13738), here x 0.482; not applied")
    # batch 4 and 16 steps: lr and, per epoch of the same rows, steps are as there, so 0.1 keeps its timescale in epochs
    assert carried["here"] == {"global_batch": 4, "steps": 16, "lr": 1e-3, "weight_decay": 0.025}
    assert by_epochs == (
        "4 x the reference's rows are seen: if they are epochs of the same data, weight_decay 0.1 here keeps the "
        "timescale in epochs, as arXiv 2405.13698 measures it; not applied"
    )


@pytest.mark.parametrize(
    ("config", "batch", "steps", "remarks", "by_epochs"),
    [  # 50,000 rows in batches of 128 are 391 steps of an epoch, of 512 are 98, of 1024 are 49
        ({}, 512, 98, 0, ""),
        ({"name": "sgdw"}, 1024, 49, 0, ""),
        ({}, 512, 196, 2, "2.01 x: 0.2"),  # the rate is twice as large, an epoch has a quarter of the steps
        ({"decay": {"style": "independent"}}, 512, 196, 2, "2.01 x: 0.4"),
        ({"name": "sgdw"}, 512, 196, 1, "2.01 x: 0.1"),  # the rate is 4 times as large
        ({"weight_decay": 0.0}, 512, 196, 0, ""),
        ({"weight_decay": 0.0, "mask": {"rules": [{"name": "net.0.weight", "weight_decay": 0.1}]}}, 512, 196, 1, ""),
        ({"weight_decay": None, "decay": {"timescale_epochs": 5}}, 512, 196, 1, ""),
    ],
)
def test_what_is_remarked_of_the_rows(
    config: dict[str, Any], batch: int, steps: int, remarks: int, by_epochs: str
) -> None:
    """Not that the last batch of an epoch is rounded up otherwise, and nothing of a decay that is off."""
    config = {**TUNED, "reference": {"global_batch": 128, "steps": 391}, **config}
    made = configure_optimizers(Lit(), config, total_steps=steps, steps_per_epoch=98, global_batch=batch)["optimizer"]
    found = made.carried.describe(made)["remarks"]
    assert len(found) == remarks
    said = re.findall("(.* x) the .*: if they are epochs of the same data, weight_decay (.*) here", "\n".join(found))
    assert [": ".join(each) for each in said] == ([by_epochs] if by_epochs else [])


def test_what_the_yaml_files_have_is_no_reference() -> None:
    nulls = dict.fromkeys(("global_batch", "steps", "lr_rule"))
    assert wd.OptimizerConfig(reference=nulls).reference is wd.OptimizerConfig(reference=nulls)["reference"] is None
    with pytest.raises(wd.ConfigError, match=r"optimizer\.reference has no steps"):
        wd.OptimizerConfig(reference={**nulls, "global_batch": 4})


def test_a_reference_survives_a_checkpoint(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    config = wd.OptimizerConfig(**TUNED, reference=TWO_BY_32)
    made.fit(Lit(config))
    made.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)["hyper_parameters"]["optimizer"]
    assert saved["reference"] == TWO_BY_32
    assert wd.OptimizerConfig(saved).reference == config.reference
