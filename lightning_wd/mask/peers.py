"""What other libraries would decay: their rules as they are, mistakes included, to compare a plan with."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

from torch import nn

from lightning_wd.errors import MaskError, explain, nearest
from lightning_wd.mask.evidence import classify
from lightning_wd.mask.hooks import declared_names
from lightning_wd.mask.names import Found, walk
from lightning_wd.mask.plan import DecayPlan, Row

__all__ = ["PEERS", "peer_plan"]

# transformers 5.23, Trainer.get_decay_parameter_names; it searches lower-cased names.
_TRANSFORMERS = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def _timm(module: nn.Module) -> Callable[[Found], bool]:
    """timm 1.0.31, create_optimizer_v2: vectors, ``.bias``, and the outermost module's own hook, by wrapped names."""
    listed = declared_names(module, "no_weight_decay")
    raw = {name: wrapped for wrapped, name in walk(module).raw_names.items()}
    return lambda found: (
        found.param.ndim > 1
        and not found.name.endswith(".bias")
        and not any(fnmatch.fnmatch(raw.get(found.name, found.name), pattern) for pattern in listed)
    )


def _transformers(module: nn.Module) -> Callable[[Found], bool]:
    return lambda found: not isinstance(found.module, nn.LayerNorm) and not _TRANSFORMERS.search(found.name.lower())


def _ndim(module: nn.Module) -> Callable[[Found], bool]:
    return lambda found: found.param.ndim > 1


_POLICIES = {"timm": _timm, "transformers": _transformers, "ndim": _ndim}
PEERS = tuple(_POLICIES)


def peer_plan(module: nn.Module, peer: str) -> DecayPlan:
    """Return the plan that another library's rule would make: which of the same parameters it decays.

    Args:
        module: the module whose parameters are planned.
        peer: ``timm`` (create_optimizer_v2), ``transformers`` (Trainer) or ``ndim`` (two or more dimensions decay).

    Raises:
        MaskError: an unknown peer.

    Example:
        >>> from lightning_wd import plan_decay
        >>> print(*plan_decay(nn.GroupNorm(1, 2)).diff(peer_plan(nn.GroupNorm(1, 2), "transformers")))
        weight: no_decay (norm layer GroupNorm) / decay (transformers)
    """
    if peer not in _POLICIES:
        close = nearest(peer, PEERS)
        raise MaskError(
            explain(
                f"policy {peer!r} is unknown.",
                valid=PEERS,
                nearest=close,
                fix=f"write {close or 'timm'}, or leave it out",
            )
        )
    decays = _POLICIES[peer](module)
    rows: dict[int, Row] = {}
    for found in walk(module).tensors:
        known = rows.get(id(found.param))
        if known is not None:
            known.names = (*known.names, found.name)
            continue
        frozen = not found.param.requires_grad
        decay, reason = (0.0, "frozen") if frozen else (float(decays(found)), peer)
        rows[id(found.param)] = Row(
            found.name, (found.name,), found.param, decay, 1.0, None, reason, classify(found), {}, frozen=frozen
        )
    return DecayPlan(tuple(rows.values()))
