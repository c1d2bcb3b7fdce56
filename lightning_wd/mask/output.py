"""The output layer, which the style ``corrected`` leaves ``decoupled``."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from lightning_wd.mask.names import Tree

__all__ = ["output_parameters"]


def output_parameters(module: nn.Module, tree: Tree) -> frozenset[int]:
    """Return the ids of the output layer's parameters: ``get_output_embeddings()``, else ``get_classifier()``, else
    the last Linear; of those that train, where any does. A tied head is the same tensor, so it counts.

    References:
        Defazio, Why Gradients Rapidly Increase Near the End of Training, https://arxiv.org/abs/2506.02285.
    """
    for hook in ("get_output_embeddings", "get_classifier"):
        declared = [p for layer in _declared(module, hook, set()) for p in layer.parameters()]
        if declared:
            return frozenset(id(p) for p in declared if p.requires_grad) or frozenset(map(id, declared))
    linear = [found for found in tree.tensors if isinstance(found.module, nn.Linear) and found.leaf == "weight"]
    training = [found for found in linear if found.param.requires_grad]
    last = (training or linear)[-1:]
    return frozenset(id(found.param) for found in tree.tensors if last and found.module is last[0].module)


def _declared(module: nn.Module, hook: str, seen: set[nn.Module]) -> Iterator[nn.Module]:
    """Yield the layers that the topmost modules with such a method name as their output."""
    seen.add(module)
    if hasattr(type(module), hook):
        try:
            layers = getattr(module, hook)()
        except (AttributeError, NotImplementedError, TypeError):  # transformers: a model without a head
            layers = None
        if layers is not None:
            given = layers if isinstance(layers, (tuple, list)) else (layers,)
            yield from (layer for layer in given if isinstance(layer, nn.Module))
            return
    for child in module.children():
        if child not in seen:
            yield from _declared(child, hook, seen)
