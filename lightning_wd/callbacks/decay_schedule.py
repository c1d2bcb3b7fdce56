"""``DecaySchedule``: weight decay that follows a schedule of its own."""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
from torch import Tensor
from torch.optim import Optimizer

from lightning_wd.callbacks.groups import as_float, group_names, peak_lr
from lightning_wd.callbacks.steps import run_steps
from lightning_wd.configure.lr_scheduler import LRSchedule
from lightning_wd.decay import check_number
from lightning_wd.errors import CheckpointMismatchError, ConfigError, explain, nearest
from lightning_wd.schedules import restart_cycle

__all__ = ["DecaySchedule"]


def _constant(p: float, start: float, end: float) -> float:
    return start


def _linear(p: float, start: float, end: float) -> float:
    return start + (end - start) * p


def _cosine(p: float, start: float, end: float) -> float:
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * p))


# shape -> its function of progress; None: a shape that also looks at the optimizer or the learning-rate schedule
SHAPES: dict[str, Callable[[float, float, float], float] | None] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "step": None,
    "wsd": None,
    "follow_lr": None,
    "restarts": None,
}
_START_ONLY = ("constant", "follow_lr", "restarts")  # shapes that `end` says nothing about


class DecaySchedule(L.Callback):
    r"""Write ``weight_decay = base * f(t / T)`` into each group before each optimizer step.

    ``base`` is the group's own configured coefficient, so a group at zero stays at zero. ``t`` counts the steps of that
    optimizer and ``T`` is their number in the whole run. With p = t / T:

    =============== =================================================================================================
    shape           multiplier ``f``
    =============== =================================================================================================
    constant        ``start``
    linear          ``start + (end - start) * p``
    cosine          ``end + (start - end) / 2 * (1 + cos(pi * p))``; DINO's 0.04 to 0.4 is weight_decay 0.04, end 10
    step            from ``start`` to ``end`` by equal factors, one at each of ``milestones``
    wsd             ``start`` until the last ``decay`` of the run, then a line to ``end``
    follow_lr       ``start * lr_t / lr0``
    restarts        ``sqrt(T / T_i)``, with T_i the steps of the current cycle of ``lr_scheduler=cosine_restarts`` and
                    T those that ``normalized`` was resolved for: ``lam_norm / sqrt(T_i)`` in each cycle, as in
                    1711.05101, App. B
    a function      ``f(p)``, p in [0, 1)
    =============== =================================================================================================

    Clock: ``t`` counts the steps that the trainer takes, as the learning-rate schedule does; a step that a GradScaler
    skips counts too. In manual optimization each optimizer has its own count, and needs ``total_steps``.

    On resume the bases and counts come from the checkpoint. A schedule configured otherwise than the checkpoint's gives
    way to it with a warning, replaces it, or is refused, as the optimizer's ``on_resume`` says.

    Args:
        shape: a name of the table, or a function of progress.
        start: multiplier at the start, >= 0.
        end: multiplier at the end, >= 0.
        milestones: for ``step``: rising parts of the run, each in (0, 1).
        decay: for ``wsd``: part of the run, in (0, 1].
        total_steps: optimizer steps of the whole run; read from the trainer where it knows them.

    Raises:
        ConfigError: an unknown shape, a value out of range; when training starts, steps that are not known, or
            ``restarts`` without a normalized amount or without ``cosine_restarts``.

    Example:
        >>> schedule = DecaySchedule("cosine", start=1.0, end=0.1)
        >>> [round(schedule.multiplier(p), 3) for p in (0.0, 0.5, 1.0)]
        [1.0, 0.55, 0.1]
        >>> step = DecaySchedule("step", end=0.01)
        >>> [round(step.multiplier(p), 3) for p in (0.0, 0.5, 0.75)]
        [1.0, 0.1, 0.01]

    References:
        Caron et al., DINO, https://arxiv.org/abs/2104.14294;
        Loshchilov & Hutter, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101.
    """

    def __init__(
        self,
        shape: str | Callable[[float], float] = "cosine",
        start: float = 1.0,
        end: float = 0.1,
        *,
        milestones: Sequence[float] = (0.5, 0.75),
        decay: float = 0.2,
        total_steps: int | None = None,
    ) -> None:
        if not callable(shape) and shape not in SHAPES:
            close = nearest(shape, SHAPES)
            raise ConfigError(
                explain(
                    f"DecaySchedule shape {shape!r} is unknown.",
                    valid=[*SHAPES, "a function of progress"],
                    nearest=close,
                    fix=f"write shape={close or 'cosine'}",
                )
            )
        self.shape = shape
        self.start, self.end = check_number("start", start), check_number("end", end)
        self.milestones = [check_number("milestones", m, exclusive=True) for m in milestones]
        self.decay = check_number("decay", decay, exclusive=True)
        self.total_steps = None if total_steps is None else int(check_number("total_steps", total_steps, minimum=1))
        self._check()
        self._begin()

    def _check(self) -> None:
        """Refuse settings that the shape cannot honour."""
        if self.shape == "step":
            if not self.milestones or sorted({*self.milestones}) != self.milestones or self.milestones[-1] >= 1:
                raise ConfigError(
                    explain(
                        f"milestones must be rising parts of the run below 1 but got {self.milestones}.",
                        fix="write milestones=[0.5, 0.75]",
                    )
                )
            if not self.start or not self.end:
                raise ConfigError(
                    explain(
                        "shape 'step' multiplies, so start and end must be > 0.", fix="write end=0.01, or use linear"
                    )
                )
        if self.decay > 1:
            raise ConfigError(explain(f"decay is a part of the run but got {self.decay}.", fix="write decay=0.2"))
        if (callable(self.shape) or self.shape in _START_ONLY) and self.end != 0.1:
            raise ConfigError(explain(f"end has no meaning with shape {self._name!r}.", fix="remove end"))
        if (callable(self.shape) or self.shape == "restarts") and self.start != 1.0:
            raise ConfigError(explain(f"start has no meaning with shape {self._name!r}.", fix="remove start"))
        if self.shape == "restarts" and self.total_steps is not None:
            raise ConfigError(explain("total_steps has no meaning with shape 'restarts'.", fix="remove total_steps"))

    @property
    def _name(self) -> str:
        return self.shape if isinstance(self.shape, str) else "function"

    def multiplier(self, progress: float) -> float:
        """Return ``f(progress)`` for the shapes that depend on progress alone.

        Args:
            progress: part of the run that is over, in [0, 1].
        """
        if callable(self.shape):
            return check_number("the value of DecaySchedule's function", self.shape(progress))
        function = SHAPES[self.shape]
        if function is not None:
            return function(progress, self.start, self.end)
        if self.shape == "step":
            passed = bisect.bisect_right(self.milestones, progress)
            return float(self.start * (self.end / self.start) ** (passed / len(self.milestones)))
        return self.end + (self.start - self.end) * min(1.0, (1.0 - progress) / self.decay)

    # --- hooks, in the order the trainer calls them ------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._begin()

    def _begin(self) -> None:
        """Forget an earlier fit."""
        self._in_force: DecaySchedule = self  # where the checkpoint's schedule wins: that one
        self._loaded: dict[str, Any] | None = None
        self._bases: list[list[float | None]] = []
        self._steps: list[int] = []
        self._total = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule, its bases and its position, as plain data."""
        if self._loaded is not None:  # training has not started
            return self._loaded
        return {
            "schedule": self._in_force._schedule(),
            "bases": [list(b) for b in self._bases],
            "steps": list(self._steps),
            "total_steps": self._total,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note a checkpoint's state; it is taken up when training starts, after the optimizers have loaded theirs."""
        self._loaded = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bases:  # a callback before this one has asked for it
            return
        restarts = self.shape == "restarts"  # its cycles are those of the learning-rate schedule
        self._total = 1 if restarts else self.total_steps or _total_steps(trainer)
        self._steps = [trainer.global_step if pl_module.automatic_optimization else 0 for _ in trainer.optimizers]
        self._bases = [[] for _ in trainer.optimizers]
        loaded, self._loaded = self._loaded, None
        if loaded is not None and loaded["steps"]:  # else it was saved before training started
            self._resume(trainer, loaded)
        if not any("weight_decay" in group for opt in trainer.optimizers for group in opt.param_groups):
            raise ConfigError(
                explain(
                    "DecaySchedule has nothing to schedule: no parameter group has a weight_decay.",
                    found=", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers),
                    fix="use an optimizer with weight decay, or remove the callback",
                )
            )
        for index in range(len(trainer.optimizers)):
            self._write(trainer, index)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Write the value of this step, whatever was written to the groups since the last one."""
        index = next(i for i, own in enumerate(trainer.optimizers) if own is optimizer)
        self._write(trainer, index)
        self._steps[index] += 1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the values of the next step, for the monitors that read them when a batch starts."""
        for index in range(len(trainer.optimizers)):
            self._write(trainer, index)

    # -----------------------------------------------------------------------------------------------------------------

    def largest(self, trainer: L.Trainer, index: int) -> tuple[str, list[float], float]:
        """Return the shape in force, the base of each group of an optimizer, and the largest multiplier of it.

        Bases are in the unit of ``weight_decay``: for ``restarts`` the amounts that were resolved for the whole run,
        of which the first cycle, the shortest, has the largest multiple. For ``follow_lr`` it is that of the peak.

        Args:
            trainer: its training has started.
            index: which of its optimizers.
        """
        self.on_train_start(trainer, trainer.lightning_module)
        schedule, optimizer = self._in_force, trainer.optimizers[index]
        unit, largest = 1.0, schedule.start
        if schedule.shape == "restarts":
            unit = math.sqrt(_resolved_steps(optimizer))
            largest = unit / math.sqrt(_cycle_steps(trainer, optimizer, first=True))
        elif schedule.shape != "follow_lr":
            points = min(self._total, 1000)
            largest = max(schedule.multiplier(i / points) for i in range(points))
        return schedule._name, [0.0 if base is None else base / unit for base in self._bases[index]], largest

    def _schedule(self) -> dict[str, Any]:
        """Return what says which schedule this is; of a function, some values."""
        values = [float(f"{self.shape(i / 9):.9g}") for i in range(9)] if callable(self.shape) else []
        return {
            "shape": self._name,
            "start": self.start,
            "end": self.end,
            "milestones": list(self.milestones),
            "decay": self.decay,
            "values": values,
        }

    def _resume(self, trainer: L.Trainer, state: dict[str, Any]) -> None:
        """Take up a checkpoint's position and bases; settle a difference as the optimizer's ``on_resume`` says."""
        self._steps = list(state["steps"])
        self._bases = [list(bases) for bases in state["bases"]]
        on_resume = [getattr(optimizer, "on_resume", "checkpoint") for optimizer in trainer.optimizers]
        if "config" in on_resume:
            # The optimizers have put the configured coefficients back; they are the bases now.
            self._bases = [b if o != "config" else [] for o, b in zip(on_resume, self._bases, strict=True)]
        configured = {**self._schedule(), "total_steps": self._total}
        # Older versions did not save the values of a function.
        saved = {"values": configured["values"], **state["schedule"], "total_steps": state["total_steps"]}
        if saved == configured:
            return
        keys = [key for key in configured if saved[key] != configured[key]]
        text = explain(
            "the DecaySchedule of the checkpoint differs from the configured one.",
            found="; ".join(f"{k} is {saved[k]!r} in the checkpoint, {configured[k]!r} configured" for k in keys),
            fix="optimizer.on_resume=config takes the configured one, on_resume=checkpoint the checkpoint's",
        )
        if "error" in on_resume:
            raise CheckpointMismatchError(text)
        if "config" in on_resume:
            warnings.warn(f"{text}\n  now: the configured one is used", UserWarning, stacklevel=2)
            return
        if {"shape", "values"} & {*keys} and "function" in (saved["shape"], configured["shape"]):
            raise CheckpointMismatchError(f"{text}\n  (a function is not in the checkpoint, so it cannot win)")
        warnings.warn(f"{text}\n  now: the checkpoint's is used", UserWarning, stacklevel=2)
        self._total = saved["total_steps"]
        if keys != ["total_steps"]:
            settings = {key: saved[key] for key in ("shape", "start", "end", "milestones", "decay")}
            self._in_force = DecaySchedule(**settings)

    def _write(self, trainer: L.Trainer, index: int) -> None:
        """Write the current values into the groups of one optimizer."""
        optimizer, schedule = trainer.optimizers[index], self._in_force
        bases = self._bases[index]
        for group in optimizer.param_groups[len(bases) :]:  # the first time, and groups that were added since
            base = group.get("base_weight_decay", group.get("weight_decay"))
            to_lam_norm = math.sqrt(_resolved_steps(optimizer)) if schedule.shape == "restarts" else 1.0
            bases.append(None if base is None else as_float(base) * to_lam_norm)
        progress = min(1.0, self._steps[index] / self._total)
        if schedule.shape == "restarts":
            common = 1.0 / math.sqrt(_cycle_steps(trainer, optimizer))
        else:
            common = schedule.start if schedule.shape == "follow_lr" else schedule.multiplier(progress)
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            if base is None:
                continue
            value = base * common
            if schedule.shape == "follow_lr":
                peak = peak_lr(group)
                value *= as_float(group["lr"]) / peak if peak else 0.0
            if isinstance(group["weight_decay"], Tensor):
                group["weight_decay"].fill_(value)
            else:
                group["weight_decay"] = value


def _total_steps(trainer: L.Trainer) -> int:
    """Return the optimizer steps of the run, or raise a ConfigError that asks for them."""
    total, _ = run_steps(trainer)
    if total is None:
        automatic = trainer.lightning_module.automatic_optimization
        raise ConfigError(
            explain(
                "DecaySchedule needs the number of optimizer steps, which the trainer does not know.",
                found="a run without a limit in steps, or accumulation that changes"
                if automatic
                else "manual optimization",
                fix="write DecaySchedule(..., total_steps=<optimizer steps of the run>)",
            )
        )
    return total


def _resolved_steps(optimizer: Optimizer) -> int:
    """Return the optimizer steps that a normalized amount was resolved for, which a module may have given itself.

    Raises:
        ConfigError: the optimizer's amount is not a normalized one.
    """
    config = getattr(optimizer, "decay_config", None)
    if config is None or config.decay.normalized is None:
        raise ConfigError(
            explain(
                "DecaySchedule shape 'restarts' recomputes a normalized amount, and this optimizer has none.",
                found=f"{type(optimizer).__name__}, groups {', '.join(group_names([optimizer])[0])}",
                fix="write optimizer/decay=normalized (optimizer.decay.normalized=0.05)",
            )
        )
    resolved = as_float(optimizer.defaults["weight_decay"])
    return round((config.decay.coefficient(config["lr"], 1) / resolved) ** 2) if resolved else 1


def _cycle_steps(trainer: L.Trainer, optimizer: Optimizer, *, first: bool = False) -> float:
    """Return the optimizer steps of the current cycle of warm restarts, or of the first.

    Raises:
        ConfigError: the optimizer has no such schedule.
    """
    for entry in trainer.lr_scheduler_configs:
        schedule = entry.scheduler
        if isinstance(schedule, LRSchedule) and schedule.optimizer is optimizer and schedule.shape == "cosine_restarts":
            steps, mult = int(schedule.settings["first_cycle_steps"]), schedule.settings["cycle_mult"]
            at = 0 if first else schedule.last_epoch
            _, _, length = restart_cycle(at, first_cycle_steps=steps, cycle_mult=mult)
            per_epoch = run_steps(trainer)[1] if entry.interval == "epoch" else 1
            return length * entry.frequency * (per_epoch or 1)
    raise ConfigError(
        explain(
            "DecaySchedule shape 'restarts' follows lr_scheduler=cosine_restarts, which this optimizer does not have.",
            found=", ".join(type(entry.scheduler).__name__ for entry in trainer.lr_scheduler_configs) or "none",
            fix="write lr_scheduler=cosine_restarts, or another shape",
        )
    )
