"""The schedules that are built: ours, and torch's, with a state that is compared when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.optim.lr_scheduler import LRScheduler

from lightning_wd import schedules
from lightning_wd.errors import CheckpointMismatchError, as_typed
from lightning_wd.optimizers.checkpoint import Difference, carry_on, settle
from lightning_wd.optimizers.param_groups import write

__all__ = ["LRSchedule", "check_on_load"]


class LRSchedule(LRScheduler):
    """Set ``lr_t = base_lr * eta_t`` for each group, with ``eta_t`` from :mod:`lightning_wd.schedules`.

    The shape and its settings are in ``state_dict``. On resume the checkpoint's win with a warning, or the configured
    ones do, or a difference is an error, as the optimizer's ``on_resume`` says. In a run that is longer or shorter than
    the saved one, ``total_steps`` is the run's own, with a warning.

    Args:
        optimizer: the optimizer whose groups are scheduled.
        shape: one of :data:`~lightning_wd.configure.lr_scheduler_config.SHAPES` but ``none``.
        settings: the arguments of the shape's function besides the step.
        asked: what they were resolved from, which may be parts of the run.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        >>> schedule = LRSchedule(optimizer, "constant", {"warmup_steps": 3})
        >>> schedule.get_last_lr()
        [0.25]
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        shape: str,
        settings: Mapping[str, Any],
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        self.shape = shape
        self.settings = dict(settings)
        self.asked = dict(settings if asked is None else asked)
        super().__init__(optimizer)

    def eta(self, t: int) -> float:
        """Return the multiplier of the peak learning rate after ``t`` completed steps."""
        return float(getattr(schedules, self.shape)(t, **self.settings))

    def cycle(self, t: int) -> tuple[int, float, float]:
        """Return the index, first step and length of the cycle of ``cosine_restarts`` that holds step ``t``."""
        first, mult = int(self.settings["first_cycle_steps"]), self.settings["cycle_mult"]
        return schedules.restart_cycle(t, first_cycle_steps=first, cycle_mult=mult)

    def get_lr(self) -> list[Any]:
        """Return each group's learning rate for the next step."""
        eta = self.eta(self.last_epoch)
        return [lr * eta for lr in self.base_lrs]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position, and the settings as the optimizer's ``on_resume`` says.

        Raises:
            CheckpointMismatchError: the settings differ and ``on_resume`` is ``error``; or the state is that of another
                class, which cannot be used here, and ``on_resume`` is not ``config``.
        """
        configured = {key: getattr(self, key) for key in ("shape", "settings", "asked", "base_lrs")}
        saved = state_dict.get("settings", {}).get("total_steps")
        same_class = "shape" in state_dict
        if same_class:
            state_dict = self._carried_on(state_dict)
        theirs = _built_as(state_dict, unknown=f"a state with {', '.join(state_dict)}")
        if not same_class:
            state_dict = {key: state_dict[key] for key in ("last_epoch", "_step_count") if key in state_dict}
        own = _settle(self.optimizer, theirs, f"{self.shape} {self.settings}", same_class=same_class)
        super().load_state_dict(state_dict)
        if own:
            self.__dict__.update(configured)
        if own or self.settings.get("total_steps") != saved:
            self._write()

    def follow(self, settings: Mapping[str, Any]) -> None:
        """Go on with other settings, from where the schedule is."""
        if settings != self.settings:
            self.settings = dict(settings)
            self._write()

    def _write(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            write(group, "lr", lr)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _carried_on(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the state of a schedule of this shape with the steps of this run.

        Under a trainer they are known at the first step only: then :meth:`ScheduleRequest.follow` says it.
        """
        saved, steps = state["settings"].get("total_steps"), self.settings.get("total_steps")
        if state["shape"] != self.shape or saved is None or steps is None:
            return state
        reading = getattr(self.optimizer, "first_step", None)
        if reading is not None:
            reading.saved_steps = saved
        elif saved != steps:
            carry_on("the learning-rate schedule", saved, steps, getattr(self.optimizer, "on_resume", "checkpoint"))
        settings = self.settings if state.get("asked") == self.asked else {**state["settings"], "total_steps": steps}
        return {**state, "settings": settings}


class _Checked:
    """Mixin for a scheduler of torch: its state says what it was built as, and a state of another one is noticed."""

    described: ClassVar[str]
    optimizer: torch.optim.Optimizer

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "described": self.described}  # type: ignore[misc]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load torch's state if ``on_resume`` allows: it brings the checkpoint's settings and learning rates back."""
        saved = {key: value for key, value in state_dict.items() if key != "described"}
        theirs = _built_as(state_dict, unknown=self.described)
        rates, own_rates = saved.get("base_lrs"), getattr(self, "base_lrs", None)
        if getattr(self.optimizer, "on_resume", "checkpoint") == "config":
            found = "" if rates in (None, own_rates) else f"base_lrs {rates} in the checkpoint, {own_rates} configured"
            if theirs != self.described:
                found = f"{theirs} in the checkpoint, {self.described} configured"
            if found:
                with as_typed(getattr(self.optimizer, "typed", {})):
                    raise CheckpointMismatchError(
                        "on_resume=config cannot replace the learning rates that this schedule restores.",
                        found=found,
                        valid="the checkpoint's learning rates and schedule",
                        fix="use a schedule of the pack (lr_scheduler=warmup_cosine, ...), or on_resume=checkpoint",
                    )
        same_class = theirs.partition("(")[0] == self.described.partition("(")[0]
        _settle(self.optimizer, theirs, self.described, same_class=same_class)
        super().load_state_dict(saved)  # type: ignore[misc]


def _built_as(state: Mapping[str, Any], unknown: str) -> str:
    """Return what a saved schedule was built as."""
    return f"{state['shape']} {state['settings']}" if "shape" in state else str(state.get("described", unknown))


def _settle(optimizer: torch.optim.Optimizer, theirs: str, ours: str, *, same_class: bool) -> bool:
    """Return whether the configured schedule is used, as ``on_resume`` says where it is not the checkpoint's."""
    lost = ("", "") if same_class else ("the checkpoint's is of another class", "write lr_scheduler as it was")
    differences = [Difference(f"{theirs} in the checkpoint, {ours} configured", *lost)] if theirs != ours else []
    with as_typed(getattr(optimizer, "typed", {})):
        return settle("the learning-rate schedule", differences, getattr(optimizer, "on_resume", "checkpoint"))


def check_on_load(scheduler: LRScheduler, keywords: Mapping[str, Any]) -> None:
    """Let a scheduler of torch compare what it loads with its class and plain settings: ``StepLR(step_size=3)``."""
    cls = type(scheduler)
    plain = {k: v for k, v in sorted(keywords.items()) if isinstance(v, (bool, int, float, str, list, tuple))}
    described = f"{cls.__name__}({', '.join(f'{key}={value!r}' for key, value in plain.items())})"
    scheduler.__class__ = type(cls.__name__, (_Checked, cls), {"described": described, "__module__": cls.__module__})
