"""``ScheduleFreeMode``: the trained weights in training, the averaged ones everywhere else."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from lightning_wd._lightning import Callback, either
from lightning_wd.errors import ConfigError, warn
from lightning_wd.optimizers.decoupled import schedule_free

__all__ = ["ScheduleFreeMode", "switch_modes"]

_CALLBACKS = "lightning.pytorch.callbacks"


class ScheduleFreeMode(Callback):
    """Call ``train()`` and ``eval()`` of schedule-free optimizers, such as ``schedulefree.AdamWScheduleFree``.

    In train mode the model holds ``y``, where the gradient is taken; in eval mode ``x``, the average, which is the
    result. It is ``y`` in every training batch and every step, and ``x`` in validation (the sanity check too), testing
    and prediction, in every checkpoint, within an epoch too, and when training ends or is interrupted.

    :func:`lightning_wd.configure_optimizers` and :class:`lightning_wd.OptimizerOverride` add it by themselves. A module
    that builds its optimizer itself needs it among the trainer's callbacks, before a LearningRateFinder.

    Raises:
        ConfigError: when training starts, if no optimizer has both methods, or if a callback averages weights too.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[ScheduleFreeMode()], logger=False, enable_checkpointing=False)

    References:
        Defazio et al., The Road Less Scheduled, https://arxiv.org/abs/2405.15682
    """

    def __init__(self) -> None:
        self._added = False  # by configure_optimizers: another module of the same trainer may have no use for it
        self._handles: list[Any] = []

    # --- hooks, in the order the trainer calls them ------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not any(map(schedule_free, trainer.optimizers)) and not self._added:
            raise ConfigError(
                "ScheduleFreeMode has nothing to switch: no optimizer has the methods train() and eval().",
                found=", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers) or "no optimizer",
                fix="use an optimizer such as schedulefree.AdamWScheduleFree, or remove the callback",
            )
        averaging = (*either(f"{_CALLBACKS}.WeightAveraging"), *either(f"{_CALLBACKS}.StochasticWeightAveraging"))
        averages = [type(callback).__name__ for callback in trainer.callbacks if isinstance(callback, averaging)]
        if averages and any(map(schedule_free, trainer.optimizers)):
            raise ConfigError(
                f"{averages[0]} would average the weights of training, y, but a schedule-free optimizer puts its own "
                "average, x, in their place whenever it evaluates and saves.",
                found=", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers),
                fix=f"remove {averages[0]}: x is the average",
            )
        self._forget()
        # A checkpoint reads the state, between batches too; a finder steps without callbacks.
        self._handles = [pl_module.register_state_dict_pre_hook(lambda *_: _switch(trainer, "eval"))]
        for optimizer in filter(schedule_free, trainer.optimizers):
            self._handles.append(optimizer.register_step_pre_hook(lambda modes, *_: modes.train()))
        for entry in trainer.lr_scheduler_configs:
            scheduled = getattr(entry.scheduler, "optimizer", None)
            for free in [] if scheduled is None else schedule_free(scheduled)[:1]:
                warn(
                    f"{type(free).__name__} takes the place of a schedule, and there is an lr_scheduler.",
                    found=type(entry.scheduler).__name__,
                    fix="write lr_scheduler=none; to warm up, use the optimizer's own warmup_steps",
                )

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        _switch(trainer, "eval")

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        _switch(trainer, "eval")

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        _switch(trainer, "eval")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        _switch(trainer, "train")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        _switch(trainer, "eval")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        _switch(trainer, "eval")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._forget()

    def _forget(self) -> None:
        """Remove the hooks of an earlier fit, which an error may have left."""
        while self._handles:
            self._handles.pop().remove()


def _switch(trainer: Any, mode: str) -> None:
    for optimizer in filter(schedule_free, trainer.optimizers):
        getattr(optimizer, mode)()


def switch_modes(trainer: Any, optimizer: Optimizer) -> None:
    """Let a trainer switch the modes of a schedule-free optimizer."""
    if schedule_free(optimizer) and not any(isinstance(each, ScheduleFreeMode) for each in trainer.callbacks):
        callback = ScheduleFreeMode()
        callback._added = True
        trainer.callbacks.insert(0, callback)  # before a finder
