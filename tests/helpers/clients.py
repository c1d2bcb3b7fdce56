"""What must hold where our callbacks train a real project's own LightningModule, unedited."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from step_seed import StepSeed
from torch.optim import Optimizer

import lightning_wd as wd

EPOCHS, LR = 2, 1e-2
Build = Callable[[], tuple[Any, dict[str, Any]]]  # a project's module, and the data as Trainer.fit takes them


def our_callbacks() -> list[L.Callback]:
    """Return the one list of callbacks for every project: decay of one timescale, following a cosine."""
    return [
        wd.OptimizerOverride({"name": "adamw", "lr": LR, "decay": {"timescale_runs": 1}}),
        wd.DecayPlanSummary(),
        wd.DecayMonitor(every_n_steps=1),
        wd.DecaySchedule("cosine", end=0.1),
    ]


class Recorder(L.Callback):
    """What the steps did: the decay of the weights, and the parameters with a gradient that no optimizer holds."""

    def __init__(self) -> None:
        self.decays: list[float] = []  # d_t of each step, measured on the weights
        self.decays_logged: list[float] = []
        self.moved_without: list[float] = []  # the same of the tensors that do not decay
        self.forgotten: set[str] = set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        held = {id(p) for one in trainer.optimizers for group in one.param_groups for p in group["params"]}
        self.forgotten |= {n for n, p in pl_module.named_parameters() if p.grad is not None and id(p) not in held}
        self._before = {p: p.detach().clone() for group in optimizer.param_groups for p in group["params"]}

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._measure(trainer.optimizers[0])
        self.decays_logged.append(float(trainer.callback_metrics["wd/decay/d_t"]))

    def _measure(self, optimizer: Optimizer) -> None:
        """Note the part of the old weights that a step removed besides AdamW's own update."""
        for group in optimizer.param_groups:
            removed = size = 0.0
            for p in group["params"]:
                if state := optimizer.state.get(p):
                    old, (beta1, beta2), t = self._before[p].double(), group["betas"], float(state["step"])
                    second = (state["exp_avg_sq"].double() / (1 - beta2**t)).sqrt() + group["eps"]
                    update = group["lr"] * state["exp_avg"].double() / (1 - beta1**t) / second
                    removed += float(((old - update - p.detach().double()) * old).sum())
                    size += float(old.square().sum())
            into = {"decay": self.decays, "no_decay": self.moved_without}[group["name"]]
            into.append(removed / size)


def check(
    build: Build,
    folder: Path,
    no_decay: list[str],
    *,
    namespace: str = "lightning.pytorch",
    untouched: tuple[str, ...] = (),
) -> None:
    """Train a project's module with our callbacks, then again from its first epoch's checkpoint; compare both.

    Args:
        build: returns the module, and its data as keywords of ``Trainer.fit``.
        folder: where the runs write.
        no_decay: the exact names of the parameters that do not decay.
        namespace: whose Trainer the project's users take.
        untouched: parameters that get no gradient in this training, so that they do not move.
    """
    recorder = Recorder()
    plain = [fit(build, folder / "plain/whole", namespace, [])]
    whole = fit(build, folder / "ours/whole", namespace, [*our_callbacks(), recorder])
    module, steps = whole.lightning_module, whole.global_step
    (optimizer,) = whole.optimizers
    assert type(optimizer) is wd.AdamW
    assert recorder.forgotten == set()
    # weights
    still = [name for name, p in module.named_parameters() if torch.equal(p, recorder.start[name])]
    assert still == list(untouched)
    # decay: 1 / steps at the peak, along the cosine
    expected = [1 / steps * (0.1 + 0.9 / 2 * (1 + math.cos(math.pi * t / steps))) for t in range(steps)]
    assert recorder.decays_logged == pytest.approx(expected)
    assert recorder.decays == pytest.approx(expected, rel=1e-2)
    assert recorder.moved_without == pytest.approx([0.0] * steps, abs=1e-5)
    # resume
    plain += [fit(build, folder / "plain/resumed", namespace, [], folder / "plain/whole/epoch=0.ckpt")]
    resumed = fit(build, folder / "ours/resumed", namespace, our_callbacks(), folder / "ours/whole/epoch=0.ckpt")
    differ = {
        name: float((value - other).detach().abs().max())
        for (name, value), other in zip(module.named_parameters(), resumed.lightning_module.parameters(), strict=True)
        if not torch.equal(value, other)
    }
    assert differ == {}
    # words: in our plan, and what Python is made to warn of beyond what it does without us
    assert json.loads((folder / "ours/whole/decay_plan.json").read_text())["warnings"] == []
    assert (whole.said | resumed.said) - (plain[0].said | plain[1].said) == set()
    # mask
    held = [name for group in optimizer.param_groups for name in group["param_names"] if not group["weight_decay"]]
    assert sorted(held) == sorted(no_decay)


def fit(build: Build, folder: Path, namespace: str, callbacks: list[Any], ckpt_path: Any = None) -> Any:
    """Return the trainer of a fit; its ``said`` is the set of warnings that were given, without the folder's name."""
    pl = importlib.import_module(namespace)
    saving = pl.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", callbacks=[*callbacks, StepSeed(), saving], logger=False,
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        L.seed_everything(0, verbose=False)
        module, data = build()
        # These projects pickle their own classes into their checkpoints.
        trainer.fit(module, **data, ckpt_path=ckpt_path, weights_only=False)
    trainer.said = {str(warning.message).replace(str(folder.parent), "") for warning in caught}
    return trainer


def names(*patterns: str) -> list[str]:
    """Return names with their braces expanded: ``bn{1,2}.bias`` is ``bn1.bias`` and ``bn2.bias``."""
    found = []
    for pattern in patterns:
        parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
        found += ["".join(choice) for choice in itertools.product(*parts)]
    return found
