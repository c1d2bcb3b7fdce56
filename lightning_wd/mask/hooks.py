"""What a model's author declared: ``no_weight_decay()`` hooks of any submodule, and marks on the parameters themselves.

==================================== =================================================================================
declaration                          meaning
==================================== =================================================================================
``no_weight_decay()``                names and globs, relative to the module that declares it, which do not decay
                                     (timm, Swin, BEiT); a submodule's name means all that is in it; a name that does
                                     not exist is passed over
``no_weight_decay_keywords()``       texts; a parameter whose name below that module contains one does not decay
``parameter._no_weight_decay``       if true, it does not decay (Mamba)
``parameter._optim``                 settings of its own group: ``weight_decay: 0.0`` excludes, other keys are taken as
                                     they stand, ``lr`` among them (S4)
==================================== =================================================================================

Marks are attributes of a tensor, and ``fully_shard`` (FSDP2) and ``to_empty`` make new tensors without them: a model
that marks its parameters then needs rules that say the same.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_wd.decay import check_number
from lightning_wd.errors import ConfigError, MaskError, explain
from lightning_wd.mask.names import Found, Tree, authors_class

__all__ = ["declared_names", "hooked_names", "marks"]


def hooked_names(tree: Tree) -> dict[str, str]:
    """Return the parameters that a hook exempts from decay, each with the reason.

    Raises:
        MaskError: a hook that fails or returns no collection of names.
    """
    exempt: dict[str, str] = {}
    for module, prefix, raw, start, end in tree.hooked:
        tensors = tree.tensors[start:end]
        names = [found.name for found in tensors]
        inside = {name: [name] for name in names}
        # What holds a reparametrized tensor is still declared under the name that the tensor had.
        for found in tensors:
            if (before := _name_before(found)) is not None:
                inside.setdefault(before, []).append(found.name)
        owner = authors_class(type(module)).__name__
        for entry in declared_names(module, "no_weight_decay"):
            # A hook that lists named_parameters() itself sees the wrapped names.
            name = tree.raw_names.get(raw + entry, prefix + entry)
            if name in inside:
                hit = inside[name]
            elif any(char in entry for char in "*?["):
                hit = [n for n in names if fnmatch.fnmatchcase(n[len(prefix) :], entry)]
            else:
                hit = [n for n in names if n.startswith(f"{prefix}{entry}.")]
            for n in hit:
                exempt.setdefault(n, f"hook {owner}.no_weight_decay()")
        for keyword in declared_names(module, "no_weight_decay_keywords"):
            for n in names:
                if keyword in n[len(prefix) :]:
                    exempt.setdefault(n, f"hook {owner}.no_weight_decay_keywords()")
    return exempt


def _name_before(found: Found) -> str | None:
    """Return the name that a tensor had before its layer was parametrized, pruned or normed; None where it is none."""
    if found.part:
        return f"{found.name.rpartition('.parametrizations.')[0]}.{found.leaf}"
    own = found.module._parameters
    bare, _, half = found.leaf.rpartition("_")
    held = half == "orig" or (half in ("g", "v") and f"{bare}_g" in own and f"{bare}_v" in own)
    return found.name[: -len(half) - 1] if held and bare not in own else None


def declared_names(module: nn.Module, hook: str) -> list[str]:
    """Return the names that a module's hook lists; none where the module has no such hook.

    Raises:
        MaskError: the hook fails or returns no collection of names.
    """
    declared = getattr(module, hook, None)
    if declared is None:
        return []
    where = f"{type(module).__name__}.{hook}"
    try:
        names = declared() if callable(declared) else declared
    except Exception as error:
        raise MaskError(
            explain(
                f"{where}() failed: {type(error).__name__}: {error}",
                fix="make it return the names of parameters that must not decay, with no argument but self",
            )
        ) from error
    if names is None:
        return []
    found = [names] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    if isinstance(names, str) or not all(isinstance(name, str) for name in found):
        raise MaskError(
            explain(
                f"{where}() must return a collection of parameter names but got {names!r:.80}.",
                found=type(names).__name__,
                fix="return a set of names, for example {'pos_embed', 'cls_token'}",
            )
        )
    return found


def marks(name: str, param: Tensor) -> tuple[str, dict[str, Any]]:
    """Return why a parameter's marks exempt it from decay ('' if they do not), and its own optimizer settings.

    Raises:
        MaskError: ``_optim`` is no mapping, or its ``lr`` or ``weight_decay`` is no number >= 0.
    """
    reason = "mark _no_weight_decay" if getattr(param, "_no_weight_decay", False) else ""
    optim = getattr(param, "_optim", None)
    if not optim:
        return reason, {}
    if not isinstance(optim, Mapping):
        raise MaskError(
            explain(
                f"the mark _optim of {name!r} must be a mapping of optimizer settings but got {optim!r:.80}.",
                found=type(optim).__name__,
                fix="set it to a dict such as {'weight_decay': 0.0, 'lr': 1e-3}",
            )
        )
    settings = {key: value for key, value in optim.items() if value is not None}
    try:
        for key in ("lr", "weight_decay"):
            if key in settings:
                settings[key] = check_number(f"{key} in the mark _optim of {name!r}", settings[key])
    except ConfigError as error:
        raise MaskError(str(error)) from None
    if settings.get("weight_decay") == 0:
        del settings["weight_decay"]
        reason = reason or "mark _optim"
    return reason, settings
