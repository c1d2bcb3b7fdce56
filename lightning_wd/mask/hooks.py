"""What a model's author declared: ``no_weight_decay()`` hooks of any submodule, and marks on the parameters themselves.

==================================== =================================================================================
declaration                          meaning
==================================== =================================================================================
``no_weight_decay()``                names and globs below that module that do not decay (timm, Swin, BEiT); a
                                     submodule's name covers everything in it; a name that does not exist is ignored
``no_weight_decay_keywords()``       names below that module that contain one of these do not decay
``parameter._no_weight_decay``       if true, it does not decay (Mamba)
``parameter._optim``                 settings of its own group, taken as they are; ``weight_decay: 0.0`` excludes (S4)
==================================== =================================================================================

``fully_shard`` (FSDP2) and ``to_empty`` make new tensors, without the marks: there, write rules that say the same.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_wd._private import own_parameters
from lightning_wd.errors import MaskError, number
from lightning_wd.mask.module_tree import Found, Tree, authors_class

__all__ = ["declared_names", "hooked_names", "marks"]


def hooked_names(tree: Tree) -> dict[str, str]:
    """Return the parameters that a hook exempts from decay, each with the reason."""
    exempt: dict[str, str] = {}
    for module, prefix, raw, start, end in tree.hooked:
        tensors = tree.tensors[start:end]
        names = [found.name for found in tensors]
        inside = {name: [name] for name in names}
        # A hook still names a reparametrized tensor as it was called before.
        for found in tensors:
            if (before := _name_before(found)) is not None:
                inside.setdefault(before, []).append(found.name)
        owner = authors_class(type(module)).__name__
        for entry in declared_names(module, "no_weight_decay"):
            # A hook that lists named_parameters() itself sees the wrapped names.
            hits = inside.get(tree.raw_names.get(raw + entry, prefix + entry))
            if hits is None:
                pattern = entry if any(char in entry for char in "*?[") else f"{entry}.*"
                hits = [name for name in names if fnmatch.fnmatchcase(name[len(prefix) :], pattern)]
            exempt = dict.fromkeys(hits, f"hook {owner}.no_weight_decay()") | exempt
        for keyword in declared_names(module, "no_weight_decay_keywords"):
            hits = [name for name in names if keyword in name[len(prefix) :]]
            exempt = dict.fromkeys(hits, f"hook {owner}.no_weight_decay_keywords()") | exempt
    return exempt


def _name_before(found: Found) -> str | None:
    """Return the name of a tensor before its layer was parametrized, pruned or normed; None if it never was."""
    if found.part:
        return f"{found.name.rpartition('.parametrizations.')[0]}.{found.leaf}"
    own = own_parameters(found.module)
    bare, _, half = found.leaf.rpartition("_")
    held = half == "orig" or (half in ("g", "v") and f"{bare}_g" in own and f"{bare}_v" in own)
    return found.name[: -len(half) - 1] if held and bare not in own else None


def declared_names(module: nn.Module, hook: str) -> list[str]:
    """Return the names that a module's hook lists; none where the module has no such hook."""
    names = getattr(module, hook, None)
    where = f"{type(module).__name__}.{hook}"
    try:
        names = names() if callable(names) else names
    except Exception as error:
        raise MaskError(
            f"{where}() failed: {type(error).__name__}: {error}",
            fix="make it return the names of parameters that must not decay, with no argument but self",
        ) from error
    if names is None:
        return []
    found: list[Any] = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [None]
    if not all(isinstance(name, str) for name in found):
        raise MaskError(
            f"{where}() must return a collection of parameter names but got {names!r:.80}.",
            found=type(names).__name__,
            fix="return a set of names, for example {'pos_embed', 'cls_token'}",
        )
    return found


def marks(name: str, param: Tensor) -> tuple[str, dict[str, Any]]:
    """Return why a parameter's marks exempt it from decay ('' if they do not), and its own optimizer settings."""
    reason = "mark _no_weight_decay" if getattr(param, "_no_weight_decay", False) else ""
    optim = getattr(param, "_optim", None)
    if not optim:
        return reason, {}
    if not isinstance(optim, Mapping):
        raise MaskError(
            f"the mark _optim of {name!r} must be a mapping of optimizer settings but got {optim!r:.80}.",
            found=type(optim).__name__,
            fix="set it to a dict such as {'weight_decay': 0.0, 'lr': 1e-3}",
        )
    settings = {key: value for key, value in optim.items() if value is not None}
    for key in ("lr", "weight_decay"):
        if key in settings:
            settings[key] = number(f"{name}._optim[{key!r}]", settings[key], error=MaskError)
    if settings.get("weight_decay") == 0:
        del settings["weight_decay"]
        reason = reason or "mark _optim"
    return reason, settings
