"""Amounts of decay that can hardly be meant, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lightning_wd.conversions import all_units
from lightning_wd.optimizers.param_groups import configured_weight_decay, group_label, group_style, peak_lr
from lightning_wd.styles import NO_AMOUNT

__all__ = ["cautions"]

_SHORT_RUNS = 0.03  # with a shorter timescale the weights know a few percent of the run only
_COUPLED_RUNS = 0.2  # the same, of a number that looks like one of `decoupled`
_LONG_RUNS = 10.0  # with a longer one a whole run removes less than a tenth of a weight
_LARGE_FRACTION = 1e-3  # usual as lam of `decoupled`, where lr multiplies it


def cautions(
    optimizer: Any, total_steps: int | None, scheduled: tuple[str, list[float], list[float]] | None = None
) -> list[str]:
    """Return a line for each group of an optimizer whose amount of decay can hardly be meant.

    The style's typical amount is nobody's choice, so it is not said to be small. ``scheduled`` is what
    ``DecaySchedule.largest`` returns: then the largest amount counts.
    """
    groups = optimizer.param_groups
    own = [configured_weight_decay(group) or 0.0 for group in groups]
    _, _, largest = scheduled or (None, own, own)
    config, plan = (getattr(optimizer, name, None) for name in ("decay_config", "decay_plan"))
    decaying = {row.group for row in plan or () if row.wd_mult and "weight_decay" not in row.settings}
    found = []
    # a group that joined after training started has no base yet
    for index, (group, lam) in enumerate(zip(groups, largest, strict=False)):
        style, label = group_style(optimizer, group), group_label(group, index)
        if style in (None, *NO_AMOUNT):
            continue
        if not lam:
            if group.get("name") in decaying:
                found.append(
                    f"{label} has weight_decay 0, so nothing decays: write optimizer/decay=none if it is meant"
                )
            continue
        where = label if scheduled is None else f"{label} at its largest weight_decay {lam:.4g}"
        units = all_units(str(style), lam, lr=peak_lr(group), total_steps=total_steps)
        chosen = config is None or not config.typical_amount
        found += [f"{where}: {line}" for line in _lines(str(style), lam, peak_lr(group), units, chosen)]
    return found


def _lines(style: str, lam: float, lr: float, units: dict[str, float], chosen: bool) -> Iterator[str]:
    fraction = units.get("independent", 0.0)  # l2 has none
    runs = units.get("timescale_runs", math.inf)
    coupled = ""
    if style in ("independent", "constant") and fraction >= _LARGE_FRACTION:
        coupled = f"; {lam:g} is a number for style 'decoupled', which multiplies it by lr: that is {lam * lr:.3g} here"
    if fraction >= 1:
        yield f"a step at the peak learning rate removes {fraction:.3g} of each weight (d_t >= 1): lower weight_decay"
    elif runs < (_COUPLED_RUNS if coupled else _SHORT_RUNS):
        yield (
            f"the timescale is {units['timescale_steps']:.3g} steps, {runs:.2g} of the run: weights forget what came "
            f"before{coupled}"
        )
    elif math.isinf(runs) and coupled:
        yield f"the timescale is {units['timescale_steps']:.3g} steps{coupled}"
    elif chosen and _LONG_RUNS < runs < math.inf:
        yield (
            f"the timescale is {runs:.3g} times the run: decay hardly acts (it removes {1 / runs:.2g} of a weight): "
            "raise weight_decay, or write optimizer/decay=none if it is meant"
        )
