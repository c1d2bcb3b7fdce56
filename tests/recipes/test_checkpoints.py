"""Ctrl-C and SIGTERM act at an optimizer step and leave last.ckpt; the resumed run equals the unbroken one."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from checkpoints import LastCheckpoint, LoggedSteps
from helpers.recipe import TRAIN, train_here, trained
from helpers.recipe_run import Eventful, fit, rows, steps_saved
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_wd.runs.folder import RunCSVLogger

OVERRIDES = (
    "callbacks=none",
    "data.batch_size=64",
    "trainer.max_epochs=12",
    "trainer.accumulate_grad_batches=2",
    "model.dropout=0.1",
)


def interrupted(folder: Path, number: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Start the recipe, send it a signal once it has trained for an epoch, and wait for its end."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable,
        str(TRAIN),
        *OVERRIDES,
        "trainer.max_epochs=100000",
        f"hydra.run.dir={folder}",
        *overrides,
    ]
    with (folder.parent / "printed.txt").open("w") as printed:
        process = subprocess.Popen(command, cwd=folder.parent, env=env, stdout=printed, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 300
        while not (folder / "checkpoints/last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        code = process.wait(timeout=180)
    return subprocess.CompletedProcess(command, code, (folder.parent / "printed.txt").read_text(), "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_leaves_the_last_optimizer_step(number: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = interrupted(folder, number)
    assert done.returncode != 0
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    step = checkpoint["global_step"]
    assert (
        f"stopped after optimizer step {step}; resume with ckpt_path={folder / 'checkpoints/last.ckpt'}" in done.stdout
    )
    # a signal mid-epoch does not wait for the epoch's end, and never splits an accumulation window
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    epochs, steps = divmod(step, 10)  # of 19 batches, two a step
    assert batches == 19 * epochs + 2 * steps


def test_stopped_and_resumed_equals_unbroken(tmp_path: Path) -> None:
    """Stopped mid-epoch with dropout on: the same weights bit for bit, and the same metrics in the same file."""
    broken, reference = tmp_path / "broken", tmp_path / "reference"
    constant = (*OVERRIDES, "lr_scheduler=constant", "trainer.enable_progress_bar=false")
    other = trained(*OVERRIDES, "trainer.enable_progress_bar=false", folder=tmp_path / "whole")
    trained(*constant, "trainer.max_steps=25", folder=broken)
    logged = next(row for row in rows(broken) if row["train/loss"])
    with (broken / "metrics.csv").open("a", newline="") as file:  # as a kill leaves it: a step after the checkpoint
        csv.DictWriter(file, logged).writerow({**logged, "step": "29"})
    trained(*constant, folder=reference)
    trained(*constant, "ckpt_path=last", folder=broken)
    one, two = (torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (reference, broken))
    assert one["global_step"] == two["global_step"] == 12 * 10
    assert [name for name, value in one["state_dict"].items() if not torch.equal(value, two["state_dict"][name])] == []
    weights = other["model"].state_dict()
    assert not all(torch.equal(value, weights[name]) for name, value in one["state_dict"].items())  # it can fail
    losses = [[(row["step"], row["train/loss"]) for row in rows(f) if row["train/loss"]] for f in (reference, broken)]
    assert losses[0] == losses[1]


class Logging(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        out: Any = super().training_step(batch, batch_idx)
        self.log("loss", out["loss"])
        return out


@pytest.mark.parametrize("fixed", [True, False])
def test_logged_steps_continue_after_a_resume_from_the_end_of_an_epoch(fixed: bool, tmp_path: Path) -> None:
    ckpt_path = None
    ends: tuple[dict[str, Any], ...] = ({"max_epochs": 1}, {"max_steps": 12})
    for until in ends:
        trainer = L.Trainer(
            **until,
            limit_train_batches=4,
            limit_val_batches=1,
            log_every_n_steps=1,
            callbacks=[*([LoggedSteps()] if fixed else []), LastCheckpoint(tmp_path)],
            logger=RunCSVLogger(tmp_path),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Logging(), ckpt_path=ckpt_path)
        ckpt_path = tmp_path / "last.ckpt"
    steps = [int(row["step"]) for row in rows(tmp_path) if row["loss"]]
    assert (steps == list(range(12))) is fixed, steps  # without it, Lightning's own numbers


def digits(folder: Path, *callbacks: L.Callback, **settings: Any) -> tuple[Any, list[list[tuple[str, str]]]]:
    """Train on the digits, 19 batches an epoch, from last.ckpt if there is one; return the weights and rows."""
    from data.digits import Digits
    from models.mlp import MLP
    from step_seed import StepSeed

    L.seed_everything(0, workers=True, verbose=False)
    model = MLP(
        hidden=[8],
        dropout=0.1,
        optimizer={"name": "adamw", "lr": 1e-2, "weight_decay": 0.1},
        lr_scheduler=settings.pop("lr_scheduler", "constant"),
    )
    last = folder / "last.ckpt"
    ckpt_path = settings.pop("ckpt_path", last if last.exists() else None)
    data = Digits(batch_size=settings.pop("batch_size", 64))
    trainer = L.Trainer(
        accelerator="cpu",
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        callbacks=[LoggedSteps(), *callbacks, StepSeed(), LastCheckpoint(folder)],
        logger=RunCSVLogger(folder, flush_logs_every_n_steps=1),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 3, **settings},
    )
    with contextlib.suppress(SystemExit):
        trainer.fit(model, data, ckpt_path=ckpt_path)
    found = [[(row["step"], row[key]) for row in rows(folder) if row.get(key)] for key in ("train/loss", "val/loss")]
    return plain(model.state_dict()), found


def plain(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: weight.tolist() for name, weight in weights.items()}


class At(L.Callback):
    """Does something in one training batch."""

    def __init__(self, batch: int, event: Callable[[L.Trainer], None]) -> None:
        self.batch, self.event = batch, event

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            self.event(trainer)


@pytest.mark.parametrize(
    "settings",
    [{}, {"accumulate_grad_batches": 2}, {"limit_val_batches": 0}],
    ids=["", "in an accumulation window", "without validation"],
)
def test_a_run_that_max_time_or_early_stopping_ended_within_an_epoch_resumes_there(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    weights, (losses, _) = digits(tmp_path / "whole", **settings)

    def stop(trainer: L.Trainer) -> None:
        trainer.should_stop = True

    digits(tmp_path / "broken", At(24, stop), **settings)
    saved = torch.load(tmp_path / "broken/last.ckpt", weights_only=True)
    steps = 10 + 3 if "accumulate_grad_batches" in settings else 25  # to the end of the window
    assert (saved["global_step"], saved["epoch"]) == (steps, 1)
    resumed, (after, _) = digits(tmp_path / "broken", **settings)
    assert resumed == weights
    assert after == losses


@pytest.mark.parametrize(
    ("batch", "settings"),
    [(18, {}), (37, {"accumulate_grad_batches": 2}), (9, {"val_check_interval": 5})],
    ids=["at the end of the epoch", "in an accumulation window", "within it"],
)
def test_a_signal_at_the_batch_before_a_validation_does_not_cost_it(
    batch: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    unbroken = digits(tmp_path / "whole", **settings)
    folder = tmp_path / "broken"
    _, (_, before) = digits(folder, At(batch, lambda _: os.kill(os.getpid(), signal.SIGTERM)), **settings)
    assert len(before) == (batch + 1) // settings.get("val_check_interval", 19)
    assert digits(folder, **settings) == unbroken


@pytest.mark.parametrize(
    ("watch", "factor", "updates"),
    [({"monitor": "val/loss"}, 0.5, 2), ({"monitor": "train/loss", "interval": "step"}, 0.9, 3 * 19 - 1)],
    ids=["epoch", "step"],
)
@pytest.mark.parametrize("checks", [{}, {"val_check_interval": 5}], ids=["validates each epoch", "validates in it"])
def test_each_resume_keeps_every_update_of_reduce_on_plateau(
    watch: dict[str, Any], factor: float, updates: int, checks: dict[str, Any], tmp_path: Path
) -> None:
    """Lightning makes them after the last hook of a step or an epoch, but not at the end of the epoch it resumed in."""
    lowers_each_time = {"patience": 0, "threshold": 10.0, "threshold_mode": "abs", "factor": factor}
    settings = {"lr_scheduler": {"name": "ReduceLROnPlateau", **watch, **lowers_each_time}, **checks}
    for batch in (9, 37):  # within an epoch, and at the end of one
        interrupt = At(batch, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        digits(tmp_path / "broken", interrupt, **settings)
    assert digits(tmp_path / "broken", **settings) == digits(tmp_path / "whole", **settings)
    lrs = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"][0]["lr"]
        for name in ("whole", "broken")
    ]
    assert lrs == pytest.approx([1e-2 * factor**updates] * 2, rel=1e-9)
    assert lrs[0] == lrs[1]


def test_a_resume_within_an_epoch_with_another_batch_size_warns_and_the_next_epoch_is_whole(tmp_path: Path) -> None:
    digits(tmp_path, max_steps=25)
    with pytest.warns(UserWarning, match=r"found: 64 rows a batch over all processes then, 128 now"):
        digits(tmp_path / "other", batch_size=128, ckpt_path=tmp_path / "last.ckpt", max_epochs=2)
    digits(tmp_path, max_epochs=2)
    digits(tmp_path, batch_size=128)
    assert steps_saved(tmp_path) == 2 * 19 + 9


def test_a_new_run_in_the_folder_of_another_leaves_nothing_of_it(tmp_path: Path) -> None:
    digits(tmp_path)
    digits(tmp_path, ckpt_path=None, max_epochs=1)
    assert steps_saved(tmp_path) == 19
    assert not (tmp_path / "previous.ckpt").exists()
    assert [int(row["step"]) for row in rows(tmp_path) if row["train/loss"]] == list(range(19))


def test_a_signal_during_the_last_validation_stops_the_run(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        fit(Eventful(at_validation=1, event=lambda: os.kill(os.getpid(), signal.SIGINT)), tmp_path)
    assert steps_saved(tmp_path) == 8
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("then", [signal.SIGUSR2, signal.SIGTERM], ids=["alone", "with SIGTERM"])
def test_submitits_handler_requeues_the_job_once_the_step_is_saved(then: int, tmp_path: Path) -> None:
    def signals() -> None:
        for number in {signal.SIGUSR2: None, then: None}:
            os.kill(os.getpid(), number)

    requeued: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda *_: requeued.append(steps_saved(tmp_path)))
    try:
        with pytest.raises(SystemExit):
            fit(Eventful(at_batch=5, event=signals), tmp_path)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert requeued == [6]


def test_an_exception_leaves_the_last_step_and_shows_itself(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("the model's own")

    with pytest.raises(RuntimeError, match="the model's own"):
        fit(Eventful(at_batch=6, event=fail), tmp_path)
    assert steps_saved(tmp_path) == 6


def test_a_full_disk_costs_neither_the_last_checkpoint_nor_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        def no_space(*args: Any, **kwargs: Any) -> None:
            Path(args[1]).write_bytes(b"half a checkpoint")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(L.Trainer, "save_checkpoint", no_space)
        raise RuntimeError("the model's own")

    with pytest.raises(RuntimeError, match="the model's own"):
        fit(Eventful(at_batch=6, event=fail), tmp_path)
    assert steps_saved(tmp_path) == 4  # the end of the first epoch
    assert "stays at step 4: [Errno 28] No space left on device" in capsys.readouterr().out


def test_a_checkpoint_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    """Not even a last.ckpt: nothing was trained."""
    first = tmp_path / "first"
    train_here("callbacks=none", "trainer.max_epochs=1", f"hydra.run.dir={first}", cwd=tmp_path)
    ckpt = f"ckpt_path={first / 'checkpoints/last.ckpt'}"
    done = train_here(
        "optimizer=sgdw", "trainer.max_epochs=2", ckpt, f"hydra.run.dir={tmp_path / 'second'}", cwd=tmp_path, ok=False
    )
    assert done.returncode != 0
    assert "CheckpointMismatchError: the checkpoint does not fit this SGDW" in done.stderr
    assert not list((tmp_path / "second").glob("checkpoints/*"))
