"""``checkpoints/last.ckpt``: the last optimizer step of a run, however it ends; ``previous.ckpt``: the one before; and
``best.ckpt``, whole at every moment as they are.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import signal
import threading
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from lightning_wd.run import RunCSVLogger

REQUEUE = getattr(signal, "SIGUSR2", None)  # what submitit has SLURM send before the time is over; Windows has none


def damage(path: Path) -> str | None:
    """Say what is wrong with the bytes of a checkpoint, which torch loads without a look at their checksums, or None.

    Args:
        path: a checkpoint, one file. A folder (a sharded checkpoint) is not looked into.
    """
    if path.is_dir():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    # what the bytes of a header may say: no such method, encrypted, an offset outside the file, a name in no encoding
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return f"{path.stat().st_size} bytes; {error}"
    return f"the checksum of {broken} is wrong" if broken else None


class LoggedSteps(L.Callback):
    """Give the rows that a resumed run logs the numbers of the unbroken run: the optimizer steps before each batch.

    With ``max_steps``, Lightning counts a step too many when it resumes from the end of an epoch. First of the
    callbacks, so that those that log find the right number.
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.automatic_optimization:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


class LastCheckpoint(Checkpoint):
    """Save ``last.ckpt`` at the end of each epoch and of the run, and when Ctrl-C or SIGTERM arrives.

    The last.ckpt before it stays as ``previous.ckpt``, to go on from should the disk damage the newer one.

    A signal acts at the next optimizer step, behind the validation where one is due: the checkpoint is written there,
    on every rank at the same step, and the run ends. A second signal of the same kind ends the process at once. SIGUSR2
    acts too where it has a handler, which is then called: submitit's requeues the job.

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
        self._held = False
        self._own = False  # whether last.ckpt is of this run: what was not trusted to resume from replaces nothing

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.trained = True
        self._saved_at = trainer.global_step
        self._own = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == self.path.resolve()
        for logger in trainer.loggers:  # a killed run has logged more steps than it has saved
            if isinstance(logger, RunCSVLogger):
                logger.rewind(trainer.global_step)
        if trainer.ckpt_path is None and trainer.is_global_zero:  # another run's, which this one replaces
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
        epoch_loop = trainer.fit_loop.epoch_loop
        self._hold(trainer)
        if epoch_loop._should_accumulate():
            return
        self._decide(trainer)
        # resumed from here, Lightning goes on behind the validation of this batch, and behind the end of the epoch
        validates = epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        if self.stopping and not validates and not _complete(trainer):
            with _plateau_stepped(trainer, "step"):
                self._save(trainer)

    # Only in the hooks below does the run end: by then Lightning has logged the step.

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._stop(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._hold(trainer)  # early stopping acts here
        # resumed from here, Lightning would step such a schedule again, and miss its metric: the next step will do
        each_step = any(
            config.reduce_on_plateau and config.interval == "step" for config in trainer.lr_scheduler_configs
        )
        if self.stopping and not _complete(trainer) and not each_step:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _complete(trainer):
            trainer.fit_loop._restarting = False  # else Lightning leaves the epoch resumed into out of what is next
            with _plateau_stepped(trainer, "epoch"):
                self._save(trainer)
        else:  # the run ends within the epoch, which Lightning has counted already: a longer run is to go on there
            progress = trainer.fit_loop.epoch_progress
            for count in (progress.current, progress.total):
                count.processed -= 1
            self._save(trainer)
            for count in (progress.current, progress.total):
                count.processed += 1
        self._decide(trainer)  # it may have come while validating
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

    def _hold(self, trainer: L.Trainer) -> None:
        """Let ``should_stop``, of ``max_time`` or early stopping, wait for the optimizer step, as a signal does."""
        self._held = self._held or trainer.should_stop
        trainer.should_stop = self._held and not trainer.fit_loop.epoch_loop._should_accumulate()

    def _decide(self, trainer: L.Trainer) -> None:
        """Let all ranks stop when one of them has received a signal, and all requeue."""
        self.stopping = self._on_any_rank(trainer, bool(self.received))
        self.requeue = self.stopping and self._on_any_rank(trainer, REQUEUE in self.received)

    def _on_any_rank(self, trainer: L.Trainer, here: bool) -> bool:
        return here if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(here, all=False)

    def _stop(self, trainer: L.Trainer) -> None:
        if not self.stopping or trainer.global_step != self._saved_at:
            return
        rank_zero_only(print)(
            f"\nstopped after optimizer step {trainer.global_step}; to go on: ckpt_path={self.path}", flush=True
        )
        if self.requeue and REQUEUE in self._handlers:
            self._handlers[REQUEUE](REQUEUE, None)  # submitit's ends rank 0, and returns on the others
        raise KeyboardInterrupt  # Lightning's own way out: it closes loggers and ends the other ranks

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.global_step == self._saved_at:
            return
        written = self.path.with_name("last.ckpt.new")  # first: what interrupts the writing must not cost the old one
        trainer.save_checkpoint(written, weights_only=False)
        if trainer.is_global_zero:
            if self._own:
                _keep(self.path, self.previous)
            _move(written, self.path)
        self._saved_at, self._own = trainer.global_step, True


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose file is a whole one at every moment: it is written beside the old one first.

    Args:
        kwargs: the arguments of :class:`lightning.pytorch.callbacks.ModelCheckpoint`.
    """

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


@contextlib.contextmanager
def _plateau_stepped(trainer: L.Trainer, interval: str) -> Iterator[None]:
    """Show the plateau schedulers as they are behind the step or epoch: Lightning steps them after the last hook."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
    states = copy.deepcopy([scheduler.state_dict() for scheduler in schedulers])
    lrs = copy.deepcopy([[group["lr"] for group in scheduler.optimizer.param_groups] for scheduler in schedulers])
    epoch_loop = trainer.fit_loop.epoch_loop
    progress = copy.deepcopy(epoch_loop.scheduler_progress)
    epoch_loop.update_lr_schedulers(interval, update_plateau_schedulers=True)
    yield
    epoch_loop.scheduler_progress = progress
    for scheduler, state, of_groups in zip(schedulers, states, lrs, strict=True):
        scheduler.load_state_dict(state)
        for group, lr in zip(scheduler.optimizer.param_groups, of_groups, strict=True):
            group["lr"] = lr


def _complete(trainer: L.Trainer) -> bool:
    """Whether the batch is the last one of the epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def _keep(path: Path, to: Path) -> None:
    """Give a file a second name: whenever a kill comes, there is a whole one at ``path``."""
    if path.is_dir():  # a sharded checkpoint has but one
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
