"""A decay style and its amount: the setting that a config, an optimizer or a rule is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, fields

from lightning_wd.conversions import TIMESCALES, converted, unit_at_peak
from lightning_wd.errors import ConfigError, checked_keywords, flag, number
from lightning_wd.styles import NO_AMOUNT, STYLES, check_style, check_toward

__all__ = ["AMOUNTS", "Decay"]

AMOUNTS = ("weight_decay", "normalized", "timescale_epochs", "timescale_runs")


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
            object.__setattr__(self, name, number(where[name], value, exclusive=name in TIMESCALES))
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
        to = unit_at_peak(self.style)
        return converted(amount, unit, to, lr, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
