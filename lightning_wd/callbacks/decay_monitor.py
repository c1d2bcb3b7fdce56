"""``DecayMonitor``: what weight decay does to each parameter group, in numbers and in a picture."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer

from lightning_wd._lightning import Callback, either, wandb_loggers
from lightning_wd._private import logged_step
from lightning_wd.callbacks.measures import Snapshot
from lightning_wd.configure.budget import run_steps
from lightning_wd.configure.neighbours import watch_all
from lightning_wd.errors import checked_keywords, number
from lightning_wd.optimizers.param_groups import fraction, group_names
from lightning_wd.runs.curves import draw_monitor

__all__ = ["DecayMonitor"]

_LONGEST_HISTORY = 400  # measured steps kept for the picture; when there are more, every other one is dropped


@checked_keywords()
class DecayMonitor(Callback):
    r"""Measure what weight decay does in each parameter group, as ``wd/<group>/<quantity>`` in every logger.

    ============================= =====================================================================================
    quantity                      meaning
    ============================= =====================================================================================
    d_t                           fraction of the old weights that the step removes (not for ``l2``)
    shrink                        ``prod(1 - d_t)`` since the start: the fraction of the initial weights that is left
    timescale_steps               ``1 / d_t``; also in epochs and in runs: ``timescale_epochs``, ``timescale_runs``
    weight_norm, weight_rms       of the weights after the step
    weight_rms_predicted          where AdamW's weights settle under pure noise (``measures.adamw_rms``)
    relative_update               ``||w_new - w_old|| / ||w_old||``
    angular_update                mean angle between ``w_old`` and ``w_new``, radians, over tensors of >= 2 dimensions
    angular_update_predicted      AdamW in equilibrium: ``sqrt(2 * d * (1 - b1) / (1 + b1))``; hyperball: ``atan(lr)``,
                                  where the update is orthogonal to the weights (momentum makes it smaller)
    anchor_distance               ``||w - w*||``, where decay is ``toward`` an anchor
    grad_norm, grad_weight_ratio  of the gradient as the optimizer saw it (clipped); divided by ``weight_norm``
    grad_weight_ratio_predicted   SGD on normalized layers in equilibrium
    lost_decay_mean, _p5, _p50,   Adam with L2: ``lr * lam / (sqrt(v_hat) + eps)``, the decay that a coordinate really
    _p95, _spread (p95 / p5)      gets; decoupled decay has spread 1
    scale_invariant_fraction      fraction of the weights in tensors that the loss does not feel the scale of
                                  (:func:`lightning_wd.scale_invariant` below 1e-5): they decay only as a learning rate
    cautious_fraction             fraction of the coordinates that a cautious step decays
    rounded_away                  fraction of the weights that ``w - d * w`` leaves unchanged in their dtype
    nonfinite_weights, _grads     counts of inf and nan
    ============================= =====================================================================================

    The first optimizer step is measured, and every ``every_n_steps``-th after it, by the trainer's count. A step that
    GradScaler skips decays nothing; the next one is measured instead. Groups without weights are left out. The update
    of a tensor with more than 65,536 elements is measured on evenly spaced rows; norms are of the whole tensor. For
    sharded parameters (FSDP2) norms and counts are global; fractions and quantiles are of rank zero's shard. Under
    FSDP1 all numbers are of the pieces of rank zero. With weight averaging they are of the weights in training, not of
    their average. At the end of the fit ``wd_monitor.png`` is drawn into the trainer's ``default_root_dir`` and logged
    to W&B.

    Args:
        every_n_steps: optimizer steps between two measurements, >= 1.

    Raises:
        ConfigError: ``every_n_steps`` is not a whole number >= 1.

    Example:
        >>> trainer = L.Trainer(callbacks=[DecayMonitor(every_n_steps=10)], logger=False, enable_checkpointing=False)

    References:
        Loshchilov & Hutter, https://arxiv.org/abs/1711.05101; Wang & Aitchison, https://arxiv.org/abs/2405.13698;
        Kosson et al., https://arxiv.org/abs/2305.17212; Defazio, https://arxiv.org/abs/2506.02285.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = int(number("every_n_steps", every_n_steps, minimum=1, whole=True))
        self._begin()

    def _begin(self) -> None:
        self._steps: list[int] = []  # steps of each optimizer, skipped ones included
        self._due: set[int] = set()  # optimizers whose next step is measured
        self._shrink: list[list[Any]] = []  # of each group; a tensor where the learning rate is one
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
        self._due = set(state_dict["due"])
        self._shrink = [list(groups) for groups in state_dict["shrink"]]
        self._history = [dict(row) for row in state_dict["history"]]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        watch_all(trainer, pl_module)
        missing = len(trainer.optimizers) - len(self._steps)
        self._steps += [0] * missing
        self._shrink += [[] for _ in range(missing)]
        total, per_epoch = run_steps(trainer)
        self._periods = {"timescale_steps": 1, "timescale_epochs": per_epoch, "timescale_runs": total}
        self._handles = [
            optimizer.register_step_post_hook(functools.partial(self._after_step, trainer, index))
            for index, optimizer in enumerate(trainer.optimizers)
        ]
        for logger in wandb_loggers(trainer) if trainer.is_global_zero else ():
            logger.experiment.define_metric("wd/*", step_metric="trainer/global_step", summary="min,last")

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        index = trainer.optimizers.index(optimizer)
        if self._steps[index] % self.every_n_steps == 0:
            self._due.add(index)
        self._steps[index] += 1
        if index in self._due:  # on every rank: callbacks that read callback_metrics must agree
            self._snapshots[index] = Snapshot(optimizer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._measured:
            return
        step = logged_step(trainer)
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
        averaging = either("lightning.pytorch.callbacks.WeightAveraging")
        averaged = any(isinstance(callback, averaging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        which = "weights in training, not their average" if averaged else "weights"
        names = ", ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in trainer.optimizers))
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        picture = draw_monitor(self._history, folder / "wd_monitor.png", f"{names}: {which}")
        for logger in wandb_loggers(trainer) if picture is not None else ():
            logger.log_image("wd_monitor", [str(picture)])

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._release()

    def _release(self) -> None:
        """Remove our hooks from the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._snapshots = [], {}

    @torch.no_grad()
    def _after_step(self, trainer: L.Trainer, index: int, optimizer: Optimizer, *step: Any) -> None:
        """Note what the step removed, and measure it where it is due. GradScaler's skipped steps do not get here."""
        found_inf = getattr(optimizer, "found_inf", None)  # set when GradScaler skips a fused step
        fractions = [fraction(optimizer, group) for group in optimizer.param_groups]
        shrink = self._shrink[index]
        shrink += [1.0] * (len(fractions) - len(shrink))  # for groups that were added
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
            if numbers:
                numbers = {**self._decay(ds[i], shrink[i]), **numbers}
                self._measured.update({f"wd/{names[i]}/{key}": value for key, value in numbers.items()})

    def _decay(self, d: float | None, shrink: Any) -> dict[str, float]:
        """Return what follows from ``d_t`` alone."""
        if d is None:
            return {}
        numbers = {"d_t": d, "shrink": float(shrink)}
        if d:
            numbers.update({key: 1.0 / (d * steps) for key, steps in self._periods.items() if steps})
        return {key: value for key, value in numbers.items() if math.isfinite(value)}
