r"""Decay styles: their names, and what a step of each removes. Pure arithmetic, no torch.

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

import os
from typing import Any

from lightning_wd.errors import ConfigError, ExplainedError, choice, nearest

__all__ = [
    "ALIASES",
    "NO_AMOUNT",
    "RENAMED",
    "STYLES",
    "TOWARD",
    "check_style",
    "check_toward",
    "kernel_coefficient",
    "step_fraction",
]

STYLES = ("l2", "decoupled", "independent", "constant", "corrected", "hyperball", "none")
NO_AMOUNT = ("hyperball", "none")
TOWARD = ("zero", "init")  # and the path of a checkpoint

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
    ("timescale", "timescale_epochs", "timescale_runs"), _TIMESCALE.format("Decay('decoupled', timescale_epochs=30)")
)
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
