"""The checkpoints of a run: found to resume from, and written so that a complete one exists at all times.

``checkpoints/last.ckpt`` holds the last optimizer step, however the run ends; ``previous.ckpt`` is the one before it,
and ``best.ckpt`` that of the best validation.
"""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import shutil
import signal
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from lightning_wd.errors import ConfigError
from lightning_wd.optimizers.weights_file import damage
from lightning_wd.runs.folder import RunCSVLogger

__all__ = ["BestCheckpoint", "LastCheckpoint", "LoggedSteps", "find_checkpoint", "foreign"]

REQUEUE = getattr(signal, "SIGUSR2", None)  # submitit has SLURM send it before the time is over; not on Windows


# --- to resume from -------------------------------------------------------------------------------------------------


def find_checkpoint(ckpt_path: str | None, folder: Path) -> str | None:
    """Return the path of the checkpoint to resume from, or None to start from scratch.

    Args:
        ckpt_path: a path; ``last`` for this folder's last.ckpt, else the newest below ./outputs; ``previous`` for the
            one before it; or None.
        folder: the run's folder.

    Raises:
        ConfigError: it is missing, damaged (torch loads some damaged files without a word), or not a run's.
    """
    if ckpt_path is None:
        return None
    path, by_name = Path(str(ckpt_path)), ckpt_path in ("last", "previous")
    if by_name:
        own = folder / "checkpoints" / "last.ckpt"
        newest = sorted(Path("outputs").glob("**/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
        last = own if own.exists() or not newest else newest[-1]
        path = last.with_name(f"{ckpt_path}.ckpt")  # previous.ckpt of the run that `last` would be
    previous = path.with_name("previous.ckpt")
    if not path.exists():
        nowhere = " and no outputs/**/checkpoints/last.ckpt" * (by_name and not last.exists())
        kept = "ckpt_path=previous resumes from the one before it; or " * (ckpt_path == "last" and previous.exists())
        problem, found = f"ckpt_path={ckpt_path} is missing.", f"no file {path}{nowhere}"
        fix = f"{kept}give the path of a .ckpt file, or ckpt_path=null to start from scratch"
    elif wrong := damage(path):
        problem, found = f"the checkpoint {path} is damaged.", wrong
        if path.name == "last.ckpt" and previous.exists():
            fix = f"ckpt_path={'previous' if by_name else previous} resumes from the one before it"
        else:
            fix = "give the path of another one, or ckpt_path=null to start from scratch"
    elif wrong := foreign(path):
        problem, found = f"no run can resume from {path}.", wrong
        fix = "give a .ckpt file that a run has written, or ckpt_path=null to start from scratch"
    else:
        rank_zero_only(print)(f"resuming from {path}", flush=True)
        return str(path)
    raise ConfigError(problem, found=found, fix=fix)


def foreign(path: Path) -> str | None:
    """Return why Lightning cannot resume from an undamaged file or folder, or None."""
    if path.is_dir():
        if (path / "meta.pt").exists():
            return None
        inside = path / "checkpoints" / "last.ckpt"
        return f"a folder that contains {inside}" if inside.exists() else "a folder, but not a sharded checkpoint"
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError:
        return "more than plain data; loading it could run code"
    except (RuntimeError, ValueError, EOFError, KeyError) as error:
        return f"a file that torch did not write: {str(error).splitlines()[0]}"
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        return "a file of torch without a run in it, perhaps of weights only"
    return None


# --- written while training -----------------------------------------------------------------------------------------


class LoggedSteps(L.Callback):
    """Log the rows of a resumed run at the step numbers of the unbroken run.

    With ``max_steps``, Lightning counts one step too many when it resumes from the end of an epoch. This comes first
    among the callbacks, so that those that log find the right number.
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.automatic_optimization:
            _set_logged_step(trainer, trainer.global_step)


class LastCheckpoint(Checkpoint):
    """Save ``last.ckpt`` at the end of each epoch and of the run, and when Ctrl-C or SIGTERM arrives.

    The last.ckpt of this run that it replaces is kept as ``previous.ckpt``, in case the disk damages the newer one.

    A signal acts at the next optimizer step, after its validation if one is due: the checkpoint is written, on every
    rank at the same step, and the run ends. A second signal of the same kind ends the process at once. SIGUSR2 acts too
    if it has a handler, and calls it: submitit's requeues the job.

    Args:
        folder: the folder of the checkpoint.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "last.ckpt"
        self.previous = self.path.with_name("previous.ckpt")
        self.received: set[int] = set()
        self.stopping = False
        self.requeue = False
        self.trained = False
        self._handlers: dict[int, Any] = {}
        self._saved_at = -1
        self._stop_wanted = False
        self._own = False  # whether last.ckpt is of this run: only our own becomes previous.ckpt

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.trained = True
        self._saved_at = trainer.global_step
        self._own = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == self.path.resolve()
        for logger in trainer.loggers:  # a killed run has logged more steps than it has saved
            if isinstance(logger, RunCSVLogger):
                logger.rewind(trainer.global_step)
        if trainer.ckpt_path is None and trainer.is_global_zero:  # it belongs to another run
            _remove(self.previous)
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if REQUEUE is not None and callable(signal.getsignal(REQUEUE)):
                numbers.append(REQUEUE)
            for number in numbers:
                self._handlers[number] = signal.signal(number, self._receive)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._defer_stop(trainer)
        if _within_step(trainer):
            return
        self._decide(trainer)
        # a run resumed from here would skip the validation of this batch, and the end of the epoch
        if self.stopping and not _validation_due(trainer) and not _epoch_complete(trainer):
            with _plateau_stepped(trainer, "step"):
                self._save(trainer)

    # The run ends only in the hooks below: by then Lightning has logged the step.

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._stop(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._defer_stop(trainer)  # early stopping acts here
        # resumed from here, Lightning would step such a scheduler twice, the second time without its metric
        plateau_each_step = any(
            config.reduce_on_plateau and config.interval == "step" for config in trainer.lr_scheduler_configs
        )
        if self.stopping and not _epoch_complete(trainer) and not plateau_each_step:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _epoch_complete(trainer):
            _resume_is_over(trainer)
            with _plateau_stepped(trainer, "epoch"):
                self._save(trainer)
        else:  # the run ends within the epoch; Lightning has counted it, but a longer run resumes within it
            with _epoch_not_counted(trainer):
                self._save(trainer)
        self._decide(trainer)  # a signal may have come during the validation
        self._stop(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)
        self._stop(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        nothing_new = not self.trained or trainer.global_step == self._saved_at
        if nothing_new or isinstance(exception, KeyboardInterrupt) or trainer.world_size > 1:
            return  # with several ranks, the others may not come to save with this one
        try:
            self._save(trainer)
        except OSError as error:  # a full disk: the error that ended the run is the one to show
            print(f"{self.path} stays at step {self._saved_at}: {error}", flush=True)
        else:
            print(f"{self.path} holds step {trainer.global_step}; resumed, it skips the batch that failed", flush=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number in self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received.add(number)

    def _defer_stop(self, trainer: L.Trainer) -> None:
        """Let ``should_stop``, set by ``max_time`` or early stopping, act at the next optimizer step, as a signal."""
        self._stop_wanted = self._stop_wanted or trainer.should_stop
        trainer.should_stop = self._stop_wanted and not _within_step(trainer)

    def _decide(self, trainer: L.Trainer) -> None:
        """Stop, and requeue, all ranks if one of them has received a signal."""
        self.stopping = self._on_any_rank(trainer, bool(self.received))
        self.requeue = self.stopping and self._on_any_rank(trainer, REQUEUE in self.received)

    def _on_any_rank(self, trainer: L.Trainer, here: bool) -> bool:
        return here if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(here, all=False)

    def _stop(self, trainer: L.Trainer) -> None:
        if not self.stopping or trainer.global_step != self._saved_at:
            return
        words = f"\nstopped after optimizer step {trainer.global_step}; resume with ckpt_path={self.path}"
        rank_zero_only(print)(words, flush=True)
        if self.requeue and REQUEUE in self._handlers:
            self._handlers[REQUEUE](REQUEUE, None)  # submitit's exits on rank 0 and returns on the others
        raise KeyboardInterrupt  # Lightning's own way out: it closes loggers and ends the other ranks

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.global_step == self._saved_at:
            return
        written = self.path.with_name("last.ckpt.new")  # an interrupted write must not cost the old one
        trainer.save_checkpoint(written, weights_only=False)
        if trainer.is_global_zero:
            if self._own:
                _keep(self.path, self.previous)
            _move(written, self.path)
        self._saved_at, self._own = trainer.global_step, True


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, but its file is whole at every moment: the new one is written beside the old one.

    Args:
        kwargs: the arguments of :class:`lightning.pytorch.callbacks.ModelCheckpoint`.
    """

    # Private in Lightning 2.6, as are the two attributes; should it be renamed, ModelCheckpoint's own is called.
    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        written = Path(f"{filepath}.new")
        trainer.save_checkpoint(written, self.save_weights_only)
        if trainer.is_global_zero:
            _move(written, Path(filepath))
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(weakref.proxy(self))


# --- Lightning's private names --------------------------------------------------------------------------------------
# Those of 2.6 for which there is no public one. Without one of those that are read, training fails at its first step.


def _set_logged_step(trainer: L.Trainer, step: int) -> None:
    """Set the step that Lightning logs this batch's metrics at."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def _within_step(trainer: L.Trainer) -> bool:
    """Whether the optimizer step is still accumulating batches."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def _validation_due(trainer: L.Trainer) -> bool:
    """Whether Lightning validates after this batch."""
    fetcher: Any = trainer.fit_loop._data_fetcher
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def _epoch_complete(trainer: L.Trainer) -> bool:
    """Whether this batch is the last one of the epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def _resume_is_over(trainer: L.Trainer) -> None:
    """End the restart mode: in it, Lightning leaves the epoch that was resumed out of what follows."""
    trainer.fit_loop._restarting = False


@contextlib.contextmanager
def _epoch_not_counted(trainer: L.Trainer) -> Iterator[None]:
    """Save the epoch as unfinished."""
    counts: list[Any] = [trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_progress.total]
    for count in counts:
        count.processed -= 1
    yield
    for count in counts:
        count.processed += 1


@contextlib.contextmanager
def _plateau_stepped(trainer: L.Trainer, interval: str) -> Iterator[None]:
    """Put the plateau schedulers where they are after the step or epoch: Lightning steps them after the last hook."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
    states = copy.deepcopy([scheduler.state_dict() for scheduler in schedulers])
    lrs = copy.deepcopy([[group["lr"] for group in scheduler.optimizer.param_groups] for scheduler in schedulers])
    epoch_loop = trainer.fit_loop.epoch_loop
    progress = copy.deepcopy(epoch_loop.scheduler_progress)
    epoch_loop.update_lr_schedulers(interval, update_plateau_schedulers=True)
    yield
    epoch_loop.scheduler_progress = progress
    for scheduler, state, lrs_before in zip(schedulers, states, lrs, strict=True):
        scheduler.load_state_dict(state)
        for group, lr in zip(scheduler.optimizer.param_groups, lrs_before, strict=True):
            group["lr"] = lr


# --- files ----------------------------------------------------------------------------------------------------------


def _keep(path: Path, to: Path) -> None:
    """Give a file a second name, so that a complete one stays at ``path`` even if the process is killed."""
    if path.is_dir():  # a folder (a sharded checkpoint) cannot have two names
        _move(path, to)
        return
    to.unlink(missing_ok=True)
    try:
        os.link(path, to)
    except OSError:  # a file system without links
        shutil.copyfile(path, to)


def _move(path: Path, to: Path) -> None:
    if to.is_dir():
        _remove(to)
    path.replace(to)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
