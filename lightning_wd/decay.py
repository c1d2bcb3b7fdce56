r"""How much a step decays: styles, amounts and the exact conversions between them. Pure arithmetic, no torch.

Symbols, as everywhere in this package: ``w`` weights, ``g`` gradient of the loss alone, ``lr0`` the peak learning
rate that the user sets (``base_lr``), ``lr_t`` the learning rate of step t, ``eta_t = lr_t / lr0`` the schedule
multiplier, ``lam`` the weight-decay coefficient, ``u`` the optimizer's own update direction and ``d_t`` the fraction
of ``w`` that step t removes. Every decoupled style is

    ``w <- w - lr_t * u - d_t * w_old``

and the styles differ only in ``d_t``:

=============  ===============================  ============================================================
style          definition                       who uses it
=============  ===============================  ============================================================
l2             ``g <- g + lam * w``; no d_t     the penalty ``lam/2 * ||w||^2``; torch.optim.Adam and SGD
decoupled      ``d_t = lr_t * lam``             torch.optim.AdamW, timm, Keras 3, optax
independent    ``d_t = eta_t * lam``            Loshchilov & Hutter (1711.05101); Wortsman et al. (2309.14322)
constant       ``d_t = lam``                    Hanson & Pratt (1988); TF Addons
corrected      ``d_t = lr_t^2 / lr0 * lam``     AdamC and SGDC, Defazio (2506.02285)
hyperball      norm control instead; no d_t     Wen et al. (2606.16899)
none           ``d_t = 0``
=============  ===============================  ============================================================

With ``toward: w*`` the decay is of ``w - w*``: ``w <- w - lr_t * u - d_t * (w_old - w*)``, in ``l2``
``g <- g + lam * (w - w*)``.

``hyperball`` keeps each tensor of two or more dimensions on the sphere it started on: with ``R = ||W_0||`` and
``N(x) = x / ||x||``, norms over the whole tensor, ``W <- R * N(W - lr_t * R * N(u))``. ``lr_t`` is then relative: a
step turns the tensor by ``atan(lr_t)`` where u is orthogonal to it. It has no amount.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, fields
from typing import Any

from lightning_wd.errors import ConfigError, ExplainedError, checked_keywords, choice, flag, nearest, number

__all__ = [
    "ALIASES",
    "AMOUNTS",
    "NO_AMOUNT",
    "RENAMED",
    "STYLES",
    "Decay",
    "adamw_angle",
    "all_units",
    "check_style",
    "check_toward",
    "convert",
    "kernel_coefficient",
    "peak_equal",
    "step_fraction",
]

STYLES = ("l2", "decoupled", "independent", "constant", "corrected", "hyperball", "none")
NO_AMOUNT = ("hyperball", "none")
TOWARD = ("zero", "init")  # and the path of a checkpoint
AMOUNTS = ("weight_decay", "normalized", "timescale_epochs", "timescale_runs")
UNITS = ("decoupled", "independent", "normalized", "timescale_epochs", "timescale_runs", "sgd_l2")
_TARGETS = (*UNITS, "angle")
_TIMESCALES = ("timescale_epochs", "timescale_runs")
_LR_COUPLED = ("decoupled", "corrected")  # styles whose d_t at the peak is lr0 * lam; the others' is lam

# What other libraries call a style -> what to write here. docs/names.md has the table; a test keeps them together.
ALIASES = {
    "palm": "PaLM's d_t = lr_t^2 * lam is style 'corrected' with weight_decay = lam * lr0",
    "fixed_decay": "pytorch_optimizer's fixed_decay=True is style 'constant'",
    "weight_decouple": "pytorch_optimizer's weight_decouple=True is style 'decoupled', False is style 'l2'",
    "decouple_lr": "optimi's decouple_lr=True is style 'independent'",
    "fully_decoupled": "optimi's fully decoupled decay is style 'independent'",
    "coupled": "decay that goes through the gradient is style 'l2'",
    "adamw": "AdamW's own decay is style 'decoupled'",
    "adamc": "AdamC's decay is style 'corrected'",
    "corrected_weight_decay": "timm's corrected_weight_decay=True is style 'corrected'",
    "hanson_pratt": "Hanson & Pratt's decay is style 'constant'",
}

_NORMALIZED = "normalized is an amount of style 'independent': write optimizer/decay=normalized, or in Python {}"
_TIMESCALE = "a timescale is an amount of style 'decoupled': write optimizer/decay=timescale, or in Python {}"
_AMOUNTS_AS_STYLES = {"normalized": _NORMALIZED.format("Decay('independent', normalized=0.05)")} | dict.fromkeys(
    ("timescale", *_TIMESCALES), _TIMESCALE.format("Decay('decoupled', timescale_epochs=30)")
)
# The same for a unit; a style's lam is that of the unit with the same d_t at the peak.
_UNIT_ALIASES = {
    "palm": "PaLM's lam is lam * lr in unit 'decoupled'",
    "l2": "SGD's penalty is unit 'sgd_l2'; Adam with L2 has none, since no fixed fraction decays",
    **dict.fromkeys(("adamw", "weight_decouple"), "that lam is unit 'decoupled'"),
    **dict.fromkeys(("corrected", "adamc", "corrected_weight_decay"), "at the peak that lam is unit 'decoupled'"),
    **dict.fromkeys(("decouple_lr", "fully_decoupled"), "that lam is unit 'independent'"),
    **dict.fromkeys(("constant", "fixed_decay", "hanson_pratt"), "at the peak that lam is unit 'independent'"),
}
# Names of other libraries for a setting -> the name here.
RENAMED = {"wd": "weight_decay", "learning_rate": "lr", "beta1": "betas", "beta2": "betas"}


def check_style(name: str, style: object, error: type[ExplainedError] = ConfigError) -> str:
    """Return ``style`` if it is one, or raise an error that says what to write; ``name`` is how the user knows it."""
    return choice(name, style, STYLES, aliases=ALIASES | _AMOUNTS_AS_STYLES, error=error)


def check_toward(name: str, value: object, style: str | None, error: type[ExplainedError] = ConfigError) -> str:
    """Return what weights decay towards: ``zero``, ``init``, or the path of a file; ``name`` is how the user knows it.

    >>> check_toward("optimizer.decay.toward", "int", "decoupled")
    Traceback (most recent call last):
    ...
    lightning_wd.errors.ConfigError: optimizer.decay.toward 'int' is neither zero, init nor a file.
      valid: zero, init, or the path of a checkpoint
      nearest: 'init'
      fix: write optimizer.decay.toward=init
    """
    toward = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(toward, str) or not (toward in TOWARD or os.path.isfile(os.path.expanduser(toward))):
        close = nearest(toward, TOWARD)
        if isinstance(toward, str) and os.path.isdir(os.path.expanduser(toward)):
            raise error(
                f"{name} {value!r} is a folder.",
                valid="zero, init, or the path of a checkpoint in one file",
                fix="make one file of a distributed checkpoint: "
                f"python -m lightning.pytorch.utilities.consolidate_checkpoint {toward}",
            )
        raise error(
            f"{name} {value!r} is neither zero, init nor a file.",
            valid="zero, init, or the path of a checkpoint",
            nearest=close,
            fix=f"write {name}={close}" if close else f"correct the path, or write {name}=init",
        )
    if style == "hyperball" and toward != "zero":
        raise error(
            f"{name} {toward!r} has no meaning with style 'hyperball': it keeps a norm, and decays towards nothing.",
            fix=f"write {name}=zero, or a decay style",
        )
    return toward


def step_fraction(style: str, *, weight_decay: Any, lr: Any, base_lr: float) -> Any:
    """Return ``d_t``, the fraction of the old weights that one step removes.

    The table of this module has the equations: ``weight_decay`` is ``lam`` in the unit of the style, ``lr`` is ``lr_t``
    and ``base_lr`` is ``lr0``; floats or 0-dim tensors. ``l2``, ``hyperball`` and ``none`` remove nothing themselves,
    and at ``base_lr=0`` neither do ``independent`` and ``corrected``.

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

    It takes what :func:`step_fraction` takes, and never divides by ``lr_t``, which is 0 when a warm-up starts.

    Raises:
        ConfigError: the style is unknown, or ``constant``, which has no such coefficient: it decays at rate 0 too.

    >>> kernel_coefficient("independent", weight_decay=0.5, lr=0.0, base_lr=0.25)
    2.0
    """
    if style == "decoupled":
        return weight_decay
    if style == "independent":
        return weight_decay / base_lr if base_lr else 0.0
    if style == "corrected":
        return weight_decay * (lr / base_lr) if base_lr else 0.0
    if style in ("l2", "hyperball", "none"):
        return 0.0
    check_style("style", style)
    raise ConfigError(
        "style 'constant' has no coefficient that a learning rate multiplies.",
        fix="use step_fraction, which is lam itself for this style",
    )


@checked_keywords()
@dataclass(frozen=True)
class Decay:
    r"""A decay style and its amount, given in exactly one of four ways.

    ================== ========================================================================================
    amount             meaning
    ================== ========================================================================================
    weight_decay       raw ``lam``, in the unit of the style
    normalized         ``lam_norm``, comparable across budgets: ``lam = lam_norm / sqrt(total steps)`` of style
                       ``independent`` (1711.05101, App. B.1; best 0.025 to 0.05 there)
    timescale_epochs   time constant of the weights as a moving average of updates, in epochs:
                       ``lam = 1 / (lr0 * timescale_epochs * steps_per_epoch)`` of style ``decoupled`` (2405.13698)
    timescale_runs     the same as a part of the run: ``lam = 1 / (lr0 * timescale_runs * total_steps)`` (2505.13738)
    ================== ========================================================================================

    Args:
        style: one of ``l2, decoupled, independent, constant, corrected, hyperball, none``.
        weight_decay: ``lam >= 0`` in the unit of ``style``.
        normalized: ``lam_norm >= 0``; not for ``l2``, whose strength no schedule-free number describes.
        timescale_epochs: epochs ``> 0``; not for ``l2``.
        timescale_runs: runs ``> 0``; not for ``l2``.
        cautious: decay a coordinate only where ``u * w >= 0`` (2510.12402, Alg. 1); decoupled styles only.
        toward: what weights decay towards: ``zero``; ``init``, the weights when the optimizer is built (L2-SP,
            1802.01483); or the path of a checkpoint, for its weights. Not for ``hyperball``.
        typed: field -> how the user typed it, for errors, such as ``{"style": "optimizer.decay.style"}``.

    Raises:
        ConfigError: an unknown style; no amount or more than one; a value out of range; ``l2`` with ``cautious`` or an
            amount other than ``weight_decay``; ``hyperball`` with an amount, ``cautious`` or ``toward``. Style
            ``none`` needs no amount, and ignores one.

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
    timescale_runs: float | None = None
    cautious: bool = False
    toward: str = "zero"
    typed: InitVar[Mapping[str, str] | None] = None

    def __post_init__(self, typed: Mapping[str, str] | None) -> None:
        where = {field.name: field.name for field in fields(self)} | dict(typed or {})
        check_style(where["style"], self.style)
        given = {name: value for name in AMOUNTS if (value := getattr(self, name)) is not None}
        relative = [name for name in given if name != "weight_decay"]
        if self.style == "l2" and relative:
            raise ConfigError(
                f"style 'l2' cannot be given by {where[relative[0]]}={given[relative[0]]!r}: an L2 penalty passes "
                "through the optimizer's own step, so no fixed fraction of the weights is removed per step.",
                valid="weight_decay for l2; " + ", ".join(AMOUNTS) + " for every decoupled style",
                fix=f"use style 'independent' (optimizer/decay=independent) with {relative[0]}, or give weight_decay",
            )
        if len(given) > 1:
            raise ConfigError(
                "weight decay has more than one amount.",
                found=", ".join(f"{where[name]}={value!r}" for name, value in given.items()),
                valid="exactly one of " + ", ".join(where[name] for name in AMOUNTS),
                fix="keep one and set the others to null, for example "
                + " ".join(f"{where[name]}=null" for name in list(given)[:-1]),
            )
        if self.style == "hyperball" and any(given.values()):
            name, value = next(pair for pair in given.items() if pair[1])
            raise ConfigError(
                f"style 'hyperball' has no amount: it keeps each tensor's norm, whatever {where[name]} is.",
                found=f"{where[name]}={value!r}",
                fix=f"write {where[name]}={0 if name == 'weight_decay' else 'null'}, or a decay style",
            )
        if not given and self.style not in NO_AMOUNT:
            raise ConfigError(
                f"decay style '{self.style}' has no amount.",
                valid="exactly one of " + ", ".join(where[name] for name in AMOUNTS),
                fix=f"set {where['weight_decay']}=<lambda>, or style 'none' for no decay",
            )
        for name, value in given.items():
            object.__setattr__(self, name, number(where[name], value, exclusive=name in _TIMESCALES))
        flag(where["cautious"], self.cautious)
        object.__setattr__(self, "toward", check_toward(where["toward"], self.toward, self.style))
        if self.cautious and self.style in ("l2", "hyperball"):
            raise ConfigError(
                f"{where['cautious']} has no meaning with style '{self.style}': there is no decay step to hold back.",
                valid="cautious with " + ", ".join(s for s in STYLES if s not in ("l2", *NO_AMOUNT)),
                fix=f"write {where['cautious']}=false, or a decoupled style",
            )

    def coefficient(self, lr: float, total_steps: int | None = None, steps_per_epoch: float | None = None) -> float:
        """Resolve the amount to ``lam`` in the unit of the style, at the peak learning rate.

        Equal decay at the peak links the amounts:
        ``d = lr0 * lam_decoupled = lam_independent = lam_norm / sqrt(steps) = 1 / tau_steps``.

        Args:
            lr: ``lr0``, the peak learning rate.
            total_steps: optimizer steps of the run (global batches); needed by ``normalized`` and ``timescale_runs``.
            steps_per_epoch: optimizer steps of one epoch; needed by ``timescale_epochs``.

        Raises:
            ConfigError: the steps that the amount needs are not given, or ``lr`` is 0 where ``lam`` depends on it.
        """
        if self.style in NO_AMOUNT:
            return 0.0
        unit = next(name for name in AMOUNTS if getattr(self, name) is not None)
        amount: float = getattr(self, unit)
        if unit == "weight_decay":
            return amount
        to = "decoupled" if self.style in _LR_COUPLED else "independent"
        return _convert(amount, unit, to, lr, 0.0, total_steps, steps_per_epoch)


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
    choice("to", to, _TARGETS, aliases=_UNIT_ALIASES)
    timescale = from_ in _TIMESCALES
    value = number("value", value, infinite=timescale, exclusive=timescale)
    lr = number("lr", lr)
    if momentum is not None:
        momentum = number("momentum", momentum, below=1)
    for name, steps in (("total_steps", total_steps), ("steps_per_epoch", steps_per_epoch)):
        if steps is not None:
            number(name, steps, exclusive=True)
    return value if from_ == to else _convert(value, from_, to, lr, momentum, total_steps, steps_per_epoch)


def peak_equal(weight_decay: float, *, from_: str, to: str, lr: float) -> float:
    """Return the coefficient of style ``to`` that removes as much at the peak as ``weight_decay`` of style ``from_``.

    Both are decoupled styles. Nothing is checked here but an ``lr`` of 0, where the result depends on it.
    """
    mine, theirs = ("decoupled" if style in _LR_COUPLED else "independent" for style in (from_, to))
    return weight_decay if mine == theirs else _convert(weight_decay, mine, theirs, lr, None, None, None)


def _convert(
    value: float,
    from_: str,
    to: str,
    lr: float,
    momentum: float | None,
    total_steps: int | None,
    steps_per_epoch: float | None,
) -> float:
    """Convert between two units, whose value, rate and momentum were checked."""

    def scale(unit: str) -> float:
        """Return k with ``d = k * value``, for a timescale ``d = k / value``."""
        if unit == "independent":
            return 1.0
        if unit == "decoupled":
            return lr
        if unit == "sgd_l2":
            return lr / (1.0 - _needed("momentum", momentum, unit, "the optimizer's momentum, 0 for plain SGD"))
        epochs = unit == "timescale_epochs"
        name, known = ("steps_per_epoch", steps_per_epoch) if epochs else ("total_steps", total_steps)
        steps = number(name, _needed(name, known, unit), exclusive=True)
        return float(1.0 / (math.sqrt(steps) if unit == "normalized" else steps))

    fraction = scale(from_) / value if from_ in _TIMESCALES else scale(from_) * value
    if to == "angle":
        return adamw_angle(fraction, _needed("momentum", momentum, to, "b1, the first of AdamW's betas"))
    target = scale(to)
    if to in _TIMESCALES:
        return target / fraction if fraction else math.inf
    if not target:
        raise ConfigError(
            f"lr is 0, so no '{to}' coefficient gives {from_}={value!r}.",
            fix="give the peak learning rate, or use the style 'independent', whose coefficient is not multiplied "
            "by lr",
        )
    return fraction / target


def _needed(name: str, value: float | None, unit: str, what: str = "optimizer steps") -> float:
    if value is None:
        alternative = "" if name == "momentum" else ", or give the amount as weight_decay"
        raise ConfigError(f"'{unit}' needs {name}, which is not known here.", fix=f"pass {name}=<{what}>{alternative}")
    return value


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
