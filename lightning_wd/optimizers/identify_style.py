"""What the steps of :mod:`~lightning_wd.optimizers.identify_twins` say about a class's ``weight_decay``.

The fraction ``d`` of the weights that it removes is measured at several rates and amounts, and
``d = k * lr_t^a * lr0^b * weight_decay^c`` is read off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_wd.optimizers.constructor import parameters_of
from lightning_wd.optimizers.identify_result import EXPONENTS, Identification
from lightning_wd.optimizers.identify_twins import AMOUNT, LR, Step, Trial

__all__ = ["StyleReader"]


class _Shares(NamedTuple):
    """The fraction ``d`` that a step removes, by rate; where it is one fraction of all weights in each step."""

    by_rate: Mapping[float, float]
    spread: float


class StyleReader:
    """Reads the style off the steps of a trial."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def read(self) -> Identification:
        trial = self.trial
        if "weight_decay" not in trial.accepted and not trial.any:
            return self._answer("none", 0.0, "Its constructor takes no weight_decay.")
        moving, still = trial.twins(), trial.twins(scale=0.0)
        if all(torch.equal(step.decayed, step.plain) for step in [*moving, *still]):
            extra = "" if "weight_decay" in parameters_of(trial.cls) else "; any keyword is accepted"
            return self._answer("none", 0.0, f"Steps with weight_decay equal those with 0: it has no effect{extra}.")
        found = replace(self._style(moving, still), counters=tuple(sorted(trial.counters)))
        if trial.follows_group():
            return replace(found, follows_group=True)
        line = "It does not read weight_decay from its group at each step: a schedule of it changes nothing."
        return replace(found, own_rule=False, evidence=(*found.evidence, line))

    def _style(self, moving: list[Step], still: list[Step]) -> Identification:
        factor = self.trial.penalty_factor()
        found = self._fraction_of_weights(moving, still)
        if factor is None:
            return found or self._unknown(moving, still)
        if found is not None and found.style == "decoupled":
            return self._both(found, factor)
        spread, sign = _ratios(moving[0]).spread, "-" if self.trial.keywords.get("maximize") else "+"
        return self._answer(
            "l2",
            factor,
            f"Steps with weight_decay equal those with 0 on the gradients g {sign} {_times(factor)}weight_decay * w: "
            "an L2 penalty.",
            f"The fraction of a weight that a step removes varies over coordinates: p95/p5 = {spread:.3g}.",
            spread=spread,
        )

    def _answer(self, style: str, multiple: float | None, *evidence: str, **more: Any) -> Identification:
        return Identification(self.trial.cls.__name__, style, multiple, evidence=evidence, **more)

    def _both(self, found: Identification, factor: float) -> Identification:
        """Tell an L2 penalty from decoupled decay by momentum, which the class is given where it can have it."""
        line = "Without momentum an L2 penalty and decoupled decay are the same steps"
        if "momentum" in self.trial.accepted and not self.trial.keywords.get("momentum"):
            settings, device = {**self.trial.keywords, "momentum": 0.5}, self.trial.start.device.type
            told = StyleReader(Trial(self.trial.cls, settings, self.trial.dtype, device, self.trial.shapes)).read()
            if told.style in ("l2", "decoupled"):
                own = f"{line}; with momentum=0.5 it is {told.style}:"
                base = found if told.style == "decoupled" else told
                return replace(base, evidence=(own, *told.evidence), both=True)
        return replace(found, evidence=(f"{line}; it has no momentum to tell them by.", *found.evidence), both=True)

    def _fraction_of_weights(self, moving: list[Step], still: list[Step]) -> Identification | None:
        """Return the identification where a step removes one fraction of all weights, else None."""
        trial = self.trial
        resting, of, scale = self._shares(still), "old", 1.0
        shares = self._shares(moving)
        if shares is None and (shares := self._shares(moving, "plain")) is not None:
            of = "plain"
        elif shares is None and resting is not None:  # a step that depends on the weights, as Adafactor's
            after_decay = trial.twins(before=resting.by_rate)
            shares = resting if all(trial.same(step.decayed, step.plain) for step in after_decay) else None
            scale = 0.0
        if shares is None or not shares.by_rate[LR]:
            return None
        twice = trial.twins(2 * AMOUNT, scale=scale)
        if of == "plain":  # w * (1 - d) or, proximal, w / (1 + d): the one whose d is linear in the amount
            bends = {
                each: _ratios(twice[0], each).middle / _ratios(moving[0], each).middle - 2
                for each in ("plain", "decayed")
            }
            of = min(bends, key=lambda each: abs(bends[each]))
            shares = self._shares(moving, of) or shares
        more = self._shares(twice, of)
        higher = self._shares(trial.twins(lr=2 * LR, scale=scale), of)
        at = shares.by_rate
        larger = self._shares(trial.twins(scale=16.0), of) if scale else shares
        if more is None or higher is None or larger is None or not self._alike(larger.by_rate[LR], at[LR]):
            return None
        a, a_low = _exponent(at[LR], at[LR / 2]), _exponent(at[LR / 2], at[LR / 4])
        b, c = _exponent(higher.by_rate[LR], at[LR]), _exponent(more.by_rate[LR], at[LR])
        if a is None or b is None or c is None or a != a_low:
            return None
        if "lr" not in trial.accepted and not trial.any:  # nobody can tell what it takes as lr0
            return None
        style = next((style for style, exponents in EXPONENTS.items() if exponents == (a, b, c)), "unknown")
        multiple = _snap(at[LR] / (LR**a * LR**b * AMOUNT**c))
        factors = [("lr_t", a), ("lr0", b), ("weight_decay", c)]
        formula = " * ".join(name if e == 1 else f"{name}^{e:g}" for name, e in factors if e)
        lines = [
            f"A step removes the same fraction d of all {'old' if of == 'old' else 'new'} weights: p95/p5 = "
            f"{shares.spread:.6g}.",
            f"d = {_times(multiple)}{formula}: {', '.join(f'{d:.3g} at lr_t={rate:g}' for rate, d in at.items())} "
            f"with lr0={LR:g} and weight_decay={AMOUNT:g}; {higher.by_rate[LR]:.3g} with lr0={2 * LR:g}, "
            f"{more.by_rate[LR]:.3g} with weight_decay={2 * AMOUNT:g}, at lr_t={LR:g}.",
        ]
        if of != "old":
            how = ", and divides by 1 + d" * (of == "decayed")
            lines.append(f"It decays the new weights, after the update{how}; decoupled decay here takes the old ones.")
        resting = self._shares(still, of)
        steady = resting is None or self._alike(resting.by_rate[LR], at[LR])
        if resting is not None and not steady:
            lines.append(
                f"It depends on the gradient: with zero gradients d is {resting.by_rate[LR]:.4g}, "
                f"{resting.by_rate[LR] / at[LR]:.4g} times as much."
            )
        if not 0.01 <= multiple <= 100:  # as of Prodigy, whose first is 1e-6
            style = "unknown"
            lines.append("That is no multiple of ours: it has a rate of its own, which may be another later.")
        elif style == "unknown":
            lines.append("No style has this d.")
        own_rule = style == "decoupled" and steady and of == "old"
        return self._answer(
            style,
            multiple,
            *lines,
            lr_exponent=a,
            base_lr_exponent=b,
            amount_exponent=c,
            spread=shares.spread,
            own_rule=own_rule,
        )

    def _shares(self, steps: Sequence[Step], of: str = "old") -> _Shares | None:
        """Return the fraction that each step removes; None where weights have unlike ones, or it changes by step."""
        by_rate: dict[float, float] = {}
        spread, tolerance = 1.0, self.trial.tolerance
        for step in steps:
            each = [_ratios(part, of) for part in [step, *self._by_tensor(step)]]
            d = each[0].middle
            if not all(math.isclose(value, d, rel_tol=tolerance, abs_tol=1e-12) for r in each for value in r):
                return None
            if not math.isclose(by_rate.setdefault(step.lr, d), d, rel_tol=max(tolerance, 1e-5), abs_tol=1e-12):
                return None
            spread = max(spread, each[0].spread if d else 1.0)
        return _Shares(by_rate, spread)

    def _by_tensor(self, step: Step) -> list[Step]:
        split = (torch.split(values, self.trial.sizes) for values in step[1:])
        return [Step(step.lr, *parts) for parts in zip(*split, strict=True)]

    def _alike(self, a: float, b: float) -> bool:
        return math.isclose(a, b, rel_tol=max(1e-3, self.trial.tolerance))

    def _unknown(self, moving: list[Step], still: list[Step]) -> Identification:
        """Say what was measured where no style fits."""
        step = moving[0]
        ratios, values = _ratios(step), _removed(step)
        lines = ["No style fits: steps with weight_decay are no steps on an added penalty, and remove no one fraction."]
        top = float(values.abs().max())
        at_top = (values - top).abs() <= 1e-3 * top
        at_zero = values.abs() <= 1e-6 * top
        if top > 0 and bool(at_zero.any()) and bool((at_top | at_zero).all()):
            agree = ((step.old - step.plain) * step.old >= 0)[_big(step)]
            share = float(at_top.double().mean())
            cautious = bool((agree == at_top).double().mean() > 0.99)
            which = (
                "those where decay and update agree in sign: cautious decay" if cautious else "the others not at all"
            )
            lines.append(f"It decays {share:.0%} of the coordinates by d = {top:.4g}, {which}.")
        elif math.isfinite(ratios.middle):
            lines.append(
                f"At lr_t={LR:g} and weight_decay={AMOUNT:g} a step removes {ratios.low:.3g} (p5), "
                f"{ratios.middle:.3g} (median), {ratios.high:.3g} (p95) of a weight."
            )
        constant = _percentiles((step.plain - step.decayed).double())
        if constant.low > 0 and constant.spread < 1.001:
            lines.append(f"It subtracts the same number from each weight, {constant.middle:.4g}: that is no decay.")
        tensors = [_ratios(part) for part in self._by_tensor(step)]
        alike = math.isclose(*(part.middle for part in tensors), rel_tol=1e-3)
        if all(0.999 < part.spread < 1.001 for part in tensors) and not alike:
            each = ", ".join(f"{part.middle:.4g}" for part in tensors)
            lines.append(f"Within a tensor it is one fraction, and another in each tensor: {each}.")
        middles = [_ratios(step).middle for step in moving if step.lr == LR]
        if 0.999 < ratios.spread < 1.001 and not math.isclose(*middles, rel_tol=1e-3):
            lines.append(f"It changes from step to step: {middles[0]:.4g}, later {middles[1]:.4g}.")
        resting = self._shares(still)
        if resting is not None:
            lines.append(f"With zero gradients it removes {resting.by_rate[LR]:.4g} of all weights.")
        return self._answer("unknown", None, *lines, spread=ratios.spread if math.isfinite(ratios.spread) else None)


class _Ratios(NamedTuple):
    """Percentiles over coordinates of what a step removes of a weight."""

    low: float
    middle: float
    high: float
    mean: float

    @property
    def spread(self) -> float:
        return self.high / self.low if self.low > 0 else math.inf


def _big(step: Step) -> Tensor:
    """Where a weight is not so near 0 that a ratio to it is rounding."""
    return (step.old.abs() > 0.05) & (step.plain.abs() > 0.05)


def _removed(step: Step, of: str = "old") -> Tensor:
    """Return the fraction of each weight that decay removes: of the old, the plain or the decayed one."""
    big, whole = _big(step), {"old": step.old, "plain": step.plain, "decayed": step.decayed}[of]
    return ((step.plain - step.decayed)[big] / whole[big]).double()


def _percentiles(values: Tensor) -> _Ratios:
    if not len(values) or not bool(values.isfinite().all()):
        return _Ratios(math.nan, math.nan, math.nan, math.nan)
    low, middle, high = torch.quantile(values, torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype)).tolist()
    return _Ratios(low, middle, high, float(values.mean()))


def _ratios(step: Step, of: str = "old") -> _Ratios:
    return _percentiles(_removed(step, of))


def _exponent(numerator: float, denominator: float) -> float | None:
    """Return e with ``numerator / denominator = 2^e`` where e is a multiple of one half, else None."""
    if numerator <= 0 or denominator <= 0:
        return None
    exponent = math.log2(numerator / denominator)
    near = round(2 * exponent) / 2
    return near if abs(exponent - near) < 0.02 else None


def _snap(value: float) -> float:
    """Return the number of three digits that a measured one is, where it is one."""
    near = float(f"{value:.3g}")
    return near if math.isclose(value, near, rel_tol=5e-4) else value


def _times(factor: float) -> str:
    return "" if factor == 1 else f"{factor:.6g} * "
