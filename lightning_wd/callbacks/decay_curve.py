"""The curves of :class:`DecaySchedule`: their settings, checked, and the amount of decay at each part of a run."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Any

from lightning_wd.callbacks.chosen_groups import as_globs
from lightning_wd.errors import ConfigError, choice, number
from lightning_wd.schedules import FALLS

__all__ = ["DecayCurve"]

SHAPES = ("constant", *FALLS, "step", "wsd", "follow_lr", "restarts")
_WITHOUT_END = ("constant", "follow_lr", "restarts")
_SETTINGS = ("shape", "start", "end", "end_weight_decay", "groups", "milestones", "decay")


class DecayCurve:
    """A shape with its settings; :class:`~lightning_wd.callbacks.DecaySchedule` explains them."""

    def __init__(
        self,
        shape: str | Callable[[float], float],
        start: float,
        end: float | None,
        end_weight_decay: float | None,
        groups: Sequence[str] | None,
        milestones: Sequence[float],
        decay: float,
    ) -> None:
        self.shape = shape if callable(shape) else choice("shape", shape, SHAPES)
        self.name = "function" if callable(shape) else shape
        self.start = number("start", start)
        self.end = None if end is None else number("end", end)
        self.end_weight_decay = None if end_weight_decay is None else number("end_weight_decay", end_weight_decay)
        self.groups = None if groups is None else as_globs(groups)
        self.milestones = [number(f"milestones[{i}]", m, exclusive=True, below=1) for i, m in enumerate(milestones)]
        self.decay = number("decay", decay, exclusive=True, at_most=1)
        self._check()

    def _check(self) -> None:
        """Refuse settings that the shape cannot honour."""
        own_values = callable(self.shape) or self.shape == "restarts"
        without_end = own_values or self.shape in _WITHOUT_END
        unused = {
            "end": without_end and self.end is not None,
            "end_weight_decay": without_end and self.end_weight_decay is not None,
            "start": own_values and self.start != 1.0,
        }
        for setting, given in unused.items():
            if given:
                raise ConfigError(f"{setting} has no effect with shape {self.name!r}.", fix=f"remove {setting}")
        if self.end is not None and self.end_weight_decay is not None:
            raise ConfigError(
                "DecaySchedule has both end and end_weight_decay.",
                found=f"end={self.end:g}, end_weight_decay={self.end_weight_decay:g}",
                fix="keep end to multiply each group's own weight decay (and write end_weight_decay=null), or "
                "end_weight_decay for one amount (and write end=null)",
            )
        if self.end is None and self.end_weight_decay is None and not without_end:
            self.end = 0.1
        if self.shape == "step":
            if not self.milestones or sorted({*self.milestones}) != self.milestones:
                raise ConfigError(
                    f"milestones must be rising parts of the run but got {self.milestones}.",
                    fix="write milestones=[0.5, 0.75]",
                )
            if not self.start or not (self.end or self.end_weight_decay):
                raise ConfigError(
                    "shape 'step' multiplies, so start and end must be > 0.", fix="write end=0.01, or use linear"
                )

    def plain(self) -> dict[str, Any]:
        """Return the settings as plain data, for a checkpoint; a function is known by some of its values."""
        values = [float(f"{self.shape(i / 9):.9g}") for i in range(9)] if callable(self.shape) else []
        return {**{key: getattr(self, key) for key in _SETTINGS}, "shape": self.name, "values": values}

    def amount(self, base: float, progress: float) -> float:
        """Return the weight decay of a group by its base, for the part of the run that is over."""
        if not base:
            return 0.0
        if callable(self.shape):
            return base * number("the value of DecaySchedule's function", self.shape(progress))
        start = base * self.start
        if self.shape in _WITHOUT_END:
            return start
        end = base * self.end if self.end is not None else float(self.end_weight_decay)  # type: ignore[arg-type]  # one is set
        if self.shape == "step":
            passed = bisect.bisect_right(self.milestones, progress)
            return float(start * (end / start) ** (passed / len(self.milestones)))
        if self.shape == "wsd":
            progress = 1.0 - min(1.0, (1.0 - progress) / self.decay)
        return end + (start - end) * FALLS["linear" if self.shape == "wsd" else self.shape](progress)
