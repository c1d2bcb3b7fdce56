"""The layer of each parameter, for layer-wise learning rates, and whether it is in the output layer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from torch import nn

from lightning_wd.errors import MaskError
from lightning_wd.mask.evidence import leaf_words
from lightning_wd.mask.module_tree import Tree, walk

__all__ = ["layer_scales", "output_parameters"]

Key = tuple[float, ...]
_T = TypeVar("_T")

# How transformers, torchvision and most other models name the list of their layers. Only stages hold layers of their
# own, with no other list between the two.
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

    A timm model tells its layers by ``group_matcher()``, any other by its names. Layer 0 holds the embeddings and what
    comes before the first numbered layer, except heads and classifiers; then come ``blocks.0``, ``encoder.layer.1``,
    ``h.2`` or ``stages.3.blocks.4``; the last layer holds the rest. A list of lists (``block.0.1``) counts by its outer
    number. Several models in one module (two towers, a teacher and a student) each count from their own last layer, and
    everything outside them is in the last layer. In a model with several lists the longest counts: a shorter list
    before it belongs to layer 0, one after it to the last layer.

    >>> blocks = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    >>> net = nn.ModuleDict({"blocks": blocks, "head": nn.Linear(1, 1)})
    >>> sorted(set(layer_scales(net, walk(net), 0.5).values()))
    [0.25, 0.5, 1.0]
    """
    towers = list(_topmost(module, _matched, set())) or _numbered(tree)
    outside = {id(found.param) for found in tree.tensors}.difference(*towers)
    below = dict.fromkeys(outside, 0)
    for tower in towers:
        layers: dict[Key, int] = {}
        for key in sorted({*tower.values(), *([_HEAD] if outside else [])}):
            layers[key] = len(set(layers.values())) - (key[-1] == _AS_BEFORE and bool(layers))
        last = max(layers.values())
        for tensor, key in tower.items():  # one that two towers share belongs to the lower layer
            below[tensor] = max(below.get(tensor, 0), last - layers[key])
    if not any(below.values()):
        raise MaskError(
            "layer_decay finds no layers to tell apart.",
            found=f"{len(below)} parameters, none of them named like blocks.0, layers.0, encoder.layer.0 or h.0",
            fix="write rules with lr_mult instead, such as {name: 'stem.*', lr_mult: 0.1}",
        )
    return {tensor: decay**number for tensor, number in below.items()}


def _numbered(tree: Tree) -> list[dict[int, Key]]:
    """Return the layers by the tensors' names, one mapping for each model with a list of layers."""
    lists: dict[str, dict[int, Key]] = {}  # the list's name -> position of a tensor -> its layer
    for position, found in enumerate(tree.tensors):
        match = _NUMBERED.search(found.name)
        if match is not None:
            stage, plain, inner, single = match.groups()
            at = match.start(1) if stage else match.start(2) if plain else match.start(4)
            key: Key = (float(single), 0.0) if inner is None else (float(stage or plain), float(inner))
            lists.setdefault(found.name[:at], {})[position] = key
    depth = {name: len(set(keys.values())) for name, keys in lists.items()}
    chosen: dict[str, str] = {}  # the model's prefix -> its list
    for name in sorted(lists, key=lambda name: -depth[name]):
        owner = _owner(name, [found.name for found in tree.tensors[: min(lists[name])]])
        rival = next((chosen[c] for c in chosen if c.startswith(owner) or owner.startswith(c)), None)
        if rival is None:
            chosen[owner] = name
        elif depth[rival] == depth[name] > 1:
            raise MaskError(
                "layer_decay finds two lists of layers in one model and cannot tell which comes first.",
                found=", ".join(f"{each.rstrip('._')} ({depth[each]} layers)" for each in (rival, name)),
                fix="write rules with lr_mult instead, such as {name: 'encoder.layers.0.*', lr_mult: 0.1}",
            )
    towers: list[dict[int, Key]] = []
    for owner, name in chosen.items():
        first = min(lists[name])
        tower: dict[int, Key] = {}
        for position, found in enumerate(tree.tensors):
            before = position < first
            alone = len(chosen) == 1 and before and not _HEADS.intersection(leaf_words(found.name))
            if alone or found.name.startswith(owner):
                rest = _STEM if before or isinstance(found.module, nn.Embedding) else _HEAD
                layer = lists[name].get(position, rest)
                tower[id(found.param)] = min(layer, tower.get(id(found.param), layer))
        towers.append(tower)
    return towers


def _owner(prefix: str, earlier: list[str]) -> str:
    """Return the prefix of the innermost module that holds a list and, before it, something else."""
    while "." in prefix.rstrip("."):
        prefix = prefix.rstrip(".").rpartition(".")[0] + "."
        if any(name.startswith(prefix) for name in earlier):
            return prefix
    return ""


def _topmost(module: nn.Module, ask: Callable[[nn.Module], _T | None], seen: set[nn.Module]) -> Iterator[_T]:
    """Yield the answers of the topmost modules that have one."""
    seen.add(module)
    answer = ask(module)
    if answer is not None:
        yield answer
        return
    for child in module.children():
        if child not in seen:
            yield from _topmost(child, ask, seen)


def _matched(model: nn.Module) -> dict[int, Key] | None:
    """Return the layers by timm's ``group_matcher``: a function, or a mapping of (lists of) regular expressions."""
    if not callable(getattr(type(model), "group_matcher", None)):
        return None
    spec = model.group_matcher(coarse=False)  # type: ignore[operator]
    patterns: list[tuple[re.Pattern[str], int, Any]] = []
    for ordinal, entry in enumerate(() if callable(spec) else spec.values()):
        for pattern, suffix in entry if isinstance(entry, (tuple, list)) else [(entry, None)]:
            if pattern is not None:
                patterns.append((re.compile(pattern), ordinal, suffix))

    def layer(name: str) -> Key:
        if callable(spec):
            told = spec(name)
            return _HEAD if told is None else tuple(map(float, told if isinstance(told, Iterable) else (told,)))
        for pattern, ordinal, suffix in patterns:
            hit = pattern.match(name)
            if hit:
                return tuple(float(n) for n in (ordinal, *hit.groups(), *(suffix or ())) if n is not None)
        return _HEAD

    return {id(found.param): layer(found.name) for found in reversed(walk(model).tensors)}  # a tie counts by its first


def output_parameters(module: nn.Module, tree: Tree) -> frozenset[int]:
    """Return the ids of the output layer's parameters: ``get_output_embeddings()``, else ``get_classifier()``, else
    the last Linear; of those that train, where any does. A tied head is the same tensor, so it counts.

    References:
        Defazio, Why Gradients Rapidly Increase Near the End of Training, https://arxiv.org/abs/2506.02285.
    """
    for hook in ("get_output_embeddings", "get_classifier"):
        answers = _topmost(module, partial(_output_layers, hook=hook), set())
        declared = [p for layers in answers for layer in layers for p in layer.parameters()]
        if declared:
            return frozenset(id(p) for p in declared if p.requires_grad) or frozenset(map(id, declared))
    linear = [found for found in tree.tensors if isinstance(found.module, nn.Linear) and found.leaf == "weight"]
    last = ([found for found in linear if found.param.requires_grad] or linear)[-1:]
    return frozenset(id(found.param) for found in tree.tensors if last and found.module is last[0].module)


def _output_layers(module: nn.Module, hook: str) -> list[nn.Module] | None:
    if not hasattr(type(module), hook):
        return None
    try:
        layers = getattr(module, hook)()
    except (AttributeError, NotImplementedError, TypeError):  # transformers: a model without a head
        return None
    given = layers if isinstance(layers, (tuple, list)) else (layers,)
    return None if layers is None else [layer for layer in given if isinstance(layer, nn.Module)]
