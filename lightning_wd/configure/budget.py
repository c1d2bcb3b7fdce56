"""How many optimizer steps a run and an epoch take, and of how many rows: the one place that asks the trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning_wd._lightning import either
from lightning_wd._private import attached_trainer, forget_loader, is_finders
from lightning_wd.errors import ConfigError, number

__all__ = ["Budget", "resumed", "run_steps"]


_STEPS = "total_steps=<optimizer steps of the run>, steps_per_epoch=<optimizer steps of an epoch>"


class Budget:
    """The optimizer steps of a run and of an epoch, and the global batch: the caller's, else the trainer's.

    The trainer is asked when they are first needed. World size, gradient accumulation, ``limit_train_batches`` and
    ``max_steps`` count. The run is what this ``fit`` trains, and what a checkpoint that it resumes from has trained;
    not an earlier ``fit`` on the same trainer. Errors say ``where_to_pass`` them instead, with ``{}`` for the
    arguments.
    """

    def __init__(
        self,
        module: Any,
        total_steps: int | None = None,
        steps_per_epoch: float | None = None,
        *,
        global_batch: int | None = None,
        where_to_pass: str = "configure_optimizers(self, ..., {})",
    ) -> None:
        self._module, self._where_to_pass = module, where_to_pass
        self._given = (
            None if total_steps is None else int(number("total_steps", total_steps, minimum=1, whole=True)),
            None if steps_per_epoch is None else number("steps_per_epoch", steps_per_epoch, exclusive=True),
        )
        self._given_batch = (
            None if global_batch is None else int(number("global_batch", global_batch, minimum=1, whole=True))
        )
        trainer = attached_trainer(module)
        self._before = 0 if trainer is None else _steps_before(trainer)
        self._when = {"restored": trainer is None or not resumed(trainer)}
        self._total, self._per_epoch = self._given
        self._batch = self._given_batch

    def forget(self, *, in_step: bool = False) -> None:
        """Forget what was read: the trainer is asked again, as training starts or ``in_step``, within a step."""
        self._total, self._per_epoch = self._given
        self._batch = self._given_batch
        self._when = {"in_step": in_step}

    def total_steps(self, needed_by: str) -> int:
        """Return the optimizer steps of the run, or raise a ConfigError that says why they are unknown."""
        if not self.knows_total():
            trainer = self._trainer(needed_by)
            timers = either("lightning.pytorch.callbacks.Timer")
            if any(isinstance(callback, timers) for callback in trainer.callbacks):
                raise self._unknown(needed_by, "the run is bounded by max_time", "set trainer.max_steps, or ")
            if trainer.max_epochs == -1:
                raise self._unknown(needed_by, "the run has no limit", "set trainer.max_steps, or ")
            why = "the length of an epoch is unknown (iterable data)"
            limit = "set trainer.max_steps, or trainer.limit_train_batches to a whole number, or "
            raise self._unknown(needed_by, why, limit)
        return self._total  # type: ignore[return-value]  # it is known

    def left(self, needed_by: str) -> int:
        """Return the optimizer steps of the run that are still to come."""
        trainer = attached_trainer(self._module)
        done = 0 if trainer is None or self._given[0] is not None else trainer.global_step - self._before
        return self.total_steps(needed_by) - done

    def knows_total(self) -> bool:
        """Whether the steps of the run are known."""
        if self._total is None and not _why_unknown(self._module):
            self._total = _total(attached_trainer(self._module), self._before, **self._when)
        return self._total is not None

    def steps_per_epoch(self, needed_by: str) -> float:
        """Return the optimizer steps of one epoch, or raise a ConfigError that says why they are unknown."""
        if self._per_epoch is None:
            self._per_epoch = _per_epoch(self._trainer(needed_by))
            if self._per_epoch is None:
                why = "the length of an epoch is unknown (iterable data)"
                raise self._unknown(needed_by, why, "set trainer.limit_train_batches to a whole number, or ")
        return self._per_epoch

    def global_batch(self, needed_by: str) -> int:
        """Return how many rows an optimizer step sees: processes x accumulation x the loader's batch size.

        It is never more than the rows of an epoch, at whose end Lightning steps.

        Raises:
            ConfigError: it is not known; the message asks for ``global_batch``, and for the steps where no trainer
                tells them.
        """
        unknown = _why_unknown(self._module)
        if self._batch is None and (why := unknown or self._read_batch()):
            steps = f", {_STEPS}" if unknown and self._given[0] is None else ""
            raise ConfigError(
                f"{needed_by} needs the global batch, which is not known here.",
                found=why,
                fix="pass it: " + self._where_to_pass.format(f"global_batch=<rows that an optimizer step sees>{steps}"),
            )
        return self._batch  # type: ignore[return-value]  # it is known

    def _read_batch(self) -> str:
        """Read the global batch off the trainer, or return why it is unknown."""
        trainer = attached_trainer(self._module)
        if not trainer.limit_train_batches:
            return "the run trains on no batch (limit_train_batches=0)"

        def ask() -> Any:
            if trainer.train_dataloader is None:
                trainer.fit_loop.setup_data()
            self.knows_total()  # while the data are loaded: a resumed run forgets them
            return trainer.train_dataloader

        loader = _count(trainer, ask)
        size = _batch_size(loader)
        if size is None:
            return f"the training data are a {type(loader).__name__}, which has no batch_size nor a batch_sampler's"
        # data-parallel processes: each has rows of its own, where tensor-parallel ones share theirs
        processes = getattr(trainer.strategy, "distributed_sampler_kwargs", {}).get("num_replicas", 1)
        self._batch = processes * size * int(min(_accumulation(trainer), trainer.num_training_batches))
        return ""

    def between(self, frequency: int) -> float:
        """Return how many optimizer steps lie between two of a schedule that steps at every ``frequency``-th batch.

        Lightning counts batches within the epoch, and steps the schedule only where the optimizer steps.
        """
        if frequency == 1 or _why_unknown(self._module):
            return float(frequency)
        trainer = attached_trainer(self._module)
        steps = _per_epoch(trainer)
        if steps is None:
            return float(frequency)
        batches, every = int(trainer.num_training_batches), _accumulation(trainer)
        stepping = {*range(every, batches + 1, every), batches}
        count = sum(batch % frequency == 0 for batch in stepping)
        if not count:
            raise ConfigError(
                f"lr_scheduler.frequency={frequency} never steps the schedule.",
                found=f"{batches} batches in an epoch, an optimizer step every {every}; Lightning counts batches",
                fix="write lr_scheduler.frequency=1",
            )
        return float(steps / count)

    def _trainer(self, needed_by: str) -> Any:
        if why := _why_unknown(self._module):
            raise self._unknown(needed_by, why)
        return attached_trainer(self._module)

    def _unknown(self, needed_by: str, why: str, otherwise: str = "") -> ConfigError:
        return ConfigError(
            f"{needed_by} needs the number of optimizer steps, which is not known here.",
            found=why,
            fix=f"{otherwise}pass them: " + self._where_to_pass.format(_STEPS),
        )


def run_steps(trainer: Any) -> tuple[int | None, int | None]:
    """Return the optimizer steps of the whole run and of an epoch, as it starts; None where the trainer knows none."""
    if _why_unknown(trainer.lightning_module):
        return None, None
    return _total(trainer, _steps_before(trainer)), _per_epoch(trainer)


def _why_unknown(module: Any) -> str:
    """Return why no trainer can tell how many steps this module will take; '' where one can."""
    trainer = attached_trainer(module)
    if trainer is None:
        return "the module is not attached to a Trainer"
    if not module.automatic_optimization:
        return "the module steps its optimizers itself (manual optimization)"
    if any(getattr(callback, "scheduling", {0: 0}).keys() != {0} for callback in trainer.callbacks):
        return "gradient accumulation changes during the run"
    return ""


def _accumulation(trainer: Any) -> int:
    """Return the batches of an optimizer step; Lightning's scheduler of them writes its number as an epoch starts."""
    scheduled = (callback.scheduling[0] for callback in trainer.callbacks if hasattr(callback, "scheduling"))
    return int(next(scheduled, trainer.accumulate_grad_batches))


def resumed(trainer: Any) -> bool:
    """Whether this fit goes on from a checkpoint; one of a finder's own only takes its search back."""
    return trainer.ckpt_path is not None and not is_finders(trainer.ckpt_path)


def _steps_before(trainer: Any) -> int:
    """Return the steps of earlier fits on this trainer, which its count of steps goes on from."""
    return 0 if resumed(trainer) else int(trainer.global_step)


def _total(trainer: Any, before: int, *, in_step: bool = False, restored: bool = True) -> int | None:
    """Return the steps done since ``before`` and those that are left, at today's steps per epoch; None if unknown.

    Until a checkpoint's progress is ``restored`` the run counts as if it began now.
    """
    per_epoch = _per_epoch(trainer)
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    for callback in trainer.callbacks:
        # StochasticWeightAveraging adds an epoch to the trainer's, after `swa_end`, that trains no weight
        epochs = min(epochs, getattr(callback, "swa_end", math.inf) + 1)
    progress = trainer.fit_loop.epoch_loop.batch_progress
    batches = progress.current.completed  # of this epoch
    if not in_step:  # a checkpoint that was saved after a batch counts it as processed
        batches = 0 if progress.is_last_batch else progress.current.processed
    epoch, step = trainer.current_epoch, trainer.global_step
    if not restored:
        epoch, step, batches, before = 0, 0, 0, 0
    left = math.inf
    if per_epoch is not None and epochs < math.inf:
        left = (epochs - epoch) * per_epoch - batches // _accumulation(trainer)
    if trainer.max_steps != -1:
        left = min(left, trainer.max_steps - step)
    return max(1, int(step - before + max(0, left))) if left < math.inf else None


def _per_epoch(trainer: Any) -> int | None:
    def batches() -> float:
        if trainer.train_dataloader is None:
            trainer.fit_loop.setup_data()
        return float(trainer.num_training_batches)

    count = _count(trainer, batches)
    return max(1, math.ceil(count / _accumulation(trainer))) if math.isfinite(count) else None


def _batch_size(loader: Any) -> int | None:
    """Return the rows of a loader's batch; None for several loaders, and where the loader does not say."""
    sizes = (getattr(each, "batch_size", None) for each in (loader, getattr(loader, "batch_sampler", None)))
    size = next((size for size in sizes if isinstance(size, int) and size > 0), None)
    try:
        return None if size is None else min(size, len(loader.sampler))  # of this process
    except (AttributeError, NotImplementedError, TypeError):  # it has no sampler, or a stream of data
        return size


def _count(trainer: Any, ask: Callable[[], Any]) -> Any:
    """Return what ``ask`` reads off the training data, which it may load."""
    early = trainer.train_dataloader is None
    steps = ask() if trainer.limit_train_batches else 0.0  # then the trainer does not count them
    if early and (trainer.ckpt_path or trainer.strategy.restore_checkpoint_after_setup):
        # Lightning restores a loader's position when it makes the loader, after it has read the checkpoint's loops.
        # This loader was made before that, only to be counted.
        forget_loader(trainer)
    return steps
