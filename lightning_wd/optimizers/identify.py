"""What an optimizer's ``weight_decay`` means, found by stepping it on a few tensors."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_wd.errors import ConfigError, keys, listed
from lightning_wd.optimizers.constructor import keywords_of, missing_keywords
from lightning_wd.optimizers.identify_result import Identification
from lightning_wd.optimizers.identify_style import StyleReader
from lightning_wd.optimizers.identify_twins import AMOUNT, LR, SMALL, Trial, aside

__all__ = ["identify"]

_KERNELS = ("capturable", "differentiable", "fused")  # they choose how a step is computed, and want other tensors


def identify(optimizer_cls: type[Optimizer], **keywords: Any) -> Identification:
    """Return what the ``weight_decay`` of an optimizer class means, found by stepping it, not by its name.

    It takes a second or two on a CPU and trains nothing. Random state is left as it was. The answer is remembered for
    each set of keywords.

    Args:
        optimizer_cls: a subclass of torch.optim.Optimizer.
        keywords: of its constructor, where the meaning depends on them (``weight_decouple=True``). ``lr`` and
            ``weight_decay`` are varied, whatever is given.

    Raises:
        ConfigError: no optimizer class, an unknown keyword, or a missing one.

    Example:
        >>> identify(torch.optim.AdamW).style, identify(torch.optim.Adam).style
        ('decoupled', 'l2')
        >>> identify(torch.optim.AdamW).amount_for("independent", weight_decay=1e-5, lr=1e-3)
        0.01
    """
    if not (isinstance(optimizer_cls, type) and issubclass(optimizer_cls, Optimizer)):
        raise ConfigError(
            f"identify() takes a torch.optim.Optimizer class but got {optimizer_cls!r}.",
            fix="pass the class, for example identify(torch.optim.NAdam)",
        )
    given = _check_keywords(optimizer_cls, keywords)
    asked = (optimizer_cls, *sorted((key, repr(value)) for key, value in given.items()))
    if asked not in _KNOWN:
        found = _find_out(optimizer_cls, given, "cuda" if torch.cuda.is_available() else None)
        _KNOWN[asked] = replace(found, own_closure=_own_closure(optimizer_cls, given))
    return _KNOWN[asked]


_KNOWN: dict[tuple[Any, ...], Identification] = {}


def _find_out(cls: type[Optimizer], keywords: Mapping[str, Any], accelerator: str | None) -> Identification:
    tries = [(torch.float64, "cpu"), (torch.float32, "cpu")]
    tries += [(torch.float32, accelerator)] if accelerator else []
    failures: list[str] = []
    unknown: list[Identification] = []
    for dtype, device in tries:
        try:
            found = _step(cls, keywords, dtype, device)
            if found.style != "unknown" and not (unknown and found.style == "none"):
                return _as_on(accelerator, found, cls, keywords)
            unknown.append(found)  # one that computes in float32 may be known with its tolerance
        except Exception as error:  # anyone's optimizer: it may want other tensors, an accelerator, or a closure
            lines = str(error).strip().splitlines()
            where = f"{dtype} on {device}".removeprefix("torch.")
            failures.append(f"{where}: {type(error).__name__}: {lines[0] if lines else ''}".rstrip(": "))
    if unknown:
        return unknown[0]
    if keywords and _defaults(cls, {}) and not _defaults(cls, keywords):
        given = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
        raise ConfigError(
            f"{cls.__name__} cannot be made with {given}.", found=failures[0], fix="correct the value, or leave it out"
        )
    return Identification(cls.__name__, "unknown", evidence=("It could not be stepped.", *failures))


def _step(cls: type[Optimizer], keywords: Mapping[str, Any], dtype: torch.dtype, device: str) -> Identification:
    """Return what the steps say; on a smaller matrix where a matrix of 64 x 64 takes too long."""
    with aside(device):
        try:
            return StyleReader(Trial(cls, keywords, dtype, device)).read()
        except TimeoutError as error:
            found = StyleReader(Trial(cls, keywords, dtype, device, SMALL)).read()
            return replace(found, evidence=(*found.evidence, f"{error}; this is one with 16 x 16."))


def _own_closure(cls: type[Optimizer], keywords: Mapping[str, Any]) -> str:
    """Return how a step evaluates its closure, where not once on the weights that it finds."""
    calls: list[Tensor] = []
    with contextlib.suppress(Exception), aside("cpu"):  # who cannot be stepped is told in the evidence
        trial = Trial(cls, keywords, torch.float32, "cpu", SMALL)
        run = trial.make(AMOUNT, LR)
        for gradient in trial.gradients[:8]:  # RAdam's first five steps are not like the rest
            calls, found = [], run.read()
            trial.step(run.optimizer, run.closure(gradient, calls))
            if not torch.equal(found, calls[0]):
                return "on other weights than the model has"
    return "more than once in a step" if len(calls) > 1 else ""


def _as_on(accelerator: str | None, found: Identification, cls: type[Optimizer], keywords: Any) -> Identification:
    """Return what a class of another library does on the accelerator, where that is not what it does on the CPU.

    bitsandbytes has a kernel for each: its Lion is ``decoupled`` on a CPU, and was reported as ``l2`` on a GPU.
    """
    if accelerator is None or cls.__module__.startswith("torch.optim"):
        return found
    try:
        other = _step(cls, keywords, torch.float32, accelerator)
    except Exception:  # it runs on the CPU only
        return found
    if other.style == "unknown":  # 0 and our decay beside it are right on either
        return replace(found, own_rule=False)
    if other.style == found.style and math.isclose(other.multiple or 0.0, found.multiple or 0.0, rel_tol=0.02):
        return found
    line = f"That is on {accelerator}; on the CPU it is {found.style}."
    return replace(other, own_rule=False, both=False, evidence=(*other.evidence, line))


def _check_keywords(cls: type, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse unknown and missing keywords, and return those that say how the class decays."""
    keys(cls.__name__, keywords, list(keywords_of(cls)))
    missing = missing_keywords(cls, {"lr": LR, "weight_decay": AMOUNT, **keywords})
    if missing:
        raise ConfigError(
            f"{cls.__name__} needs {listed(missing)}.",
            found=f"keywords {', '.join(keywords) or 'none'}",
            fix=f"give {', '.join(f'{key}=<value>' for key in missing)}",
        )
    return {key: value for key, value in keywords.items() if key not in ("lr", "weight_decay", *_KERNELS)}


def _defaults(cls: type, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that an instance shows: a keyword that it swallowed is not among them."""
    try:
        with aside("cpu"):
            made = Trial(cls, dict(keywords), torch.float32, "cpu").make(AMOUNT, LR).optimizer
        return {**vars(made), **made.defaults, **made.param_groups[0]}
    except Exception:
        return {}
