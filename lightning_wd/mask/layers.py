"""Which layer a parameter belongs to, for layer-wise learning rates: timm's own matchers, else the names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from torch import nn

from lightning_wd.errors import MaskError, explain
from lightning_wd.mask.names import Tree, walk

__all__ = ["layer_scales"]

Key = tuple[float, ...]

# What transformers and most other models call the list of their layers; only stages hold layers of their own.
_NUMBERED = re.compile(
    r"(?:^|\.)(?:(?:stages|levels|layers)\.(\d+)\.(?:.*\.)?(?:blocks|(?<=\d\.)layers)\.(\d+)\."
    r"|(?:blocks?|layers?|h|resblocks|stages|levels)\.(\d+)\.)"
)
_STEM: Key = (-1.0,)
_HEAD: Key = (math.inf,)
_AS_BEFORE = 99999  # timm: this group belongs to the layer before it


def layer_scales(module: nn.Module, tree: Tree, decay: float) -> dict[int, float]:
    """Return ``decay ** (n - k)`` for each parameter by its id, ``k`` being its layer of 0..n.

    A model with timm's ``group_matcher()`` says itself which layer a parameter is in, and what lies outside it is in
    the last. Elsewhere the names say so: layer 0 holds the embeddings and what comes before the first numbered layer,
    then come ``blocks.0``, ``encoder.layer.1``, ``h.2`` or ``stages.3.blocks.4``, and the last layer holds the rest.

    Raises:
        MaskError: no layers can be told apart.

    >>> blocks = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    >>> net = nn.ModuleDict({"blocks": blocks, "head": nn.Linear(1, 1)})
    >>> sorted(set(layer_scales(net, walk(net), 0.5).values()))
    [0.25, 0.5, 1.0]
    """
    model = next((m for m in module.modules() if callable(getattr(type(m), "group_matcher", None))), None)
    keys: dict[int, Key] = {}
    if model is not None:
        matcher = _timm_matcher(model.group_matcher(coarse=False))  # type: ignore[operator]
        for found in walk(model).tensors:
            keys.setdefault(id(found.param), matcher(found.name))
    rest = _STEM if model is None else _HEAD
    for found in tree.tensors:
        match = None if model is not None else _NUMBERED.search(found.name)
        if match is not None:
            rest = _HEAD  # what follows the first numbered layer comes after the last
            stage, inner, single = match.groups()
            key: Key = (float(single), 0.0) if stage is None else (float(stage), float(inner))
        else:
            key = _STEM if isinstance(found.module, nn.Embedding) and model is None else rest
        keys.setdefault(id(found.param), key)
    layers: dict[Key, int] = {}
    for key in sorted(set(keys.values())):
        layers[key] = len(set(layers.values())) - (key[-1] == _AS_BEFORE and bool(layers))
    last = max(layers.values(), default=0)
    if not last:
        raise MaskError(
            explain(
                "layer_decay finds no layers to tell apart.",
                found=f"{len(keys)} parameters, none of them named like blocks.0, layers.0, encoder.layer.0 or h.0",
                fix="write rules with lr instead, such as {name: 'stem.*', lr: 0.1}",
            )
        )
    return {tensor: decay ** (last - layers[key]) for tensor, key in keys.items()}


def _timm_matcher(spec: Any) -> Callable[[str], Key]:
    """Read timm's ``group_matcher``: a function, or a mapping of (lists of) regular expressions."""
    if callable(spec):

        def called(name: str) -> Key:
            layer = spec(name)
            if layer is None:
                return _HEAD
            return tuple(map(float, layer)) if isinstance(layer, Iterable) else (float(layer),)

        return called
    patterns: list[tuple[Callable[[str], re.Match[str] | None], int, Any]] = []
    for ordinal, entry in enumerate(spec.values()):
        for pattern, suffix in entry if isinstance(entry, (tuple, list)) else [(entry, None)]:
            if pattern is not None:
                patterns.append((re.compile(pattern).match, ordinal, suffix))

    def matched(name: str) -> Key:
        for match, ordinal, suffix in patterns:
            hit = match(name)
            if hit:
                return tuple(float(n) for n in chain((ordinal,), hit.groups(), suffix or ()) if n is not None)
        return _HEAD

    return matched
