"""What was read from the trainer when an optimizer was configured, read again where the first step is taken.

Between the two, a finder sets another learning rate or batch size, weight averaging adds an epoch, a line of the user's
sets something else. Groups and schedule then follow together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim import Optimizer

from lightning_wd._private import attached_trainer, inner_schedulers, per_group_lists
from lightning_wd.configure.budget import Budget, resumed
from lightning_wd.configure.cautions import cautions
from lightning_wd.errors import as_typed, warn
from lightning_wd.optimizers.checkpoint import carry_on
from lightning_wd.optimizers.param_groups import as_float, write

__all__ = ["FirstStep", "found_in_earlier_fit", "read_again"]

_RAISED = 1.0 + 1e-6  # above a peak by more than rounding
_RATE_KEYS = ("initial_lr", "max_lr", "min_lr")  # where schedulers keep a group's rates
_RATE_LISTS = ("base_lrs", "max_lrs", "_last_lr")
# Module -> the finder of its last fit, which writes the rate into it, and the rate that was configured before that.
_SEARCHED: WeakKeyDictionary[Any, tuple[Any, float]] = WeakKeyDictionary()


def read_again(optimizer: Optimizer, *, in_step: bool = False) -> None:
    """Let an optimizer and its schedule follow what the trainer says now; callbacks ask for it as training starts."""
    reading = getattr(optimizer, "first_step", None)
    if reading is not None:
        reading.read_again(in_step=in_step)


def found_in_earlier_fit(module: Any, lr: float) -> float | None:
    """Return the rate that was configured before a finder of an earlier fit wrote ``lr`` into the module, else None."""
    finder, before = _SEARCHED.get(module, (None, lr))
    written = _suggestion(finder) == lr
    finders = [each for each in getattr(attached_trainer(module), "callbacks", ()) if hasattr(each, "optimal_lr")]
    if finders:
        _SEARCHED[module] = finders[0], before if written else lr
    return before if written else None


class FirstStep:
    """A pre-hook of the optimizer's step that reads learning rate and steps again, at the first step of the run.

    - A rate that a finder has set is the peak ``lr0``: each group has it times its own multiplier. A rate that was set
      above a group's peak is that group's peak. A lower one is taken for the start of a warm-up.
    - An amount given by the steps of the run or of an epoch is resolved again, at that peak. What was tuned at a
      reference is carried over again, to the batch and steps of now.
    - A schedule that was given the steps of the run ends where the run ends.

    After a resume the rates and amounts are the checkpoint's, unless ``on_resume`` is ``config``.

    Args:
        module: its trainer is asked.
        optimizer: what was built.
        peak: returns ``lr0``, which may depend on the batch (``optimizer.reference``).
        amount: ``lr0`` -> the coefficient of decay at that peak, with the steps of ``budget``.
        groups: ``lr0``, coefficient -> the groups, as they would be built now; ``raised`` says that rates which rules
            set are raised with ``lr0``, as a finder's rate does not.
        budget: forgets what it has read.
        schedule: the scheduler, if there is one.
        reschedule: lets the schedule follow ``budget``; told whether the run was resumed.
    """

    def __init__(
        self,
        module: Any,
        optimizer: Any,
        peak: Callable[[], float],
        amount: Callable[[float], float],
        groups: Callable[..., Sequence[dict[str, Any]]],
        budget: Budget,
        schedule: Any,
        reschedule: Callable[..., None] | None,
    ) -> None:
        self._module, self._optimizer = module, optimizer
        self._peak, self._amount, self._groups = peak, amount, groups
        self._budget, self._schedule, self._reschedule = budget, schedule, reschedule
        self._built = peak(), amount(peak())
        self._found: float | None = None  # the rate of a finder in this run
        self._count = len(optimizer.param_groups)  # others join later
        trainer = attached_trainer(module)
        self._resumed = resumed(trainer)
        self._finders = [callback for callback in trainer.callbacks if _is_finder(callback)]
        self.saved_steps: float | None = None  # of a loaded schedule, until the run's own are known
        self._started, self._told = False, False
        self._next_step = -1
        optimizer.register_step_pre_hook(self)

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Read again at the first step, and wherever a finder has put the trainer's count of steps back."""
        trainer = attached_trainer(self._module)
        if trainer is None:
            return
        if not optimizer.state and all(as_float(group["lr"]) == 0 for group in optimizer.param_groups):
            return  # torch.distributed.checkpoint creates the state by a step, before the run's progress is restored
        step = trainer.global_step
        if any(finder not in trainer.callbacks for finder in self._finders):
            self._next_step = -1  # a finder takes the callbacks away while it searches; it will undo this step
        elif step == self._next_step or (self._started and not self._module.automatic_optimization):
            self._next_step = step + 1
        else:
            self.read_again(in_step=True)
            if not self._started:
                self._warn(trainer)
            self._started, self._next_step = True, step + 1

    @property
    def settled(self) -> bool:
        """Whether the run has begun, and no finder is searching."""
        return self._started and self._next_step >= 0

    @property
    def goes_on(self) -> bool:
        """Whether the run is resumed at the checkpoint's rates and amounts."""
        return self._resumed and bool(self._optimizer.on_resume != "config")

    def read_again(self, *, in_step: bool = False) -> None:
        """Follow what the trainer says now, as training starts or within a step."""
        trainer = attached_trainer(self._module)
        self._budget.forget(in_step=in_step)
        goes_on = self.goes_on
        with as_typed(getattr(self._optimizer, "typed", {})):
            if goes_on:
                self._tell_of_finder(trainer)
            else:
                self._follow_rates(trainer)
            if self._reschedule is not None:
                self._reschedule(resumed=goes_on)
            settings = getattr(self._schedule, "settings", {})
            saved, self.saved_steps = self.saved_steps, None
            if goes_on and saved is not None and saved != settings["total_steps"]:
                carry_on("the learning-rate schedule", saved, settings["total_steps"], self._optimizer.on_resume)

    def _tell_of_finder(self, trainer: Any) -> None:
        """Warn, once, of a found rate that a resumed run does not train at."""
        found = _suggestions(trainer)
        rates = [as_float(group["base_lr"]) for group in self._optimizer.param_groups]
        if found and found[0] not in rates and not self._told:
            self._told = True
            warn(
                f"LearningRateFinder has found {found[0]:.3g}, but the resumed run goes on at the checkpoint's rate.",
                found=f"lr0 = {max(rates):.3g}",
                fix="remove the finder from a run that resumes, or write on_resume=config",
            )

    def _warn(self, trainer: Any) -> None:
        """Warn of amounts that can hardly be meant, unless a callback shows them."""
        total = self._budget.total_steps("the timescale") if self._budget.knows_total() else None  # on all ranks
        if not trainer.is_global_zero or any(getattr(c, "shows_cautions", False) for c in trainer.callbacks):
            return
        schedule = next((c for c in trainer.callbacks if getattr(c, "schedules_decay", False)), None)
        scheduled = None if schedule is None else schedule.largest(trainer, trainer.optimizers.index(self._optimizer))
        for line in cautions(self._optimizer, total, scheduled):
            warnings.warn(line, UserWarning, stacklevel=2)

    def _follow_rates(self, trainer: Any) -> None:
        """Give each group the peak that was set for it, and the amount of decay at that peak."""
        groups = self._optimizer.param_groups[: self._count]
        now = [as_float(group["lr"]) for group in groups]
        peaks = [group["base_lr"] for group in groups]
        last = self._schedule.get_last_lr() if self._schedule is not None else peaks
        etas = [as_float(lr) / peak if peak else 1.0 for lr, peak in zip(last, peaks, strict=False)]
        self._found = _found_rate(trainer, now) or self._found
        lr = self._peak() if self._found is None else self._found
        built = lr, self._amount(lr)
        if built != self._built:
            self._built = built
            self._optimizer.defaults.update(lr=lr, weight_decay=built[1])
            for index, rebuilt in enumerate(self._groups(*built)):
                self._set(index, rebuilt["base_lr"], rebuilt["weight_decay"], etas[index])
        elif not self._started:
            for index, base in enumerate(peaks):
                if now[index] > base * max(1.0, etas[index]) * _RAISED:
                    peak = lr * now[index] / base if base else now[index]
                    weight_decay = self._groups(peak, self._amount(peak), raised=True)[index]["weight_decay"]
                    self._set(index, now[index], weight_decay, etas[index])

    def _set(self, index: int, peak: float, weight_decay: float, eta: float) -> None:
        """Write a group's new peak and amount, and what its schedule keeps of the old peak."""
        group = self._optimizer.param_groups[index]
        scale = peak / group["base_lr"] if group["base_lr"] else 1.0
        group.update(base_lr=peak, weight_decay=weight_decay, base_weight_decay=weight_decay)
        write(group, "lr", peak * eta)
        for key in _RATE_KEYS:
            if key in group:
                group[key] = group[key] * scale
        for scheduler in (self._schedule, *inner_schedulers(self._schedule)):
            for name, values in per_group_lists(scheduler):
                if name in _RATE_LISTS:
                    values[index] = values[index] * scale


def _is_finder(callback: Any) -> bool:
    return hasattr(callback, "optimal_lr") or hasattr(callback, "optimal_batch_size")


def _found_rate(trainer: Any, now: list[float]) -> float | None:
    """Return the rate that a LearningRateFinder has written into every group, or None."""
    return next((found for found in _suggestions(trainer) if all(rate == found for rate in now)), None)


def _suggestions(trainer: Any) -> list[float]:
    """Return the rates that finders among the callbacks have found."""
    return [rate for rate in map(_suggestion, trainer.callbacks) if rate is not None]


def _suggestion(callback: Any) -> float | None:
    """Return the rate that a finder has found; None where it has not, and of any other callback."""
    result = getattr(callback, "optimal_lr", None)
    rate = None if result is None else result.suggestion()
    return None if rate is None else float(rate)
