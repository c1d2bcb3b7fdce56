"""Exact conversions between the units of an amount of decay, at the peak learning rate. Pure arithmetic, no torch.

Symbols as in :mod:`lightning_wd.styles`.
"""

from __future__ import annotations

import math

from lightning_wd.errors import ConfigError, checked_keywords, choice, number
from lightning_wd.styles import step_fraction

__all__ = ["TIMESCALES", "UNITS", "adamw_angle", "all_units", "convert", "converted", "peak_equal", "unit_at_peak"]

UNITS = ("decoupled", "independent", "normalized", "timescale_epochs", "timescale_runs", "sgd_l2")
TIMESCALES = ("timescale_epochs", "timescale_runs")

# What a style or another library's name is as a unit: the one with the same d_t at the peak.
_UNIT_ALIASES = {
    "palm": "PaLM's lam is lam * lr in unit 'decoupled'",
    "l2": "SGD's penalty is unit 'sgd_l2'; Adam with L2 has none, since no fixed fraction decays",
    **dict.fromkeys(("adamw", "weight_decouple"), "that lam is unit 'decoupled'"),
    **dict.fromkeys(("corrected", "adamc", "corrected_weight_decay"), "at the peak that lam is unit 'decoupled'"),
    **dict.fromkeys(("decouple_lr", "fully_decoupled"), "that lam is unit 'independent'"),
    **dict.fromkeys(("constant", "fixed_decay", "hanson_pratt"), "at the peak that lam is unit 'independent'"),
}


@checked_keywords()
def convert(
    value: float,
    *,
    from_: str,
    to: str,
    lr: float,
    momentum: float | None = None,
    total_steps: int | None = None,
    steps_per_epoch: float | None = None,
) -> float:
    """Convert an amount of decay between units; exact at the peak learning rate.

    Each unit is first turned into ``d``, the fraction removed by a step at the peak:
    ``d = lr * lam_decoupled = lam_independent = lam_norm / sqrt(total_steps) = 1 / (tau_epochs * steps_per_epoch)
    = 1 / (tau_runs * total_steps)``, and for SGD with momentum mu under an L2 penalty, whose buffer sums 1/(1-mu)
    gradients, ``d = lr * lam_sgd_l2 / (1 - mu)``. Adam with L2 has no unit: no ``lam`` makes it equal a decoupled
    decay (1711.05101, Prop. 2).

    ``angle`` is what a step of AdamW turns a tensor by in equilibrium, ``sqrt(2 * d * (1 - b1) / (1 + b1))`` radians:
    the learning rate of style ``hyperball`` that turns it as much.

    Args:
        value: the amount, >= 0. An infinite timescale is no decay.
        from_: unit of ``value``: ``decoupled``, ``independent``, ``normalized``, ``timescale_epochs``,
            ``timescale_runs`` or ``sgd_l2``.
        to: unit of the result: one of these, or ``angle``.
        lr: ``lr0``, the peak learning rate.
        momentum: SGD's momentum, or b1 of Adam, in [0, 1); needed by ``sgd_l2`` and ``angle``, never assumed.
        total_steps: optimizer steps of the run; needed by ``normalized`` and ``timescale_runs``.
        steps_per_epoch: optimizer steps of one epoch; needed by ``timescale_epochs``.

    Raises:
        ConfigError: an unknown unit, a value out of range, or steps or a momentum that are needed and not given.

    Example:
        >>> convert(0.1, from_="decoupled", to="independent", lr=1e-3)
        0.0001
        >>> round(convert(5e-4, from_="sgd_l2", to="decoupled", lr=0.1, momentum=0.9), 12)
        0.005
        >>> convert(0.05, from_="normalized", to="independent", lr=1e-3, total_steps=10_000)
        0.0005
        >>> round(convert(0.1, from_="decoupled", to="angle", lr=1e-3, momentum=0.9), 6)
        0.003244
    """
    choice("from_", from_, UNITS, aliases=_UNIT_ALIASES)
    choice("to", to, (*UNITS, "angle"), aliases=_UNIT_ALIASES)
    timescale = from_ in TIMESCALES
    value = number("value", value, infinite=timescale, exclusive=timescale)
    lr = number("lr", lr)
    if momentum is not None:
        momentum = number("momentum", momentum, below=1)
    for name, steps in (("total_steps", total_steps), ("steps_per_epoch", steps_per_epoch)):
        if steps is not None:
            number(name, steps, exclusive=True)
    return converted(value, from_, to, lr, momentum=momentum, total_steps=total_steps, steps_per_epoch=steps_per_epoch)


def converted(
    value: float,
    from_: str,
    to: str,
    lr: float,
    *,
    momentum: float | None = None,
    total_steps: int | None = None,
    steps_per_epoch: float | None = None,
) -> float:
    """Convert as :func:`convert` does, where the amount, the units, the rate and the momentum were checked."""
    if from_ == to:
        return value

    def needed(name: str, found: float | None, unit: str, what: str) -> float:
        if found is None:
            raise ConfigError(f"'{unit}' needs {name}, which is not known here.", fix=f"pass {name}={what}")
        return found

    def scale(unit: str) -> float:
        """Return k with ``d = k * value``, for a timescale ``d = k / value``."""
        if unit == "independent":
            return 1.0
        if unit == "decoupled":
            return lr
        if unit == "sgd_l2":
            return lr / (1.0 - needed("momentum", momentum, unit, "<the optimizer's momentum, 0 for plain SGD>"))
        epochs = unit == "timescale_epochs"
        name, known = ("steps_per_epoch", steps_per_epoch) if epochs else ("total_steps", total_steps)
        steps = needed(name, known, unit, "<optimizer steps>, or give the amount as weight_decay")
        steps = number(name, steps, exclusive=True)
        return 1.0 / (math.sqrt(steps) if unit == "normalized" else steps)

    fraction = scale(from_) / value if from_ in TIMESCALES else scale(from_) * value
    if to == "angle":
        return adamw_angle(fraction, needed("momentum", momentum, to, "<b1, the first of AdamW's betas>"))
    target = scale(to)
    if to in TIMESCALES:
        return target / fraction if fraction else math.inf
    if not target:
        raise ConfigError(
            f"lr is 0, so no '{to}' coefficient gives {from_}={value!r}.",
            fix="give the peak learning rate, or use the style 'independent', whose coefficient is not multiplied "
            "by lr",
        )
    return fraction / target


def unit_at_peak(style: str) -> str:
    """Return the unit of a decoupled style's ``lam`` at the peak: ``d`` is ``lr0 * lam`` there, or ``lam`` itself."""
    return "decoupled" if style in ("decoupled", "corrected") else "independent"


def peak_equal(weight_decay: float, *, from_: str, to: str, lr: float) -> float:
    """Return the coefficient of style ``to`` that removes as much at the peak as ``weight_decay`` of style ``from_``.

    Both are decoupled styles, and the numbers were checked.
    """
    return converted(weight_decay, unit_at_peak(from_), unit_at_peak(to), lr)


def adamw_angle(d: float, beta1: float) -> float:
    r"""Return the angle, in radians, by which an AdamW step turns a tensor in equilibrium.

    ``sqrt(2 * d * (1 - b1) / (1 + b1))`` (Kosson et al., https://arxiv.org/abs/2305.17212).

    >>> round(adamw_angle(1e-4, 0.9), 6)
    0.003244
    """
    return math.sqrt(2.0 * d * (1.0 - beta1) / (1.0 + beta1))


def all_units(
    style: str,
    weight_decay: float,
    *,
    lr: float,
    total_steps: int | None = None,
    steps_per_epoch: float | None = None,
) -> dict[str, float]:
    """Return one amount of decay in every unit that is known here, at the peak learning rate ``lr``.

    ``style`` is the unit of ``weight_decay``; ``l2`` has no other. Of optimizer steps, ``total_steps`` of the run add
    ``normalized`` and ``timescale_runs`` (in whole runs), ``steps_per_epoch`` add ``timescale_epochs``.

    >>> all_units("decoupled", 0.1, lr=1e-3, total_steps=10_000)["timescale_runs"]
    1.0
    """
    if style == "l2":
        return {"l2": weight_decay}
    fraction = step_fraction(style, weight_decay=weight_decay, lr=lr, base_lr=lr)
    units = {"decoupled": fraction / lr if lr else 0.0, "independent": fraction}
    steps = 1.0 / fraction if fraction else math.inf
    units["timescale_steps"] = steps
    if total_steps:
        units["normalized"] = fraction * math.sqrt(total_steps)
        units["timescale_runs"] = steps / total_steps
    if steps_per_epoch:
        units["timescale_epochs"] = steps / steps_per_epoch
    return units
