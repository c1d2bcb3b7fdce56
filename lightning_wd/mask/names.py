"""The tensors of a module under the names their author gave them, whatever the module has been wrapped in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from lightning_wd.errors import MaskError, explain

__all__ = ["Found", "Tree", "authors_class", "walk", "whole_shape"]

_FSDP1 = "_fsdp_wrapped_module"
# Wrapper classes and the attribute that holds what they wrap. They are known by class, never by that attribute's name:
# a user's own submodule may be called 'module'.
_WRAPPERS = {
    ("torch._dynamo.eval_frame", "OptimizedModule"): "_orig_mod",
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): "module",
    ("torch.nn.parallel.data_parallel", "DataParallel"): "module",
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"): _FSDP1,
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper"): "_checkpoint_wrapped_module",
    ("torch.optim.swa_utils", "AveragedModel"): "module",
    ("deepspeed.runtime.engine", "DeepSpeedEngine"): "module",
    ("lightning.fabric.wrappers", "_FabricModule"): "_forward_module",
    ("lightning_fabric.wrappers", "_FabricModule"): "_forward_module",
}


class Found(NamedTuple):
    """One name of one tensor.

    ``module`` is whose tensor it is and ``leaf`` what that module calls it; for a parametrized tensor these are the
    parametrized layer and its tensor (``weight``), and ``part`` the parametrization's own name for it (``original0``).
    ``attribute`` is what the module is called by its parent.
    """

    name: str
    param: Tensor
    module: nn.Module
    leaf: str
    attribute: str
    part: str


@dataclass
class Tree:
    """A walked module: its tensors by every name, in the order of ``named_parameters``, and its hooks."""

    tensors: list[Found]
    raw_names: dict[str, str]  # as the wrapped module has it -> as the author has it, where the two differ
    fsdp: list[nn.Module]  # FSDP1's wrappers
    scripted: list[nn.Module]  # TorchScript's modules, whose classes are lost
    hooked: list[tuple[nn.Module, str, str, int, int]]  # module, its name, its raw name, its tensors' range


def walk(module: nn.Module) -> Tree:
    """List every tensor of ``module`` under every name it has.

    Raises:
        MaskError: ``module`` is no nn.Module.
    """
    if not isinstance(module, nn.Module):
        raise MaskError(
            explain(
                f"plan_decay needs an nn.Module but got {module!r:.80}.",
                found=type(module).__name__,
                fix="pass the module itself, not its parameters: names and layer types decide",
            )
        )
    tree = Tree([], {}, [], [], [])
    _visit(module, "", "", "", tree, set(), {})
    return tree


def whole_shape(param: Tensor) -> torch.Size:
    """Return a tensor's shape; DeepSpeed's ZeRO-3 leaves an empty one where a partitioned tensor was."""
    shape = param.shape
    return torch.Size(getattr(param, "ds_shape", shape)) if len(shape) == 1 and not shape[0] else shape


def _visit(
    module: nn.Module, prefix: str, raw: str, attribute: str, tree: Tree, above: set[int], inner: dict[type, Any]
) -> None:
    cls = type(module)
    if cls not in inner:
        hook = hasattr(cls, "no_weight_decay") or hasattr(cls, "no_weight_decay_keywords")
        inner[cls] = wrapped_attribute(cls), hook, issubclass(cls, torch.jit.ScriptModule)
    wrapped, hooks, scripted = inner[cls]
    tensors = tree.tensors
    start = len(tensors)
    differs = prefix is not raw and prefix != raw
    for leaf, param in module._parameters.items():
        if param is not None:
            name = prefix + leaf
            tensors.append(Found(name, param, module, leaf, attribute, ""))
            if differs:
                tree.raw_names[raw + leaf] = name
    if scripted:
        tree.scripted.append(module)
    elif wrapped == _FSDP1:
        tree.fsdp.append(module)
    children = module._modules
    if children:
        above.add(id(module))
        for key, child in children.items():
            # A module that holds one of its own ancestors would never end.
            if child is None or id(child) in above:
                continue
            if wrapped is not None:
                if key == wrapped:
                    _visit(child, prefix, f"{raw}{key}.", attribute, tree, above, inner)
                    continue
                if child in children[wrapped].modules():  # type: ignore[union-attr]  # another handle on what is wrapped
                    continue
            name = f"{prefix}{key}."
            raw_name = name if prefix is raw else f"{raw}{key}."
            if key == "parametrizations" and _is_parametrized(child):
                _parametrized(module, child, name, raw_name, attribute, tree, above, inner)
            else:
                _visit(child, name, raw_name, key, tree, above, inner)
        above.remove(id(module))
    if wrapped is not None and len(children) + len(module._parameters) > 1:
        _check_distinct(tensors[start:], cls)
    own = module.__dict__
    if hooks or "no_weight_decay" in own or "no_weight_decay_keywords" in own:
        tree.hooked.append((module, prefix, raw, start, len(tensors)))


def _check_distinct(tensors: list[Found], wrapper: type) -> None:
    """Raise a MaskError where a wrapper with tensors of its own calls one what the wrapped module calls another."""
    named: dict[str, Tensor] = {}
    for found in tensors:
        if named.setdefault(found.name, found.param) is not found.param:
            raise MaskError(
                explain(
                    f"two tensors are called {found.name!r}: {wrapper.__name__} has one of its own beside that of the "
                    "module that it wraps.",
                    fix=f"rename what {wrapper.__name__} adds, or hold the wrapped module under a name of your own",
                )
            )


def _is_parametrized(child: nn.Module) -> TypeGuard[nn.ModuleDict]:
    """Whether ``layer.parametrizations`` is torch's, not a user's own dict of that name."""
    return isinstance(child, nn.ModuleDict) and all(isinstance(one, ParametrizationList) for one in child.values())


def _parametrized(
    module: nn.Module, parametrizations: nn.ModuleDict, prefix: str, raw: str, attribute: str, *rest: Any
) -> None:
    """Visit ``layer.parametrizations``: ``original*`` belongs to the layer, what a parametrization adds to itself."""
    tree, above, inner = rest
    for leaf, parts in parametrizations.items():
        start = len(tree.tensors)
        _visit(parts, f"{prefix}{leaf}.", f"{raw}{leaf}.", leaf, tree, above, inner)
        for i in range(start, len(tree.tensors)):
            found = tree.tensors[i]
            if found.module is parts:
                tree.tensors[i] = Found(found.name, found.param, module, leaf, attribute, found.leaf)


def wrapped_attribute(cls: type) -> str | None:
    """Return the attribute under which a wrapper class holds what it wraps; None for every other class."""
    for base in cls.__mro__:
        attribute = _WRAPPERS.get((base.__module__, base.__qualname__))
        if attribute is not None:
            return attribute
    return None


def authors_class(cls: type) -> type:
    """Return the class that a module's author wrote, where ``fully_shard`` or a parametrization has put a subclass.

    >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(1, 1))
    >>> type(layer).__name__, authors_class(type(layer)).__name__
    ('ParametrizedLinear', 'Linear')
    """
    while cls.__module__.startswith(("torch.nn.utils.parametrize", "torch.distributed.")):
        written = [
            base for base in cls.__bases__ if cls.__name__ in (f"FSDP{base.__name__}", f"Parametrized{base.__name__}")
        ]
        if not written:
            break
        cls = written[0]
    return cls
