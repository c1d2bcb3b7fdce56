"""A search over combinations of the Trainer's features: what was configured holds in each.

Each example is a run of a tiny module, compared at every optimizer step with the learning rate and the decay that its
settings promise for the steps that the run really took. `SEARCH_EXAMPLES=500` looks at more of them for each case,
`--hypothesis-profile=default` at other ones.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from torch import nn

import lightning_wd as wd
from lightning_wd import schedules

EXAMPLES = int(os.environ.get("SEARCH_EXAMPLES", "4"))
ROWS, LR, END, FOOT = 24, 0.01, 0.25, 0.1

# style -> d_t for lam = 1, from the learning rate and its peak
FRACTION = {
    "decoupled": lambda lr, peak: lr,
    "independent": lambda lr, peak: lr / peak,
    "constant": lambda lr, peak: 1.0,
    "corrected": lambda lr, peak: lr**2 / peak,
    "l2": lambda lr, peak: 1.0,  # the penalty itself
}
DECAYS: list[dict[str, Any]] = [
    {"weight_decay": 0.1, "decay": {"style": "decoupled"}},
    {"weight_decay": 1e-4, "decay": {"style": "independent"}},
    {"weight_decay": 1e-3, "decay": {"style": "constant"}},
    {"weight_decay": 0.1, "decay": {"style": "corrected"}},
    {"weight_decay": 1e-4, "decay": {"style": "l2"}},
    {"decay": {"style": "independent", "normalized": 0.05}},
    {"decay": {"style": "decoupled", "timescale_epochs": 2}},
    {"decay": {"style": "decoupled", "timescale_runs": 1}},
]
SCHEDULES: list[dict[str, Any] | None] = [
    None,
    {"name": "constant", "warmup_steps": 2},
    {"name": "warmup_cosine", "warmup_steps": 0.25, "min_lr_factor": FOOT},
    {"name": "wsd", "warmup_steps": 1, "decay_steps": 0.5, "min_lr_factor": FOOT},
]


@dataclass(frozen=True)
class Run:
    """The settings of one run."""

    optimizer: str
    decay: dict[str, Any]
    schedule: dict[str, Any] | None
    scheduled_decay: bool
    overridden: bool  # by OptimizerOverride, in a module that knows nothing of the package
    trainer: dict[str, Any]

    @property
    def style(self) -> str:
        return str(self.decay["decay"]["style"])

    def config(self, lr: float) -> dict[str, Any]:
        return {"name": self.optimizer, "lr": lr, **self.decay}

    def amount(self, peak: float, steps: int, per_epoch: int) -> float:
        """Return lam in the unit of the style for a run of so many steps."""
        decay = self.decay["decay"]
        if "normalized" in decay:
            return float(decay["normalized"] / math.sqrt(steps))
        if "timescale_epochs" in decay:
            return float(1 / (peak * decay["timescale_epochs"] * per_epoch))
        return 1 / (peak * decay["timescale_runs"] * steps) if "timescale_runs" in decay else self.decay["weight_decay"]

    def eta(self, t: int, steps: int) -> float:
        """Return the multiplier of the peak learning rate at step ``t`` of so many."""
        if self.schedule is None:
            return 1.0
        given = {key: value for key, value in self.schedule.items() if key != "name"}
        given |= {key: round(given[key] * steps) for key in given if key.endswith("_steps") and 0 < given[key] < 1}
        total = {} if self.schedule["name"] == "constant" else {"total_steps": steps}
        return float(getattr(schedules, self.schedule["name"])(t, **given, **total))

    def multiplier(self, t: int, steps: int) -> float:
        """Return the multiplier of the decay at step ``t`` of so many."""
        return 1 + (END - 1) * t / steps if self.scheduled_decay else 1.0


@st.composite
def runs(draw: st.DrawFn, extra: str, *, epochs_only: bool = False) -> Run:
    decay = draw(st.sampled_from(DECAYS))
    bounds: list[dict[str, Any]] = [{"max_epochs": 2}, {"max_epochs": 3}]
    if not epochs_only and extra not in ("StochasticWeightAveraging", "MaskedFinetuning"):
        bounds += [{"max_steps": 5, "max_epochs": -1}, {"max_steps": 4, "max_epochs": 3}]
    trainer = {
        **draw(st.sampled_from(bounds)),
        "accumulate_grad_batches": draw(st.sampled_from([1, 2, 4])),
        "limit_train_batches": draw(st.sampled_from([1.0, 0.5, 3])),
        "precision": draw(st.sampled_from(["32-true", "bf16-mixed"])),
    }
    return Run(
        draw(st.sampled_from(["adamw", "sgdw", "nadamw"])),
        decay,
        draw(st.sampled_from(SCHEDULES)),
        draw(st.booleans()),
        # lr_find finds the rate of the module's own optimizer, and MaskedFinetuning needs configure_optimizers
        extra not in ("LearningRateFinder", "MaskedFinetuning") and draw(st.booleans()),
        trainer,
    )


class Net(L.LightningModule):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run, self.lr, self.batch_size = run, LR, 2
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 1)

    def configure_optimizers(self) -> Any:
        if self.run.overridden:
            return torch.optim.SGD(self.parameters(), lr=1.0)
        return wd.configure_optimizers(self, self.run.config(self.lr), self.run.schedule)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.head(self.backbone(batch)).square().mean()

    def train_dataloader(self) -> Any:
        rows: Any = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader(rows, batch_size=self.batch_size)


@dataclass
class Step:
    epoch: int
    lrs: list[float]
    weight_decays: list[float]  # of the groups that are to decay
    fractions: dict[str, set[float]]  # their d_t, by style
    forgotten: list[str]


@dataclass(eq=False)
class Recorder(L.Callback):
    """What each optimizer step of a fit reads. It stands after our callbacks."""

    save_at: int | None = None
    path: Path = Path("unused")
    steps: list[Step] = field(default_factory=list)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if getattr(trainer.fit_loop, "_skip_backward", False):
            return  # SWA's last pass over the data, which updates the running statistics of BatchNorm alone
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        lost = [name for name, p in pl_module.named_parameters() if p.grad is not None and id(p) not in held]
        decaying = [group for group in optimizer.param_groups if not group["name"].startswith("no_decay")]
        lrs = [float(group["lr"]) for group in optimizer.param_groups]
        weight_decays = [float(group["weight_decay"]) for group in decaying]
        fractions: dict[str, set[float]] = {}
        for group in decaying:
            style, lr, peak = group["style"], group["lr"], group["base_lr"]
            fractions.setdefault(style, set()).add(FRACTION[style](lr, peak) * group["weight_decay"])
        self.steps.append(Step(trainer.current_epoch, lrs, weight_decays, fractions, lost))

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.save_at and not self.path.exists():
            trainer.save_checkpoint(self.path)


EXTRAS: dict[str, Callable[[], list[Any]]] = {
    "nothing": list,
    "LearningRateFinder": lambda: [LearningRateFinder(1e-4, 0.1, num_training_steps=20, early_stop_threshold=None)],
    "BatchSizeFinder": lambda: [BatchSizeFinder(init_val=2, steps_per_trial=1, max_trials=2)],
    "StochasticWeightAveraging": lambda: [StochasticWeightAveraging(1e-3, swa_epoch_start=2)],  # counted from 1
    "EMAWeightAveraging": lambda: [EMAWeightAveraging()],
    "MaskedFinetuning": lambda: [wd.MaskedFinetuning(["backbone.*"], {1: ["backbone.*"]})],
}
THEN = ["nothing", "EMAWeightAveraging", "MaskedFinetuning"]  # features that a second fit, or a resumed one, may have


def make_trainer(run: Run, extra: str, recorder: Recorder, folder: Path, **keywords: Any) -> L.Trainer:
    ours: list[L.Callback] = [wd.OptimizerOverride(run.config(LR), run.schedule)] if run.overridden else []
    ours += [wd.DecaySchedule("linear", end=END)] if run.scheduled_decay else []
    return L.Trainer(
        callbacks=[*EXTRAS[extra](), *ours, recorder], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", default_root_dir=folder,
        **{**run.trainer, **keywords},
    )  # fmt: skip


def fit(trainer: L.Trainer, module: Net, ckpt_path: Path | None = None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a run of five steps gives rise to advice
        trainer.fit(module, ckpt_path=ckpt_path)


def check(run: Run, module: Net, trainer: L.Trainer, steps: list[Step], extra: str, before: int = 0) -> None:
    """Compare each step with what the settings promise; ``before`` of the run's steps were taken by another fit."""
    total = before + len(steps)
    assert steps
    batches = math.ceil(ROWS / module.batch_size)
    limit = run.trainer["limit_train_batches"]
    batches = min(batches, limit) if isinstance(limit, int) else int(limit * batches)
    per_epoch = math.ceil(batches / run.trainer["accumulate_grad_batches"])
    peak = module.lr
    lam = run.amount(peak, total, per_epoch)
    note(f"{total} steps, {per_epoch} an epoch, peak learning rate {peak:g}, lam {lam:g}")
    for t, step in enumerate(steps, before):
        assert step.forgotten == [], f"step {t}"
        lr, multiplier = peak * run.eta(t, total), run.multiplier(t, total)
        if extra == "StochasticWeightAveraging" and step.epoch >= 1:  # it has annealed to a rate of its own
            ratios = [now / first for now, first in zip(step.weight_decays, steps[0].weight_decays, strict=True)]
            assert ratios == pytest.approx([multiplier] * len(ratios)), f"decay of step {t}"
            continue
        assert step.lrs == pytest.approx([lr] * len(step.lrs)), f"learning rate of step {t}"
        assert step.fractions.keys() <= {run.style, *(["decoupled"] if run.style == "corrected" else [])}  # the head
        for style, fractions in step.fractions.items():
            promised = lam * multiplier * FRACTION[style](lr, peak)
            assert sorted(fractions) == pytest.approx([promised] * len(fractions)), f"decay of step {t}"
    if extra != "StochasticWeightAveraging":
        check_end(run, trainer, peak)


def check_end(run: Run, trainer: L.Trainer, peak: float) -> None:
    """The schedule of the learning rate ends where the run ends, at its foot."""
    if run.schedule and run.schedule["name"] != "constant":
        scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
        assert scheduler.last_epoch == scheduler.settings["total_steps"]
        assert scheduler.get_last_lr() == pytest.approx([peak * FOOT] * len(scheduler.get_last_lr()))


def search(test: Any) -> Any:
    """Draw the examples; a failing one is not made smaller: each is a run."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(phases=[Phase.generate], max_examples=EXAMPLES, deadline=None, suppress_health_check=quiet)(test)


@pytest.mark.parametrize("extra", [*EXTRAS])
@search
@given(data=st.data())
def test_one_fit(extra: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = data.draw(runs(extra))
    recorder, module = Recorder(), Net(run)
    trainer = make_trainer(run, extra, recorder, tmp_path_factory.mktemp("run"))
    fit(trainer, module)
    assume(extra != "LearningRateFinder" or module.lr != LR)  # it finds no rate where an epoch is short
    assert module.batch_size == (4 if extra == "BatchSizeFinder" else 2)
    check(run, module, trainer, recorder.steps, extra)


@pytest.mark.parametrize("extra", THEN)
@search
@given(data=st.data())
def test_fit_again(extra: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A second fit of a trainer whose max_epochs was raised has the steps that are left, and ends where they end."""
    run = data.draw(runs(extra, epochs_only=True))
    recorder, module = Recorder(), Net(run)
    trainer = make_trainer(run, extra, recorder, tmp_path_factory.mktemp("run"))
    fit(trainer, module)
    recorder.steps.clear()
    trainer.fit_loop.max_epochs = run.trainer["max_epochs"] + 2
    fit(trainer, module)
    check(run, module, trainer, recorder.steps, extra)


@pytest.mark.parametrize("extra", THEN)
@search
@given(data=st.data())
def test_resume(extra: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    run, folder = data.draw(runs(extra)), tmp_path_factory.mktemp("run")
    saved = data.draw(st.integers(1, 2))
    first = Recorder(saved, folder / "saved.ckpt")
    fit(make_trainer(run, extra, first, folder), Net(run))
    assume(saved < len(first.steps))
    second, module = Recorder(), Net(run)
    trainer = make_trainer(run, extra, second, folder)
    fit(trainer, module, first.path)
    assert saved + len(second.steps) == len(first.steps)
    check(run, module, trainer, second.steps, extra, before=saved)


@pytest.mark.parametrize("extra", THEN)
@search
@given(data=st.data())
def test_resume_with_more_epochs(extra: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A finished run that is extended goes on to the new end."""
    run, folder = data.draw(runs(extra, epochs_only=True)), tmp_path_factory.mktemp("run")
    first = make_trainer(run, extra, Recorder(), folder)
    fit(first, Net(run))
    first.save_checkpoint(folder / "saved.ckpt")
    recorder, module = Recorder(), Net(run)
    trainer = make_trainer(run, extra, recorder, folder, max_epochs=run.trainer["max_epochs"] + 2)
    fit(trainer, module, folder / "saved.ckpt")
    assert recorder.steps
    assert [step.forgotten for step in recorder.steps] == [[]] * len(recorder.steps)
    check_end(run, trainer, LR)
    total = trainer.global_step
    if run.scheduled_decay and "weight_decay" in run.decay:
        last = recorder.steps[-1].weight_decays
        assert last == pytest.approx([run.decay["weight_decay"] * run.multiplier(total - 1, total)] * len(last))
