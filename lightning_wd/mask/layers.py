"""Which layer a parameter belongs to, for layer-wise learning rates: timm's own matchers, else the names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import nn

from lightning_wd.errors import MaskError, explain
from lightning_wd.mask.evidence import leaf_words
from lightning_wd.mask.names import Tree, walk

__all__ = ["layer_scales"]

Key = tuple[float, ...]

# What transformers, torchvision and most other models call the list of their layers; only stages hold layers of their
# own, and no other list stands between the two.
_NUMBERED = re.compile(
    r"(?:^|\.)(?:(?:(?:stages|levels|layers)[._](\d+)\.(?:(?!\d+\.)[^.]+\.)*(?:blocks|(?<=\d\.)layers)|layer(\d+))\.(\d+)\."
    r"|(?:(?:blocks?|layers?|h|resblocks|stages|levels)\.|(?:stages|levels|encoder_layer)_)(\d+)\.)"
)
_HEADS = frozenset(("head", "heads", "classifier", "fc", "logit", "logits", "score", "predictor", "output"))
_STEM: Key = (-1.0,)
_HEAD: Key = (math.inf,)
_AS_BEFORE = 99999  # timm: this group belongs to the layer before it


def layer_scales(module: nn.Module, tree: Tree, decay: float) -> dict[int, float]:
    """Return ``decay ** (n - k)`` for each parameter by its id, ``k`` being its layer of 0..n.

    A model with timm's ``group_matcher()`` says itself which layer a parameter is in. Elsewhere the names say so: layer
    0 holds what comes before the first numbered layer (but for what is called a head or a classifier) and embeddings;
    then come ``blocks.0``, ``encoder.layer.1``, ``h.2`` or ``stages.3.blocks.4``; the last layer holds the rest. A list
    of lists (``block.0.1``) counts by its outer number.
    Several such models in one module (two towers, a teacher and a student) are each counted from their own last layer,
    and what lies outside of them is in the last. Within one model the longest list counts: a shorter one before it is
    part of layer 0, one after it of the last.

    Raises:
        MaskError: no layers can be told apart, or two lists of one model are equally long.

    >>> blocks = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    >>> net = nn.ModuleDict({"blocks": blocks, "head": nn.Linear(1, 1)})
    >>> sorted(set(layer_scales(net, walk(net), 0.5).values()))
    [0.25, 0.5, 1.0]
    """
    models = list(_with_matcher(module, set()))
    towers = [_matched(model) for model in models] if models else _numbered(tree)
    inside = set().union(*towers)
    outside = {id(found.param) for found in tree.tensors} - inside
    below = dict.fromkeys(outside, 0)
    for tower in towers:
        layers = _count({*tower.values(), *([_HEAD] if outside else [])})
        last = max(layers.values())
        for tensor, key in tower.items():  # one that two towers share belongs to the lower layer
            below[tensor] = max(below.get(tensor, 0), last - layers[key])
    if not any(below.values()):
        raise MaskError(
            explain(
                "layer_decay finds no layers to tell apart.",
                found=f"{len(below)} parameters, none of them named like blocks.0, layers.0, encoder.layer.0 or h.0",
                fix="write rules with lr instead, such as {name: 'stem.*', lr: 0.1}",
            )
        )
    return {tensor: decay**number for tensor, number in below.items()}


def _count(keys: Iterable[Key]) -> dict[Key, int]:
    layers: dict[Key, int] = {}
    for key in sorted(keys):
        layers[key] = len(set(layers.values())) - (key[-1] == _AS_BEFORE and bool(layers))
    return layers


@dataclass
class _List:
    """A numbered list of layers: its layers, where its tensors stand, and the prefix of the model that owns it."""

    name: str
    keys: dict[int, Key] = field(default_factory=dict)  # by the tensor's position
    owner: str = ""

    @property
    def depth(self) -> int:
        return len(set(self.keys.values()))


def _numbered(tree: Tree) -> list[dict[int, Key]]:
    """Return the layers that the names tell of, one mapping for each model with a list of layers."""
    lists: dict[str, _List] = {}
    for position, found in enumerate(tree.tensors):
        match = _NUMBERED.search(found.name)
        if match is not None:
            stage, plain, inner, single = match.groups()
            at = match.start(1) if stage else match.start(2) if plain else match.start(4)
            key: Key = (float(single), 0.0) if inner is None else (float(stage or plain), float(inner))
            name = found.name[:at]
            lists.setdefault(name, _List(name)).keys[position] = key
    chosen: list[_List] = []
    for one in sorted(lists.values(), key=lambda one: -one.depth):
        one.owner = _owner(one, tree)
        rival = next((c for c in chosen if c.owner.startswith(one.owner) or one.owner.startswith(c.owner)), None)
        if rival is None:
            chosen.append(one)
        elif rival.depth == one.depth > 1:
            raise MaskError(
                explain(
                    "layer_decay finds two lists of layers in one model and cannot tell which comes first.",
                    found=", ".join(f"{each.name.rstrip('._')} ({each.depth} layers)" for each in (rival, one)),
                    fix="write rules with lr instead, such as {name: 'encoder.layers.0.*', lr: 0.1}",
                )
            )
    towers: list[dict[int, Key]] = []
    for one in chosen:
        first = min(one.keys)
        tower: dict[int, Key] = {}
        for position, found in enumerate(tree.tensors):
            inside = found.name.startswith(one.owner)
            if inside or (len(chosen) == 1 and position < first and not _HEADS.intersection(leaf_words(found.name))):
                stem = position < first or isinstance(found.module, nn.Embedding)
                layer = one.keys.get(position, _STEM if stem else _HEAD)
                tower[id(found.param)] = min(layer, tower.get(id(found.param), layer))
        towers.append(tower)
    return towers


def _owner(one: _List, tree: Tree) -> str:
    """Return the prefix of the innermost module that holds the list and, before it, something else."""
    earlier = [found.name for found in tree.tensors[: min(one.keys)]]
    prefix = one.name
    while "." in prefix.rstrip("."):
        prefix = prefix.rstrip(".").rpartition(".")[0] + "."
        if any(name.startswith(prefix) for name in earlier):
            return prefix
    return ""


def _with_matcher(module: nn.Module, seen: set[nn.Module]) -> Iterator[nn.Module]:
    """Yield the topmost modules with timm's ``group_matcher``."""
    seen.add(module)
    if callable(getattr(type(module), "group_matcher", None)):
        yield module
        return
    for child in module.children():
        if child not in seen:
            yield from _with_matcher(child, seen)


def _matched(model: nn.Module) -> dict[int, Key]:
    """Return the layers that a model of timm tells of."""
    matcher = _timm_matcher(model.group_matcher(coarse=False))  # type: ignore[operator]
    keys: dict[int, Key] = {}
    for found in walk(model).tensors:
        keys.setdefault(id(found.param), matcher(found.name))
    return keys


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
