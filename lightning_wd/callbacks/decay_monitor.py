"""``DecayMonitor``: what decay does to each parameter group, in numbers and in a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.optim import Optimizer

from lightning_wd.callbacks.groups import group_names, group_style, peak_lr
from lightning_wd.callbacks.measures import Snapshot
from lightning_wd.callbacks.monitor_picture import draw_monitor
from lightning_wd.callbacks.steps import run_steps
from lightning_wd.decay import check_number, step_fraction
from lightning_wd.errors import ConfigError, explain

__all__ = ["DecayMonitor"]

_LONGEST_HISTORY = 400  # measured steps that are kept for the picture; beyond, every other one is dropped


class DecayMonitor(L.Callback):
    r"""Measure what decay does, per parameter group, as ``wd/<group>/<quantity>`` in every logger.

    ============================= =====================================================================================
    quantity                      meaning
    ============================= =====================================================================================
    d_t                           part of the old weights that the step removes (not for ``l2``)
    shrink                        ``prod(1 - d_t)`` since the start: what is left of the initial weights
    timescale_steps               ``1 / d_t``; also ``timescale_epochs``, and ``timescale_runs`` as a part of the run
    weight_norm, weight_rms       of the weights after the step
    weight_rms_predicted          where AdamW's weights settle under noise (see ``measures.adamw_rms``)
    relative_update               ``||w_new - w_old|| / ||w_old||``
    angular_update                mean angle between ``w_old`` and ``w_new``, radians, over tensors of >= 2 dimensions
    angular_update_predicted      AdamW in equilibrium: ``sqrt(2 * d * (1 - b1) / (1 + b1))``
    grad_norm, grad_weight_ratio  of the gradient the optimizer saw (clipped), and over ``weight_norm``
    grad_weight_ratio_predicted   SGD on normalized layers in equilibrium
    lost_decay_mean, _p5, _p50,   Adam with L2: ``lr * lam / (sqrt(v_hat) + eps)``, the decay that a coordinate gets in
    _p95, _spread (p95 / p5)      truth; decoupled decay has spread 1
    cautious_fraction             part of the coordinates that a cautious step decays
    rounded_away                  part of the weights that ``w - d * w`` alone would not change, in their dtype
    nonfinite_weights, _grads     counts of inf and nan
    ============================= =====================================================================================

    Measured at the first optimizer step and every ``every_n_steps`` after it, by the trainer's count. A step that a
    GradScaler skips is no decay, and the one after it is measured in its place. Groups without weights are left out.
    Tensors above 65,536 numbers have their update measured on evenly spaced rows; norms
    are always of the whole. Sharded parameters (FSDP2) give global norms and counts; fractions and quantiles are of
    rank zero's part. With weight averaging the numbers are those of the weights in training, not of their average. At
    the end of the fit ``wd_monitor.png`` is drawn into the trainer's ``default_root_dir``, and logged to W&B.

    Args:
        every_n_steps: optimizer steps between two measurements, >= 1.

    Raises:
        ConfigError: ``every_n_steps`` is no whole number >= 1.

    Example:
        >>> trainer = L.Trainer(callbacks=[DecayMonitor(every_n_steps=10)], logger=False, enable_checkpointing=False)

    References:
        Loshchilov & Hutter, https://arxiv.org/abs/1711.05101; Wang & Aitchison, https://arxiv.org/abs/2405.13698;
        Kosson et al., https://arxiv.org/abs/2305.17212; Defazio, https://arxiv.org/abs/2506.02285.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if not check_number("every_n_steps", every_n_steps, minimum=1).is_integer():
            raise ConfigError(
                explain(
                    f"every_n_steps must be a whole number but got {every_n_steps!r}.", fix="write every_n_steps=50"
                )
            )
        self.every_n_steps = int(every_n_steps)
        self._begin()

    def _begin(self) -> None:
        self._steps: list[int] = []  # steps of each optimizer, those that a GradScaler skips too
        self._due: set[int] = set()  # optimizers with a measurement to make
        self._shrink: list[list[Any]] = []  # of each group; tensors where the learning rate is one
        self._history: list[dict[str, float]] = []
        self._snapshots: dict[int, Snapshot] = {}
        self._measured: dict[str, float] = {}
        self._handles: list[Any] = []

    # --- hooks, in the order the trainer calls them ------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._release()
            self._begin()

    def state_dict(self) -> dict[str, Any]:
        """Return counts, cumulative shrink and the history of the picture, as plain data."""
        return {
            "steps": list(self._steps),
            "due": sorted(self._due),
            "shrink": [[float(value) for value in groups] for groups in self._shrink],
            "history": [dict(row) for row in self._history],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = list(state_dict["steps"])
        self._due = set(state_dict.get("due", ()))
        self._shrink = [list(groups) for groups in state_dict["shrink"]]
        self._history = [dict(row) for row in state_dict["history"]]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        missing = len(trainer.optimizers) - len(self._steps)
        self._steps += [0] * missing
        self._shrink += [[] for _ in range(missing)]
        total, per_epoch = run_steps(trainer)
        self._budget = {"timescale_epochs": per_epoch, "timescale_runs": total}
        for index, optimizer in enumerate(trainer.optimizers):

            def after(stepped: Optimizer, args: Any, kwargs: Any, index: int = index) -> None:
                self._after_step(trainer, stepped, index)

            self._handles.append(optimizer.register_step_post_hook(after))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                logger.experiment.define_metric("wd/*", step_metric="trainer/global_step", summary="min,last")

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        index = next(i for i, own in enumerate(trainer.optimizers) if own is optimizer)
        if self._steps[index] % self.every_n_steps == 0:
            self._due.add(index)
        self._steps[index] += 1
        if index in self._due:  # on every rank: what watches callback_metrics must agree
            self._snapshots[index] = Snapshot(optimizer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._measured:
            return
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # the step that Lightning logs this batch's metrics at
        for logger in trainer.loggers:
            logger.log_metrics(self._measured, step=step)
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in self._measured.items()})
        self._history.append({"step": step, **self._measured})
        if len(self._history) > _LONGEST_HISTORY:
            self._history = self._history[::2]
        self._measured = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._release()
        if not trainer.is_global_zero:
            return
        averaged = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        which = "weights in training, not their average" if averaged else "weights"
        names = ", ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in trainer.optimizers))
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        picture = draw_monitor(self._history, folder / "wd_monitor.png", f"{names}: {which}")
        for logger in trainer.loggers:
            if picture is not None and isinstance(logger, WandbLogger):
                logger.log_image("wd_monitor", [str(picture)])

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._release()

    # -----------------------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        """Take our hooks off the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._snapshots = [], {}

    @torch.no_grad()
    def _after_step(self, trainer: L.Trainer, optimizer: Optimizer, index: int) -> None:
        """Note what the step has removed; measure it if it was prepared for. GradScaler's skipped steps end above."""
        found_inf = getattr(optimizer, "found_inf", None)  # a fused step that GradScaler lets skip on the device
        fractions = [_fraction(optimizer, group) for group in optimizer.param_groups]
        shrink = self._shrink[index]
        shrink += [1.0] * (len(fractions) - len(shrink))  # groups that were added since
        for i, d in enumerate(fractions):
            if d is not None:
                shrink[i] = shrink[i] * (1.0 - (d if found_inf is None else d * (1.0 - found_inf)))
        snapshot = self._snapshots.pop(index, None)
        if snapshot is None or (found_inf is not None and found_inf.item()):
            return
        self._due.discard(index)
        ds = [None if d is None else float(d) for d in fractions]
        names = group_names(trainer.optimizers)[index]
        for i, numbers in enumerate(snapshot.measure(optimizer, ds)):
            if not numbers:
                continue
            self._measured.update(
                {f"wd/{names[i]}/{key}": value for key, value in {**self._decay(ds[i], shrink[i]), **numbers}.items()}
            )

    def _decay(self, d: float | None, shrink: Any) -> dict[str, float]:
        """Return what follows from ``d_t`` alone."""
        if d is None:
            return {}
        numbers = {"d_t": d, "shrink": float(shrink)}
        if d:
            numbers["timescale_steps"] = 1.0 / d
            numbers.update({key: 1.0 / (d * steps) for key, steps in self._budget.items() if steps})
        return {key: value for key, value in numbers.items() if math.isfinite(value)}


def _fraction(optimizer: Optimizer, group: dict[str, Any]) -> float | Tensor | None:
    """Return ``d_t``, as a tensor where lr or decay is one: reading it each step would wait for the device."""
    style = group_style(optimizer, group)
    if style is None or style == "l2":
        return None
    if style == "none":
        return 0.0
    base = group["base_lr"] if "base_lr" in group else peak_lr(group)
    return step_fraction(style, weight_decay=group["weight_decay"], lr=group["lr"], base_lr=base)  # type: ignore[no-any-return]
