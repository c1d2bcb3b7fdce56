r"""A tuned learning rate and decay carried over to another batch and number of steps. Pure arithmetic, no torch.

Symbols: ``B0, T0, lr0, lam0`` are the rows that an optimizer step sees, the optimizer steps, the peak learning rate and
the coefficient of the run that was tuned, the reference; ``B, T, lr, lam`` are those of the run here.

- The learning rate follows the batch by one of :data:`LR_RULES`: ``lr = lr0 * sqrt(B/B0)`` for Adam
  (https://arxiv.org/abs/2205.10287), ``lr = lr0 * B/B0`` for SGD (https://arxiv.org/abs/1706.02677).
- The decay keeps its timescale as a part of the run, ``1/(lr*lam*T)`` (https://arxiv.org/abs/2405.13698):
  ``lam = lam0 * (lr0*T0)/(lr*T)``. A coefficient that no learning rate multiplies has ``lam = lam0 * T0/T``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_wd.errors import ConfigError, checked_keywords, choice, keys, number
from lightning_wd.styles import check_style

__all__ = ["FAMILIES", "LR_RULES", "CarriedOver", "Reference", "carried_weight_decay", "carry_over"]

LR_RULES = ("sqrt", "linear", "none")
FAMILIES = {"adam": "sqrt", "sgd": "linear"}  # whose rule is tested -> that rule
EQUATIONS = {
    "sqrt": "lr0 * sqrt(B/B0), arXiv 2205.10287",
    "linear": "lr0 * B/B0, arXiv 1706.02677",
    "none": "lr0, by lr_rule: none",
}
DECAY_EQUATIONS = {
    **dict.fromkeys(("decoupled", "corrected", "l2"), "lam0 * (lr0*T0)/(lr*T), arXiv 2405.13698"),
    **dict.fromkeys(("independent", "constant"), "lam0 * T0/T, arXiv 2405.13698"),
}
KEYS = ("global_batch", "steps", "lr_rule")
_MEANING = {"global_batch": "rows that an optimizer step saw there", "steps": "optimizer steps of the run there"}
_RENAMED = {"total_steps": "steps", "max_steps": "steps", "batch": "global_batch", "batch_size": "global_batch"}


class CarriedOver(NamedTuple):
    """A learning rate and a coefficient of decay, as carried over."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Reference:
    """The run whose lr and weight_decay were tuned, and the rule that carries the learning rate over."""

    global_batch: int
    steps: int
    lr_rule: str

    @classmethod
    def of(cls, name: str, value: object, lr_rule: str) -> Reference:
        """Return a mapping as a checked reference, with the family's ``lr_rule`` unless it has its own.

        ``name`` is how the user knows it.
        """
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{name} must be a mapping but got {value!r}.",
                valid=KEYS,
                fix=f"write {name}={{global_batch: <{_MEANING['global_batch']}>, steps: <{_MEANING['steps']}>}}",
            )
        keys(name, value, KEYS, typed=f"{name}.{{}}", renamed=_RENAMED)
        for key, meaning in _MEANING.items():
            if value.get(key) is None:
                raise ConfigError(
                    f"{name} has no {key}.",
                    found=", ".join(f"{other}={item!r}" for other, item in value.items()) or "an empty mapping",
                    valid="global_batch and steps, and lr_rule if the family's own is not meant",
                    fix=f"write {name}.{key}=<{meaning}>",
                )
        batch, steps = (int(number(f"{name}.{key}", value[key], minimum=1, whole=True)) for key in _MEANING)
        rule = value.get("lr_rule")
        return cls(batch, steps, lr_rule if rule is None else choice(f"{name}.lr_rule", rule, LR_RULES))

    def lr(self, lr: float, global_batch: int) -> float:
        """Return the learning rate ``lr0`` carried over to ``global_batch`` by the rule."""
        factor = global_batch / self.global_batch
        return lr * {"sqrt": math.sqrt(factor), "linear": factor, "none": 1.0}[self.lr_rule]


def carried_weight_decay(
    style: str, weight_decay: float, *, reference_lr: float, lr: float, reference_steps: int, steps: int
) -> float:
    """Return ``lam0`` of a style carried over; ``lr`` is the learning rate here, whatever it came from.

    At the reference's own learning rate and steps it is that very number.

    >>> carried_weight_decay("decoupled", 0.1, reference_lr=1e-3, lr=2e-3, reference_steps=1000, steps=250)
    0.2
    """
    if style in ("decoupled", "corrected", "l2") and reference_lr and lr:
        return weight_decay * ((reference_lr * reference_steps) / (lr * steps))
    return weight_decay if style == "none" else weight_decay * (reference_steps / steps)


def check_tested(style: str, family: str | None, name: str) -> None:
    """Raise a ConfigError where no rule for the decay of a style is tested; ``name`` is the reference's."""
    if style == "none" or (style in DECAY_EQUATIONS and (style != "l2" or family == "sgd")):
        return
    raise ConfigError(
        f"{name} has no tested rule for style '{style}'"
        + (f" of {'an adaptive' if family else 'this'} optimizer." if style == "l2" else "."),
        valid=", ".join(each for each in DECAY_EQUATIONS if each != "l2") + " and none; l2 with SGD",
        fix=f"write optimizer=adamw optimizer/decay=decoupled, or remove {name} and tune lr and weight_decay here",
    )


@checked_keywords()
def carry_over(
    lr: float,
    weight_decay: float,
    *,
    reference: Mapping[str, Any],
    global_batch: int,
    steps: int,
    family: str,
    style: str = "decoupled",
) -> CarriedOver:
    """Carry a tuned learning rate and decay over to another batch and number of steps, as ``optimizer.reference`` does.

    ``lr = lr0 * sqrt(B/B0)`` for Adam and ``lr0 * B/B0`` for SGD; ``lam = lam0 * (lr0*T0)/(lr*T)``, and
    ``lam0 * T0/T`` where no learning rate multiplies it (styles ``independent`` and ``constant``). The same batch and
    steps return the very numbers. What is known against it: with more tokens per parameter the best timescale, as a
    part of the run, falls as ``TPP^-0.527`` (language models of 0.1 to 3.3 B parameters, 2505.13738).

    Args:
        lr: ``lr0``, the peak learning rate that was tuned, >= 0.
        weight_decay: ``lam0 >= 0`` in the unit of the style.
        reference: ``{"global_batch": B0, "steps": T0}`` of the run that was tuned, in rows that an optimizer step sees
            and optimizer steps; ``"lr_rule"`` (``sqrt``, ``linear`` or ``none``) overrides the family's.
        global_batch: ``B``, rows that an optimizer step sees here: devices x accumulation x the loader's batch size.
        steps: ``T``, optimizer steps of the run here.
        family: ``adam`` (NAdam, RAdam and RMSprop too) or ``sgd``.
        style: ``decoupled``, ``independent``, ``constant``, ``corrected`` or ``none``; ``l2`` for SGD.

    Raises:
        ConfigError: a value out of range, an unknown name, or Adam with ``l2``, which has no tested rule.

    Example:
        >>> tuned = {"global_batch": 256, "steps": 1000}
        >>> carry_over(1e-3, 0.1, reference=tuned, global_batch=1024, steps=250, family="adam")
        CarriedOver(lr=0.002, weight_decay=0.2)
        >>> carry_over(0.1, 5e-4, reference=tuned, global_batch=1024, steps=250, family="sgd")
        CarriedOver(lr=0.4, weight_decay=0.0005)

    References:
        Malladi et al., https://arxiv.org/abs/2205.10287; Goyal et al., https://arxiv.org/abs/1706.02677;
        Wang & Aitchison, https://arxiv.org/abs/2405.13698; Bergsma et al., https://arxiv.org/abs/2505.13738.
    """
    check_tested(check_style("style", style), choice("family", family, FAMILIES), "reference")
    tuned = Reference.of("reference", reference, FAMILIES[family])
    lr, weight_decay = number("lr", lr), number("weight_decay", weight_decay)
    global_batch = int(number("global_batch", global_batch, minimum=1, whole=True))
    steps = int(number("steps", steps, minimum=1, whole=True))
    here = tuned.lr(lr, global_batch)
    lam = carried_weight_decay(style, weight_decay, reference_lr=lr, lr=here, reference_steps=tuned.steps, steps=steps)
    return CarriedOver(here, lam)
