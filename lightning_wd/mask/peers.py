"""What other libraries decay: their rules as they are, mistakes included, to compare a plan with."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

from torch import nn

from lightning_wd.errors import MaskError, choice
from lightning_wd.mask.evidence import classify
from lightning_wd.mask.hooks import declared_names
from lightning_wd.mask.module_tree import Found, Tree, walk, whole_shape
from lightning_wd.mask.plan import DecayPlan, Row

__all__ = ["POLICIES", "peer_plan"]

# transformers 5.23, Trainer.get_decay_parameter_names, which searches lower-cased names.
_TRANSFORMERS = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def _timm(module: nn.Module, tree: Tree) -> Callable[[Found], bool]:
    """timm 1.0.31, create_optimizer_v2: vectors, ``.bias``, and the outermost module's own hook, by wrapped names."""
    listed = declared_names(module, "no_weight_decay")
    raw = {name: wrapped for wrapped, name in tree.raw_names.items()}
    return lambda found: (
        len(whole_shape(found.param)) > 1
        and not found.name.endswith(".bias")
        and not any(fnmatch.fnmatch(raw.get(found.name, found.name), pattern) for pattern in listed)
    )


def _transformers(module: nn.Module, tree: Tree) -> Callable[[Found], bool]:
    return lambda found: not isinstance(found.module, nn.LayerNorm) and not _TRANSFORMERS.search(found.name.lower())


def _ndim(module: nn.Module, tree: Tree) -> Callable[[Found], bool]:
    return lambda found: len(whole_shape(found.param)) > 1


POLICIES = {"timm": _timm, "transformers": _transformers, "ndim": _ndim}


def peer_plan(module: nn.Module, peer: str) -> DecayPlan:
    """Return the plan that another library's rule would make of the same parameters.

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
    tree = walk(module)
    decays = POLICIES[choice("peer", peer, POLICIES, error=MaskError)](module, tree)
    rows = []
    for first, *tied in tree.by_tensor():
        names = (first.name, *(found.name for found in tied))
        frozen = not first.param.requires_grad
        wd_mult, reason = (0.0, "frozen") if frozen else (float(decays(first)), peer)
        rows.append(Row(names, first.param, wd_mult, 1.0, None, reason, classify(first), {}, frozen=frozen))
    return DecayPlan(tuple(rows))
