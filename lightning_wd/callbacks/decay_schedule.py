"""``DecaySchedule``: weight decay that follows a schedule of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
from torch.optim import Optimizer

from lightning_wd._lightning import Callback
from lightning_wd.callbacks.chosen_groups import check_globs, chosen
from lightning_wd.callbacks.decay_curve import DecayCurve
from lightning_wd.callbacks.restarts import cycle_steps, resolved_steps
from lightning_wd.configure.budget import Budget, resumed
from lightning_wd.configure.first_step import read_again
from lightning_wd.configure.neighbours import may_unfreeze, watch_all
from lightning_wd.errors import ConfigError, as_typed, checked_keywords, number, warn
from lightning_wd.optimizers.checkpoint import Difference, carry_on, settle
from lightning_wd.optimizers.param_groups import as_float, configured_weight_decay, group_names, peak_lr, write

__all__ = ["DecaySchedule"]


@checked_keywords()
class DecaySchedule(Callback):
    r"""Write ``weight_decay = base * f(t / T)`` into each group before each optimizer step.

    ``base`` is the group's configured weight decay, so a group at zero stays at zero. ``t`` counts the optimizer's
    steps and ``T`` is their number in the whole run. With p = t / T:

    =============== =================================================================================================
    shape           multiplier ``f``
    =============== =================================================================================================
    constant        ``start``
    linear          ``start + (end - start) * p``
    one_minus_sqrt  ``start + (end - start) * sqrt(p)``
    cosine          ``end + (start - end) / 2 * (1 + cos(pi * p))``; DINO's 0.04 to 0.4 is weight_decay 0.04, end 10
    step            from ``start`` to ``end`` by equal factors, one at each of ``milestones``
    wsd             ``start`` until the last ``decay`` of the run, then a line to ``end``
    follow_lr       ``start * lr_t / lr0``
    restarts        ``sqrt(T / T_i)``, where T_i is the steps of the current cycle of ``lr_scheduler=cosine_restarts``
                    and T the steps that ``normalized`` was resolved for: ``lam_norm / sqrt(T_i)`` in each cycle, as
                    in 1711.05101, App. B
    a function      ``f(p)``, p in [0, 1)
    =============== =================================================================================================

    With ``end_weight_decay`` the schedule runs from ``start * base`` to that amount, in place of ``end * base``: every
    scheduled group ends at the same number, whatever its base. A group at zero stays at zero.

    ``t`` counts as the learning-rate schedule counts: a step that GradScaler skips is counted too. In manual
    optimization each optimizer has its own count, and ``total_steps`` must be given.

    On resume the bases and counts come from the checkpoint. Where the configured schedule differs from the
    checkpoint's, the optimizer's ``on_resume`` says which is used; it ends where this run ends, with a warning.

    Args:
        shape: a name of the table, or a function of progress.
        start: multiplier at the start, >= 0.
        end: multiplier at the end, >= 0; None is 0.1.
        end_weight_decay: the amount at the end, >= 0, in the unit of each group's style; excludes ``end``.
        groups: globs on the names of the groups to schedule, which :class:`DecayPlanSummary` shows; None is all. With
            several optimizers a name begins with ``optimizer_0_``. Groups that no glob matches keep their weight decay.
        milestones: for ``step``: rising parts of the run, each in (0, 1).
        decay: for ``wsd``: part of the run, in (0, 1].
        total_steps: optimizer steps of the whole run; read from the trainer where it knows them.

    Raises:
        ConfigError: an unknown shape, or a value out of range; when training starts: the number of steps is unknown,
            ``restarts`` is used without a normalized amount or without ``cosine_restarts``, a glob matches no group,
            or only groups at zero, or ``end_weight_decay`` was tuned at another run (``optimizer.reference``).
        CheckpointMismatchError: a checkpoint's schedule differs, and ``on_resume`` is ``error``.

    Example:
        >>> schedule = DecaySchedule("cosine", start=1.0, end=0.1)
        >>> [round(schedule.amount(0.5, p), 3) for p in (0.0, 0.5, 1.0)]  # of a group whose base is 0.5
        [0.5, 0.275, 0.05]
        >>> dino = DecaySchedule("cosine", end_weight_decay=0.4)
        >>> [round(dino.amount(0.04, p), 3) for p in (0.0, 0.5, 1.0)]
        [0.04, 0.22, 0.4]

    References:
        Caron et al., DINO, https://arxiv.org/abs/2104.14294;
        Loshchilov & Hutter, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101.
    """

    schedules_decay = True  # what configure_optimizers asks a trainer's callbacks

    def __init__(
        self,
        shape: str | Callable[[float], float] = "cosine",
        start: float = 1.0,
        end: float | None = None,
        *,
        end_weight_decay: float | None = None,
        groups: Sequence[str] | None = None,
        milestones: Sequence[float] = (0.5, 0.75),
        decay: float = 0.2,
        total_steps: int | None = None,
    ) -> None:
        self.curve = DecayCurve(shape, start, end, end_weight_decay, groups, milestones, decay)
        self.total_steps = (
            None if total_steps is None else int(number("total_steps", total_steps, minimum=1, whole=True))
        )
        if self.curve.shape == "restarts" and total_steps is not None:
            raise ConfigError("total_steps has no effect with shape 'restarts'.", fix="remove total_steps")
        self._begin()

    def amount(self, base: float, progress: float) -> float:
        """Return the weight decay of a group by its base, for the part of the run that is over, in [0, 1].

        For ``follow_lr`` it is the amount at the peak learning rate. ``restarts`` has none.
        """
        return self.curve.amount(base, progress)

    # --- hooks, in the order the trainer calls them ------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._begin()

    def _begin(self) -> None:
        """Forget an earlier fit."""
        self._in_force = self.curve  # or the checkpoint's
        self._loaded: dict[str, Any] | None = None
        self._bases: list[list[float | None]] = []
        self._chosen: list[list[bool]] = []  # whether each group is scheduled
        self._steps: list[int] = []
        self._total = 0
        self._restored = False  # the bases are a checkpoint's
        self._stepped: set[int] = set()  # optimizers that have stepped in this fit

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule, its bases and its position, as plain data."""
        if self._loaded is not None:  # training has not started
            return self._loaded
        return {
            "schedule": self._in_force.plain(),
            "bases": [list(bases) for bases in self._bases],
            "steps": list(self._steps),
            "total_steps": self._total,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's state until training starts, when the optimizers have loaded theirs."""
        if self._bases:  # a learning-rate finder puts back what it saved in the middle of the run
            self._steps = list(state_dict["steps"])
        else:
            self._loaded = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        watch_all(trainer, pl_module)
        if self._bases:  # DecayPlanSummary has asked already
            return
        self._budget = Budget(
            pl_module, self.total_steps, where_to_pass="DecaySchedule(..., total_steps=<optimizer steps of the run>)"
        )
        goes_on = resumed(trainer) and pl_module.automatic_optimization
        self._steps = [trainer.global_step if goes_on else 0 for _ in trainer.optimizers]
        self._read()
        self._bases = [[] for _ in trainer.optimizers]
        self._chosen = [[] for _ in trainer.optimizers]
        loaded, self._loaded = self._loaded, None
        if loaded is not None and loaded["steps"]:  # else it was saved before training started
            self._resume(trainer, loaded)
        if not any("weight_decay" in group for opt in trainer.optimizers for group in opt.param_groups):
            raise ConfigError(
                "DecaySchedule has nothing to schedule: no parameter group has a weight_decay.",
                found=", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers),
                fix="use an optimizer with weight decay, or remove the callback",
            )
        for index, optimizer in enumerate(trainer.optimizers):
            read_again(optimizer)
            self._write(trainer, index)
        self._check_groups(trainer)

    def _check_groups(self, trainer: Any) -> None:
        """Refuse globs and ends that schedule nothing, and warn where no group decays."""
        curve, names = self._in_force, [name for each in group_names(trainer.optimizers) for name in each]
        decaying = [name for name, base in zip(names, itertools.chain(*self._bases), strict=True) if base]
        check_globs(curve.groups, names, decaying)
        for optimizer in trainer.optimizers if curve.end_weight_decay is not None else ():
            if (carried := getattr(optimizer, "carried", None)) is not None:
                with as_typed(optimizer.typed):
                    carried.check_end(curve.end_weight_decay)
        if curve.end_weight_decay is not None and not decaying:
            raise ConfigError(
                f"no group reaches end_weight_decay={curve.end_weight_decay:g}: all are at zero, and stay there.",
                found=", ".join(names),
                fix=f"write optimizer.weight_decay={curve.end_weight_decay:g}, start=0 and end=1 to begin at zero",
            )
        if not decaying and not may_unfreeze(trainer.callbacks):
            styles = dict.fromkeys(str(group.get("style")) for opt in trainer.optimizers for group in opt.param_groups)
            warn(
                "DecaySchedule has no effect: the weight decay of every group is 0, and stays there.",
                found=", ".join(names) + f" of style {', '.join(styles)}" * (styles.keys() != {"None"}),
                fix="remove it (callbacks=none), or write optimizer.weight_decay"
                + "; what a hyperball has instead is its learning rate" * ("hyperball" in styles),
            )

    def _read(self, *, in_step: bool = False) -> None:
        """Read the steps of the run; another callback may change them until the first step."""
        self._budget.forget(in_step=in_step)
        self._total = 1 if self.curve.shape == "restarts" else self._budget.total_steps("DecaySchedule")

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Write the values of this step over anything that was written since the last."""
        index = trainer.optimizers.index(optimizer)
        if index not in self._stepped:
            self._stepped.add(index)
            self._read(in_step=True)
            read_again(optimizer, in_step=True)
            if not self._restored and "base_weight_decay" in optimizer.param_groups[0]:
                self._bases[index] = []
        self._write(trainer, index)
        self._steps[index] += 1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the values of the next step, which monitors read when a batch starts."""
        for index in range(len(trainer.optimizers)):
            self._write(trainer, index)

    def largest(self, trainer: L.Trainer, index: int) -> tuple[str, list[float], list[float]]:
        """Return the shape in use, and each group's base and largest amount in the unit of ``weight_decay``.

        The largest is that of the first and shortest cycle for ``restarts``, and of the peak learning rate for
        ``follow_lr``. Training has started; ``index`` says which of the trainer's optimizers is meant.
        """
        self.on_train_start(trainer, trainer.lightning_module)
        curve, optimizer, unit = self._in_force, trainer.optimizers[index], 1.0
        bases, flags = [base or 0.0 for base in self._bases[index]], self._chosen[index]
        if curve.shape == "restarts":
            unit = math.sqrt(resolved_steps(optimizer))
            cycle = math.sqrt(cycle_steps(trainer, optimizer, first=True))
            most = {base: base / cycle for base in bases}
        else:
            points = min(self._total, 1000)
            most = {base: max(curve.amount(base, i / points) for i in range(points)) for base in {*bases}}
        own = [base / unit for base in bases]
        amounts = [most[base] if mine else lam for base, lam, mine in zip(bases, own, flags, strict=True)]
        return curve.name, own, amounts

    def _resume(self, trainer: L.Trainer, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's position and bases; where the schedules differ, ``on_resume`` decides."""
        rules = [getattr(optimizer, "on_resume", "checkpoint") for optimizer in trainer.optimizers]
        self._steps = list(state["steps"])
        # Under "config" the optimizer has its configured weight_decay again: that is the base.
        self._restored = "config" not in rules
        self._bases = [[] if rule == "config" else list(b) for rule, b in zip(rules, state["bases"], strict=True)]
        configured = self.curve.plain()
        # Older versions did not save the values of a function.
        saved = {"values": configured["values"], **state["schedule"]}
        differ = [key for key in configured if saved.get(key) != configured[key]]
        lost = ("a checkpoint does not contain a function", "pass the shape of the resumed run")
        function = "function" in (saved["shape"], configured["shape"])
        differences = [
            Difference(
                f"{key} is {saved.get(key)!r} in the checkpoint, {configured[key]!r} configured",
                *(lost if function and key in ("shape", "values") else ()),
            )
            for key in differ
        ]
        rule = next((rule for rule in ("error", "config") if rule in rules), "checkpoint")
        ours = [optimizer for optimizer in trainer.optimizers if hasattr(optimizer, "on_resume")]
        with as_typed(getattr(ours[0], "typed", {}) if ours else {}):
            if state["total_steps"] != self._total and saved["shape"] == configured["shape"]:
                carry_on("DecaySchedule", state["total_steps"], self._total, rule)
            configured_holds = settle("DecaySchedule", differences, rule, choosable=bool(ours))
        if differ and not configured_holds:
            self._in_force = DecayCurve(**{key: saved[key] for key in configured if key != "values"})

    def _write(self, trainer: L.Trainer, index: int) -> None:
        """Write the current values into the groups of one optimizer."""
        optimizer, curve = trainer.optimizers[index], self._in_force
        bases, flags = self._bases[index], self._chosen[index]
        restarts, follows = curve.shape == "restarts", curve.shape == "follow_lr"
        for group in optimizer.param_groups[len(bases) :]:  # all at first, later only groups that were added
            base = configured_weight_decay(group)
            unit = math.sqrt(resolved_steps(optimizer)) if restarts else 1.0
            bases.append(None if base is None else base * unit)
        if len(flags) < len(bases):
            flags[:] = chosen(curve.groups, group_names(trainer.optimizers)[index])
        cycle = math.sqrt(cycle_steps(trainer, optimizer)) if restarts else 1.0
        progress = min(1.0, self._steps[index] / self._total)
        for group, base, mine in zip(optimizer.param_groups, bases, flags, strict=True):
            if base is None or not mine:
                continue
            value = base / cycle if restarts else curve.amount(base, progress)
            if follows:
                peak = peak_lr(group)
                value *= as_float(group["lr"]) / peak if peak else 0.0
            write(group, "weight_decay", value)
