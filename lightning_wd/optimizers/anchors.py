"""What weights decay towards where that is not zero: the weights an optimizer was built with, or a checkpoint's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_wd.errors import ConfigError, ExplainedError, listed, nearest, warn
from lightning_wd.mask.module_tree import is_sharded, without_wrappers
from lightning_wd.optimizers.hyperball import local
from lightning_wd.optimizers.weights_file import read_weights
from lightning_wd.styles import NO_AMOUNT

__all__ = ["anchors_of", "no_anchor", "no_match", "saved_names", "tell_of_moved"]


def anchors_of(group: Mapping[str, Any], label: str) -> dict[Tensor, Tensor]:
    """Return the point that each weight of a group decays towards, in the layout and on the device of the weight.

    A weight that the checkpoint lacks decays towards zero.

    Raises:
        ConfigError: weights without values yet, parameters without names, or a checkpoint that does not fit.
    """
    toward, params = group["toward"], group["params"]
    dtype = torch.bfloat16 if group["anchor_dtype"] else None
    if any(p.is_meta for p in params):
        raise ConfigError(
            f"toward={toward!r} of {label}: its weights are on the meta device, without values to decay towards.",
            fix="give the weights their values (to_empty, reset_parameters) before the optimizer is built",
        )
    if dtype is not None and any(p.is_complex() for p in params):
        raise ConfigError(
            f"anchor_dtype={group['anchor_dtype']!r} of {label} holds no complex weights.", fix="leave out anchor_dtype"
        )
    new = {p: torch.empty_like(p, dtype=dtype, requires_grad=False) for p in params}
    if toward == "init":
        for p, anchor in new.items():
            anchor.copy_(p.detach())
        return new
    names = group.get("param_names")
    if names is None:
        raise ConfigError(
            f"toward={toward!r} of {label} needs the names of its parameters.",
            found="parameters without names",
            fix="build the optimizer from model.named_parameters(), or with lightning_wd.configure_optimizers",
        )
    weights = read_weights(toward)
    saved = saved_names(names, weights)
    if not saved:
        raise no_match(f"{label} has no weight in toward={toward!r}.", names, weights)
    for name, (p, anchor) in zip(names, new.items(), strict=True):
        anchor.copy_(_like(weights[saved[name]], p, name, toward)) if name in saved else anchor.zero_()
    return new


def tell_of_moved(group: Mapping[str, Any], label: str, anchors: Mapping[Tensor, Tensor]) -> None:
    """Warn of weights that changed after ``init`` was read from them, before their first step.

    They were loaded, or broadcast, after the optimizer was built: then init is not what training starts from.
    """
    if group["toward"] != "init" or group["style"] in NO_AMOUNT:
        return
    names = group.get("param_names", range(len(group["params"])))
    named = [(name, p, anchors[p]) for name, p in zip(names, group["params"], strict=True) if p in anchors]
    moved = []
    for name, p, anchor in named:
        dtype = anchor.dtype if group["anchor_dtype"] else p.dtype
        if not torch.equal(local(p.detach()).to(dtype), local(anchor).to(p.device, dtype)):
            moved.append(str(name))
    if moved:
        warn(
            f"toward='init' of {label} is the weights when the optimizer was built, and they have changed since.",
            found=f"{len(moved)} of {len(named)} before their first step: {listed(moved)}",
            fix="load (and broadcast) the weights before the optimizer is built, or write toward=<their checkpoint>",
        )


def saved_names(names: Iterable[str], saved: Iterable[str]) -> dict[str, str]:
    """Return the saved name of each parameter that a file has.

    What wrappers add to a name does not count, nor does a prefix that one side has more: of the attribute that holds
    the model. The prefix, or none, that fits the most names holds for all.

    >>> saved_names(["model.body.weight", "model.head.weight"], ["body._orig_mod.weight", "old_head.weight"])
    {'model.body.weight': 'body._orig_mod.weight'}
    """
    mine = {without_wrappers(name): name for name in names}
    theirs = {without_wrappers(name): name for name in saved}
    whole = sum(clean in theirs for clean in mine)
    added = Counter(name.removesuffix(end) for name in mine for end in _ends(name) if end in theirs)
    dropped = Counter(name.removesuffix(end) for name in theirs for end in _ends(name) if end in mine)
    votes = [(whole, "", False)] if whole else []
    votes += [(n, prefix, longer is dropped) for longer in (added, dropped) for prefix, n in longer.items()]
    most = max(votes, default=(0,))[0]
    best = [(prefix, is_theirs) for n, prefix, is_theirs in votes if n == most]
    prefix, is_theirs = min(best, key=lambda vote: len(vote[0]), default=("", False))
    if not best or not all(other.startswith(prefix) for other, _ in best):  # nothing, or several that fit alike
        return {}
    if is_theirs:
        return {name: theirs[prefix + clean] for clean, name in mine.items() if prefix + clean in theirs}
    bare = {clean.removeprefix(prefix): name for clean, name in mine.items() if clean.startswith(prefix)}
    return {name: theirs[clean] for clean, name in bare.items() if clean in theirs}


def _ends(name: str) -> list[str]:
    """Return what is left of a dotted name without its first part, its first two, and so on."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(1, len(parts))]


def no_anchor(setting: str, toward: str, error: type[ExplainedError] = ConfigError) -> ExplainedError:
    """Return the error of a setting of anchors where everything decays towards zero."""
    return error(
        f"{setting} has no effect: what decays towards zero has no anchor.",
        fix=f"write {toward} or the path of a checkpoint, or leave out anchor_dtype",
    )


def no_match(problem: str, names: Iterable[str], saved: Iterable[str]) -> ConfigError:
    """Return the error that no parameter has its name in a file."""
    names, saved = list(names), list(saved)
    close = next((near for name in names if (near := nearest(name, saved))), None)
    return ConfigError(
        problem,
        found=listed(saved),
        valid=listed(names),
        nearest=close,
        fix="give the checkpoint of this model, and of no other beside it, or write toward=zero or init for these "
        "parameters",
    )


def _like(saved: Tensor, p: Tensor, name: str, toward: str) -> Tensor:
    """Return a saved weight as its parameter is: divided among the ranks where that is."""
    if saved.shape != p.shape:
        raise ConfigError(
            f"{name} has another shape in toward={toward!r}.",
            found=str(tuple(saved.shape)),
            valid=str(tuple(p.shape)),
            fix="give the checkpoint of this model, or a mask rule with toward: zero for this parameter",
        )
    if not is_sharded(p):
        return saved
    from torch.distributed.tensor import distribute_tensor

    whole = saved.to(p.device)
    return distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)  # type: ignore[attr-defined]
