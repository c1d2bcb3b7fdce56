r"""How much a step decays: styles, amounts and the exact conversions between them. Pure arithmetic, no torch.

Symbols, as everywhere in this package: ``w`` weights, ``g`` gradient of the loss alone, ``lr0`` the peak learning
rate that the user sets (``base_lr``), ``lr_t`` the learning rate of step t, ``eta_t = lr_t / lr0`` the schedule
multiplier, ``lam`` the weight-decay coefficient, ``u`` the optimizer's own update direction and ``d_t`` the fraction
of ``w`` that step t removes. Every decoupled style is

    ``w <- w - lr_t * u - d_t * w_old``

and differs only in ``d_t``:

=============  ===============================  ============================================================
style          definition                       who uses it
=============  ===============================  ============================================================
l2             ``g <- g + lam * w``; no d_t     the penalty ``lam/2 * ||w||^2``; torch.optim.Adam and SGD
decoupled      ``d_t = lr_t * lam``             torch.optim.AdamW, timm, Keras 3, optax
independent    ``d_t = eta_t * lam``            Loshchilov & Hutter (1711.05101); Wortsman et al. (2309.14322)
constant       ``d_t = lam``                    Hanson & Pratt (1988); TF Addons
corrected      ``d_t = lr_t^2 / lr0 * lam``     AdamC and SGDC, Defazio (2506.02285)
none           ``d_t = 0``
=============  ===============================  ============================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lightning_wd.errors import ConfigError, explain, nearest

__all__ = [
    "AMOUNTS",
    "STYLES",
    "Decay",
    "all_units",
    "check_number",
    "check_style",
    "convert",
    "kernel_coefficient",
    "step_fraction",
]

STYLES = ("l2", "decoupled", "independent", "constant", "corrected", "none")
AMOUNTS = ("weight_decay", "normalized", "timescale_epochs")
_LR_COUPLED = ("decoupled", "corrected")  # styles whose d_t at the peak is lr0 * lam; the others' is lam
_UNITS = ("decoupled", "independent", "normalized", "timescale_epochs", "sgd_l2")


def step_fraction(style: str, *, weight_decay: Any, lr: Any, base_lr: float) -> Any:
    """Return ``d_t``, the fraction of the old weights that one step removes.

    The equation of each style stands in the table of this module. The arguments may be floats or 0-dim tensors; only
    arithmetic is done with them.

    Args:
        style: one of :data:`STYLES`. ``l2`` and ``none`` remove nothing themselves.
        weight_decay: ``lam >= 0`` in the unit of the style.
        lr: ``lr_t``, the learning rate of this step.
        base_lr: ``lr0``, the peak learning rate of the group. At 0, ``independent`` and ``corrected`` remove nothing.

    >>> step_fraction("decoupled", weight_decay=0.1, lr=0.005, base_lr=0.01)
    0.0005
    >>> step_fraction("independent", weight_decay=0.001, lr=0.005, base_lr=0.01)
    0.0005
    >>> step_fraction("constant", weight_decay=0.001, lr=0.005, base_lr=0.01)
    0.001
    """
    if style == "constant":
        return weight_decay
    return lr * kernel_coefficient(style, weight_decay=weight_decay, lr=lr, base_lr=base_lr)


def kernel_coefficient(style: str, *, weight_decay: Any, lr: Any, base_lr: float) -> Any:
    """Return ``d_t / lr_t``: what to hand to a kernel that multiplies its coefficient by the learning rate.

    It never divides by ``lr_t``, which is 0 at the start of a warm-up. ``constant`` has no such coefficient (it decays
    at ``lr_t = 0`` too), so it is refused here.

    Args:
        style: one of :data:`STYLES` except ``constant``. For ``l2`` and ``none`` it is 0.
        weight_decay: ``lam >= 0`` in the unit of the style.
        lr: ``lr_t``, the learning rate of this step.
        base_lr: ``lr0``, the peak learning rate of the group.

    Raises:
        ConfigError: the style is ``constant`` or unknown.

    >>> kernel_coefficient("independent", weight_decay=0.5, lr=0.0, base_lr=0.25)
    2.0
    """
    if style == "decoupled":
        return weight_decay
    if style == "independent":
        return weight_decay / base_lr if base_lr else 0.0
    if style == "corrected":
        return weight_decay * (lr / base_lr) if base_lr else 0.0
    if style in ("l2", "none"):
        return 0.0
    check_style(style)
    raise ConfigError(
        explain(
            "style 'constant' has no coefficient that a learning rate multiplies.",
            fix="use step_fraction, which is lam itself for this style",
        )
    )


def check_style(style: object, *, where: str = "style") -> None:
    """Raise a ConfigError that names the nearest style unless ``style`` is one of :data:`STYLES`."""
    if style not in STYLES:
        close = nearest(style, STYLES)
        raise ConfigError(
            explain(
                f"{where} {style!r} is not a decay style.",
                valid=STYLES,
                nearest=close,
                fix=f"write {where}={close or 'decoupled'}",
            )
        )


def check_number(
    name: str, value: object, *, minimum: float = 0.0, exclusive: bool = False, infinite: bool = False
) -> float:
    """Return ``value`` as a float, or raise a ConfigError that says what is valid.

    Args:
        name: how the user knows the value, for the message.
        value: anything; a bool, a string, NaN and (unless ``infinite``) inf are refused.
        minimum: the smallest valid value.
        exclusive: whether the minimum itself is refused.
        infinite: whether inf is valid.
    """
    bound = f"{'> ' if exclusive else '>= '}{minimum:g}"
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if good:
        number = float(value)  # type: ignore[arg-type]
        above = number > minimum if exclusive else number >= minimum
        if above and (infinite or math.isfinite(number)):
            return number
    valid = f"a {'number' if infinite else 'finite number'} {bound}"
    unsigned = good and math.isfinite(number) and number < 0 and -number >= minimum
    fix = f"write {name}={-number:g}, without the sign" if unsigned else f"write {name}=<{valid}>"
    if isinstance(value, str):
        fix += "; in YAML read without OmegaConf 1e-4 is text: write 1.0e-4"
    raise ConfigError(
        explain(f"{name} must be a number {bound} but got {value!r}.", found=type(value).__name__, valid=valid, fix=fix)
    )


@dataclass(frozen=True)
class Decay:
    r"""A decay style and its amount, said in exactly one of three ways.

    ================== ========================================================================================
    amount             meaning
    ================== ========================================================================================
    weight_decay       raw ``lam``, in the unit of the style
    normalized         ``lam_norm``, comparable across budgets: ``lam = lam_norm / sqrt(total steps)`` of style
                       ``independent`` (1711.05101, App. B.1; best 0.025 to 0.05 there)
    timescale_epochs   time constant of the weights as a moving average of updates, in epochs:
                       ``lam = 1 / (lr0 * timescale_epochs * steps_per_epoch)`` of style ``decoupled`` (2405.13698)
    ================== ========================================================================================

    Args:
        style: one of ``l2, decoupled, independent, constant, corrected, none``.
        weight_decay: ``lam >= 0`` in the unit of ``style``.
        normalized: ``lam_norm >= 0``; not for ``l2``, whose strength no schedule-free number describes.
        timescale_epochs: epochs ``> 0``; not for ``l2``.
        cautious: decay a coordinate only where ``u * w >= 0`` (2510.12402, Alg. 1); decoupled styles only.

    Raises:
        ConfigError: unknown style; no amount or more than one; a value out of range; ``l2`` with ``normalized``,
            ``timescale_epochs`` or ``cautious``. Style ``none`` may have no amount, and ignores one.

    Example:
        >>> Decay("decoupled", weight_decay=0.1).coefficient(lr=1e-3)
        0.1
        >>> Decay("independent", normalized=0.05).coefficient(lr=1e-3, total_steps=10_000)
        0.0005
        >>> Decay("decoupled", timescale_epochs=10).coefficient(lr=1e-3, steps_per_epoch=100)
        1.0

    References:
        Loshchilov & Hutter, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101;
        Wang & Aitchison, How to set AdamW's weight decay, https://arxiv.org/abs/2405.13698.
    """

    style: str = "decoupled"
    weight_decay: float | None = None
    normalized: float | None = None
    timescale_epochs: float | None = None
    cautious: bool = False

    def __post_init__(self) -> None:
        check_style(self.style)
        given = {name: value for name in AMOUNTS if (value := getattr(self, name)) is not None}
        for name in given:
            if self.style == "l2" and name != "weight_decay":
                raise ConfigError(
                    explain(
                        f"style 'l2' cannot be given by {name}={given[name]!r}: an L2 penalty passes through the "
                        "optimizer's own step, so no fixed fraction of the weights is removed per step.",
                        valid="weight_decay for l2; " + ", ".join(AMOUNTS) + " for every decoupled style",
                        fix=f"use optimizer/decay=independent with {name}, or give weight_decay",
                    )
                )
        if len(given) > 1:
            raise ConfigError(
                explain(
                    "weight decay has more than one amount.",
                    found=", ".join(f"{name}={value!r}" for name, value in given.items()),
                    valid="exactly one of " + ", ".join(AMOUNTS),
                    fix="keep one and set the others to null, for example "
                    + " ".join(f"{name}=null" for name in list(given)[:-1]),
                )
            )
        if not given and self.style != "none":
            raise ConfigError(
                explain(
                    f"decay style '{self.style}' has no amount.",
                    valid="exactly one of " + ", ".join(AMOUNTS),
                    fix="set weight_decay=<lambda>, or style 'none' for no decay",
                )
            )
        for name, value in given.items():
            number = check_number(name, value, exclusive=name == "timescale_epochs")
            object.__setattr__(self, name, number)
        if not isinstance(self.cautious, bool):
            raise ConfigError(
                explain(f"cautious must be true or false but got {self.cautious!r}.", fix="write cautious=true")
            )
        if self.cautious and self.style == "l2":
            raise ConfigError(
                explain(
                    "cautious has no meaning with style 'l2': there is no decay step to hold back.",
                    valid="cautious with " + ", ".join(s for s in STYLES if s not in ("l2", "none")),
                    fix="write cautious=false, or a decoupled style",
                )
            )

    def coefficient(self, lr: float, total_steps: int | None = None, steps_per_epoch: float | None = None) -> float:
        """Resolve the amount to ``lam`` in the unit of the style, at the peak learning rate.

        Equal decay at the peak links the amounts:
        ``d = lr0 * lam_decoupled = lam_independent = lam_norm / sqrt(steps) = 1 / tau_steps``.

        Args:
            lr: ``lr0``, the peak learning rate.
            total_steps: optimizer steps of the whole run at the global batch; needed by ``normalized``.
            steps_per_epoch: optimizer steps of one epoch; needed by ``timescale_epochs``.

        Raises:
            ConfigError: the steps that the amount needs are not given, or ``lr`` is 0 where ``lam`` depends on it.
        """
        if self.style == "none":
            return 0.0
        if self.weight_decay is not None:
            return self.weight_decay
        unit = "normalized" if self.normalized is not None else "timescale_epochs"
        amount = self.normalized if self.normalized is not None else self.timescale_epochs
        assert amount is not None  # held by __post_init__
        return convert(
            amount,
            from_=unit,
            to="decoupled" if self.style in _LR_COUPLED else "independent",
            lr=lr,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
        )


def convert(
    value: float,
    *,
    from_: str,
    to: str,
    lr: float,
    momentum: float = 0.0,
    total_steps: int | None = None,
    steps_per_epoch: float | None = None,
) -> float:
    """Convert an amount of decay between units; exact at the peak learning rate.

    Each unit is first turned into ``d``, the fraction removed by a step at the peak:
    ``d = lr * lam_decoupled = lam_independent = lam_norm / sqrt(total_steps) = 1 / (tau_epochs * steps_per_epoch)``,
    and for SGD with momentum mu under an L2 penalty, whose buffer sums 1/(1-mu) gradients,
    ``d = lr * lam_sgd_l2 / (1 - mu)``. There is no unit for Adam with L2: no ``lam`` makes it equal a decoupled decay
    (1711.05101, Prop. 2).

    Args:
        value: the amount, >= 0. A timescale of infinity is no decay.
        from_: unit of ``value``: ``decoupled, independent, normalized, timescale_epochs`` or ``sgd_l2``.
        to: unit of the result.
        lr: ``lr0``, the peak learning rate.
        momentum: SGD's momentum, in [0, 1); only for ``sgd_l2``.
        total_steps: optimizer steps of the run; only for ``normalized``.
        steps_per_epoch: optimizer steps of one epoch; only for ``timescale_epochs``.

    Raises:
        ConfigError: an unknown unit, a value out of range, or steps that are needed and not given.

    Example:
        >>> convert(0.1, from_="decoupled", to="independent", lr=1e-3)
        0.0001
        >>> round(convert(5e-4, from_="sgd_l2", to="decoupled", lr=0.1, momentum=0.9), 12)
        0.005
        >>> convert(0.05, from_="normalized", to="independent", lr=1e-3, total_steps=10_000)
        0.0005
    """
    for name, unit in (("from_", from_), ("to", to)):
        if unit not in _UNITS:
            close = nearest(unit, _UNITS)
            raise ConfigError(
                explain(
                    f"{name} {unit!r} is not a unit of decay.",
                    valid=_UNITS,
                    nearest=close,
                    fix=f"write {name}={(close or 'decoupled')!r}",
                )
            )
    value = check_number("value", value, infinite=from_ == "timescale_epochs", exclusive=from_ == "timescale_epochs")
    lr = check_number("lr", lr)
    momentum = check_number("momentum", momentum)
    if momentum >= 1:
        raise ConfigError(explain(f"momentum must be in [0, 1) but got {momentum!r}.", fix="write momentum=0.9"))
    if from_ == to:
        return value

    def scale(unit: str) -> float:
        """Return k with ``d = k * value`` (for a timescale ``d = k / value``)."""
        if unit == "independent":
            return 1.0
        if unit == "decoupled":
            return lr
        if unit == "sgd_l2":
            return lr / (1.0 - momentum)
        if unit == "normalized":
            return 1.0 / math.sqrt(_steps("total_steps", total_steps, "normalized"))
        return 1.0 / _steps("steps_per_epoch", steps_per_epoch, "timescale_epochs")

    fraction = scale(from_) / value if from_ == "timescale_epochs" else scale(from_) * value
    target = scale(to)
    if to == "timescale_epochs":
        return target / fraction if fraction else math.inf
    if not target:
        raise ConfigError(
            explain(
                f"lr is 0, so no '{to}' coefficient gives {from_}={value!r}.",
                fix="give the peak learning rate, or the style 'independent', whose coefficient lr does not multiply",
            )
        )
    return fraction / target


def _steps(name: str, value: float | None, unit: str) -> float:
    if value is None:
        raise ConfigError(
            explain(
                f"'{unit}' needs {name}, which is not known here.",
                fix=f"pass {name}=<optimizer steps>, or give the amount as weight_decay",
            )
        )
    return check_number(name, value, exclusive=True)


def all_units(
    style: str,
    weight_decay: float,
    *,
    lr: float,
    total_steps: int | None = None,
    steps_per_epoch: float | None = None,
) -> dict[str, float]:
    """Return one amount of decay in every unit that is known here, at the peak learning rate.

    Args:
        style: a decoupled style, the unit of ``weight_decay``. ``l2`` and ``none`` have no other unit.
        weight_decay: ``lam >= 0``.
        lr: ``lr0``, the peak learning rate.
        total_steps: optimizer steps of the run; adds ``normalized`` and ``timescale_runs`` (in whole runs).
        steps_per_epoch: optimizer steps of an epoch; adds ``timescale_epochs``.

    >>> all_units("decoupled", 0.1, lr=1e-3, total_steps=10_000)["timescale_runs"]
    1.0
    """
    check_style(style)
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
