"""The tensors of a module under the names their author gave them, whatever the module has been wrapped in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.weak import WeakIdKeyDictionary

from lightning_wd._private import attached_trainer, fsdp1_shapes, is_fsdp1_piece, own_modules, own_parameters
from lightning_wd.errors import MaskError

__all__ = ["Found", "Tree", "authors_class", "is_sharded", "walk", "whole_shape", "without_wrappers"]

_FSDP1 = "_fsdp_wrapped_module"
# Wrapper classes and the attribute that holds what they wrap. The attribute alone tells nothing: a user's own submodule
# may be called 'module' too.
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

_ORIGINAL_SHAPES: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of the pieces that FSDP1 has cut parameters into


class Found(NamedTuple):
    """One name of one tensor."""

    name: str  # the full name, without the prefixes of wrappers
    param: Tensor
    module: nn.Module  # its owner; for a parametrized tensor, the parametrized layer
    leaf: str  # the owner's name for it, such as "weight"
    attribute: str  # the parent's name for the owner
    part: str  # the parametrization's own name for it, such as "original0"; empty for other tensors


@dataclass
class Tree:
    """A walked module: its tensors by every name, in the order of ``named_parameters``, and its hooks."""

    tensors: list[Found] = field(default_factory=list)
    raw_names: dict[str, str] = field(default_factory=dict)  # with the prefixes of wrappers -> without, if they differ
    fsdp: list[nn.Module] = field(default_factory=list)  # FSDP1's wrappers
    # module, its name, its raw name, the range of its tensors
    hooked: list[tuple[nn.Module, str, str, int, int]] = field(default_factory=list)
    classes: dict[type, tuple[str | None, bool]] = field(default_factory=dict)  # -> what it wraps, whether it has hooks
    _above: set[int] = field(default_factory=set)  # the ancestors of the module that is visited

    def by_tensor(self) -> list[tuple[Found, ...]]:
        """Return the names of each tensor, in the order of ``named_parameters``; a tied one has more than one."""
        names: dict[int, tuple[Found, ...]] = {}
        for found in self.tensors:
            key = id(found.param)
            names[key] = (*names[key], found) if key in names else (found,)
        return list(names.values())

    def visit(self, module: nn.Module, prefix: str, raw: str, attribute: str) -> None:
        """Add the tensors of a module and its children; ``prefix`` is its name and a dot, ``raw`` the wrapped one's."""
        cls = type(module)
        if cls not in self.classes:
            hooks = hasattr(cls, "no_weight_decay") or hasattr(cls, "no_weight_decay_keywords")
            self.classes[cls] = _wrapped_attribute(cls), hooks
        wrapped, hooks = self.classes[cls]
        tensors = self.tensors
        start = len(tensors)
        differs = prefix is not raw and prefix != raw
        for leaf, param in own_parameters(module).items():
            if param is not None:
                name = prefix + leaf
                tensors.append(Found(name, param, module, leaf, attribute, ""))
                if differs:
                    self.raw_names[raw + leaf] = name
        if wrapped == _FSDP1:
            self.fsdp.append(module)
        children = own_modules(module)
        if children:
            self._above.add(id(module))
            for key, child in children.items():
                # A module may hold one of its own ancestors, and a wrapper another reference to what it wraps.
                if child is None or id(child) in self._above:
                    continue
                if wrapped is not None:
                    if key == wrapped:
                        self.visit(child, prefix, f"{raw}{key}.", attribute)
                        continue
                    if child in children[wrapped].modules():
                        continue
                name = f"{prefix}{key}."
                raw_name = name if prefix is raw else f"{raw}{key}."
                if key == "parametrizations" and _is_parametrized(child):
                    self._visit_parametrized(module, child, name, raw_name, attribute)
                else:
                    self.visit(child, name, raw_name, key)
            self._above.remove(id(module))
        if wrapped is not None and len(children) + len(own_parameters(module)) > 1:
            _check_distinct(tensors[start:], cls)
        if hooks or "no_weight_decay" in module.__dict__ or "no_weight_decay_keywords" in module.__dict__:
            self.hooked.append((module, prefix, raw, start, len(tensors)))

    def _visit_parametrized(
        self, module: nn.Module, parametrizations: nn.ModuleDict, prefix: str, raw: str, attribute: str
    ) -> None:
        """Visit ``layer.parametrizations``; the layer owns ``original*``, a parametrization its other tensors."""
        for leaf, parts in parametrizations.items():
            start = len(self.tensors)
            self.visit(parts, f"{prefix}{leaf}.", f"{raw}{leaf}.", leaf)
            for i, found in enumerate(self.tensors[start:], start):
                if found.module is parts:
                    self.tensors[i] = Found(found.name, found.param, module, leaf, attribute, found.leaf)


def walk(module: nn.Module) -> Tree:
    """Return every tensor of ``module`` under every name it has."""
    if not isinstance(module, nn.Module):
        raise MaskError(
            f"plan_decay needs an nn.Module but got {module!r:.80}.",
            found=type(module).__name__,
            fix="pass the module itself, not its parameters: names and layer types decide",
        )
    tree = Tree()
    tree.visit(module, "", "", "")
    around = getattr(attached_trainer(module), "model", None)  # Lightning's FSDPStrategy wraps the LightningModule
    outer = around.modules() if isinstance(around, nn.Module) and around is not module else ()
    for wrapper in (*tree.fsdp, *(each for each in outer if _wrapped_attribute(type(each)) == _FSDP1)):
        _ORIGINAL_SHAPES.update(fsdp1_shapes(wrapper))
    return tree


def _wrapped_attribute(cls: type) -> str | None:
    """Return the attribute in which instances of a wrapper class hold what they wrap; None for other classes."""
    known = (_WRAPPERS.get((base.__module__, base.__qualname__)) for base in cls.__mro__)
    return next(filter(None, known), None)


def without_wrappers(name: str) -> str:
    """Return a tensor's name without the parts that only torch's wrappers give.

    >>> without_wrappers("net._orig_mod.0._fsdp_wrapped_module.weight")
    'net.0.weight'
    """
    private = [attribute for attribute in _WRAPPERS.values() if attribute[0] == "_"]
    return ".".join(part for part in name.split(".") if part not in private)


def whole_shape(param: Tensor) -> torch.Size:
    """Return a tensor's shape; the original one of a piece of FSDP1, ``(-1,)`` where it is not known.

    DeepSpeed's ZeRO-3 leaves an empty tensor where a partitioned one was.
    """
    shape = param.shape
    if len(shape) != 1:
        return shape
    if is_fsdp1_piece(param):
        return _ORIGINAL_SHAPES[param] if param in _ORIGINAL_SHAPES else torch.Size([-1])
    return torch.Size(getattr(param, "ds_shape", shape)) if not shape[0] else shape


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, as FSDP2 and tensor parallelism make them."""
    return hasattr(tensor, "device_mesh")


def _check_distinct(tensors: list[Found], wrapper: type) -> None:
    """Raise a MaskError where a tensor of a wrapper's own has the name of a wrapped one."""
    named: dict[str, Tensor] = {}
    for found in tensors:
        if named.setdefault(found.name, found.param) is not found.param:
            raise MaskError(
                f"two tensors are called {found.name!r}: one of {wrapper.__name__}'s own, and one of the module "
                "that it wraps.",
                fix=f"rename the one of {wrapper.__name__}, or hold the wrapped module under a name of your own",
            )


def _is_parametrized(child: nn.Module) -> TypeGuard[nn.ModuleDict]:
    """Whether ``layer.parametrizations`` is torch's, not a user's dict of the same name."""
    return isinstance(child, nn.ModuleDict) and all(isinstance(one, ParametrizationList) for one in child.values())


def authors_class(cls: type) -> type:
    """Return the class as its author wrote it, without the subclass of ``fully_shard`` or a parametrization.

    >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(1, 1))
    >>> type(layer).__name__, authors_class(type(layer)).__name__
    ('ParametrizedLinear', 'Linear')
    """
    while cls.__module__.startswith(("torch.nn.utils.parametrize", "torch.distributed.")):
        written = {f"{how}{base.__name__}": base for base in cls.__bases__ for how in ("FSDP", "Parametrized")}
        if cls.__name__ not in written:
            break
        cls = written[cls.__name__]
    return cls
