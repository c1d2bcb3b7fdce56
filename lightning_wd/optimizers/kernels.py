"""How a step runs: the right kernel for each tensor, and decay around a kernel that has none.

torch's fused CPU kernels walk tensors as flat memory. Where the layout of a gradient or state is not its weight's (one
is channels_last, transposed or expanded) they silently combine the wrong elements. So every step compares layouts:
about 0.1 us a tensor, and unlike a cache it cannot go stale when ``model.to(memory_format=...)`` is called later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain, starmap
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_wd._private import (
    default_to_fused_or_foreach,
    foreach_add,
    foreach_add_,
    foreach_mul,
    foreach_sub_,
    foreach_supported_types,
    fused_sgd_,
)
from lightning_wd.errors import ConfigError
from lightning_wd.optimizers.compiled import is_native, kind_of, kinds_of
from lightning_wd.optimizers.hyperball import local, turn_weights, turns
from lightning_wd.optimizers.param_groups import group_label
from lightning_wd.styles import NO_AMOUNT

__all__ = [
    "Part",
    "Work",
    "add_penalty",
    "choose_kernels",
    "count_up",
    "distances",
    "is_zero",
    "masked",
    "misfits",
    "prefers_fused",
    "pulls",
    "shrink",
    "step_with_decay",
]

_FUSED_DEVICES = ("cpu", "cuda")  # where fused kernels are tested; elsewhere torch's default holds
_PLAIN_SGD: dict[str, Any] = {"weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0, "nesterov": False}
_PLAIN_SGD |= {"maximize": False, "is_first_step": False, "grad_scale": None}


class Part(NamedTuple):
    """Tensors of one group that one kernel updates: their indices (None: all), and the flags that choose it."""

    indices: list[int] | None
    fused: bool | None
    foreach: bool | None
    compiled: bool = False
    alike: bool = False  # known to be of one class, device and dtype

    def take(self, columns: list[list[Any]]) -> list[list[Any]]:
        """Return the part's entries of columns, which have one entry per parameter or none."""
        if self.indices is None:
            return columns
        return [column and [column[i] for i in self.indices] for column in columns]

    def split(self, marks: Sequence[bool]) -> list[Part]:
        """Return the part of marked tensors and that of the others, without one that is empty."""
        own = range(len(marks)) if self.indices is None else self.indices
        halves = [[i for i in own if marks[i] is mark] for mark in (True, False)]
        return [self._replace(indices=half) for half in halves if half] if all(halves) else [self]


# A group, its columns (in the order of its `_collect`), whether a tensor is complex or sparse, and its parts.
Work = tuple[dict[str, Any], list[list[Any]], bool, list[Part]]


def prefers_fused(group: dict[str, Any], kinds: dict[Any, Tensor]) -> bool:
    """Whether a group runs on the fused kernel, layouts aside: asked for, or supported and not ruled out."""
    if group["fused"] is not None or group["foreach"] is not None or torch.compiler.is_compiling():
        return bool(group["fused"])
    # torch asks this of every tensor, with many more calls
    return not group["differentiable"] and all(starmap(_fusable, kinds))


@cache
def _fusable(kind: type, device: torch.device, dtype: torch.dtype) -> bool:
    return device.type in _FUSED_DEVICES and kind in foreach_supported_types and dtype.is_floating_point


def choose_kernels(
    group: dict[str, Any],
    params: list[Tensor],
    columns: Sequence[list[Tensor]],
    kinds: dict[Any, Tensor],
    *,
    index: int,
    sparse: bool = False,
    compile: Callable[[Tensor], bool] | None = None,
    flawed: Callable[[Tensor], bool] | None = None,
) -> list[Part]:
    """Choose the kernels of a group's step: the fused one only where it is correct.

    ``columns`` are the gradients and states of ``params``, ``kinds`` what :func:`kinds_of` says of them. The fused
    kernel takes no ``sparse`` gradient, and is wrong for a weight of which ``flawed`` says so; ``compile`` says which
    go to the compiled pass, which needs equal layouts.

    Raises:
        ConfigError: ``fused=True`` was asked for and would be wrong.
    """
    if not params:
        return []
    if not prefers_fused(group, kinds) or (sparse and not group["fused"]):
        return [Part(None, group["fused"], group["foreach"])]
    misfit = set() if sparse else set(misfits(params, columns))
    wrong = set()
    if flawed is not None and any(map(flawed, kinds.values())):
        wrong = {i for i, p in enumerate(params) if flawed(p)}
    if not misfit and not compile and not wrong:
        return [Part(None, True, False, alike=len(kinds) == 1 and not torch.compiler.is_compiling())]
    if group["fused"] and (misfit or wrong):
        _refuse_fused(group, index, params, columns, min(misfit or wrong), layout=bool(misfit))
    if compile and not misfit and all(map(is_native, kinds.values())):
        return [Part(None, None, None, compiled=True, alike=len(kinds) == 1)]
    large = [i for i, p in enumerate(params) if compile and i not in misfit and compile(p)]
    plain = sorted((misfit | wrong).difference(large))
    fused = sorted(set(range(len(params))).difference(large, plain))
    parts = [Part(large, None, None, compiled=True), Part(fused, True, False), Part(plain, None, None)]
    return [part for part in parts if part.indices]


def _refuse_fused(
    group: dict[str, Any], index: int, params: list[Tensor], columns: Sequence[list[Tensor]], i: int, *, layout: bool
) -> None:
    p = params[i]
    reason, found = "on a CPU torch's fused kernel silently leaves such weights unchanged.", str(p.dtype)
    if layout:
        reason = "the fused kernel needs one dense layout for a parameter, its gradient and its state."
        strides = " and ".join(str(column[i].stride()) for column in columns if column)
        found = f"shape {tuple(p.shape)}, strides {p.stride()} of the parameter, {strides} of its gradient and state"
    names = group.get("param_names", range(len(group["params"])))
    name = next(name for name, other in zip(names, group["params"], strict=True) if other is p)
    raise ConfigError(
        f"fused=True is wrong for parameter {name!r} of {group_label(group, index)}: {reason}",
        found=found,
        fix="leave out fused: the fused kernel is then used wherever it is right",
    )


def misfits(params: Sequence[Tensor], columns: Sequence[Sequence[Tensor]]) -> list[int]:
    """Return the indices of parameters whose layout differs from that of a column."""
    if all(map(torch.Tensor.is_contiguous, chain(params, *columns))):
        return []
    bad = []
    for i, p in enumerate(params):
        others = [column[i] for column in columns if column]
        if p.is_contiguous() and all(other.is_contiguous() for other in others):
            continue
        layout = _layout(p)
        if layout is None or any(_layout(other) != layout for other in others):
            bad.append(i)
    return bad


def _layout(tensor: Tensor) -> list[tuple[int, int, int]] | None:
    """Return the axes in memory order as (stride, size, axis), or None where memory has holes or overlaps.

    Axes of size 1 are left out: their stride does not matter.
    """
    axes = sorted(((s, n, i) for i, (s, n) in enumerate(zip(tensor.stride(), tensor.shape, strict=True)) if n != 1))
    expected = 1
    for stride, size, _ in axes:
        if stride != expected:
            return None
        expected *= size
    return axes


def count_up(steps: list[Tensor]) -> None:
    """Add 1 to counts of steps: on a CPU by the fused SGD, in a tenth of the time of foreach's loop."""
    if fused_sgd_ is None or set(map(attrgetter("is_cpu", "dtype"), steps)) != {(True, torch.float32)}:
        foreach_add_(steps, 1)
        return
    minus_one = torch.tensor(-1.0)
    fused_sgd_(steps, [minus_one] * len(steps), [], lr=1.0, **_PLAIN_SGD)


def is_zero(value: float | Tensor) -> bool:
    """Whether a number is known to be 0; a tensor is not read, since that would wait for the device."""
    return not isinstance(value, Tensor) and value == 0


def pulls(group: Mapping[str, Any]) -> bool:
    """Whether a group decays towards anchors, which its state holds, and not towards zero."""
    return group["toward"] != "zero" and group["style"] not in NO_AMOUNT


def step_with_decay(
    kernel: Callable[[list[Tensor]], None],
    params: list[Tensor],
    part: Part,
    group: dict[str, Any],
    state: Mapping[Tensor, dict[str, Any]],
    *,
    fraction: float | Tensor,
    direction: Callable[[], list[Tensor]],
    found_inf: Tensor | None = None,
) -> None:
    """Run ``w <- w - lr * u - d * (w_old - w*)``, or a hyperball step, around a kernel that does ``w <- w - lr * u``.

    The decay is computed as ``w - d * w``. Multiplying by ``1 - d`` would round ``1 - d`` the same way in every step,
    and drift 20 to 30 times more.

    Args:
        kernel: updates the list of weights it is given, in place, without decay.
        params, group, part: the weights, their group, and which kernel it is; the decay runs on the same kind.
        state: holds the anchors ``w*``, what earlier roundings lost ("kahan"), and the radius of each hyperball.
        fraction: ``d_t``.
        direction: returns ``u`` up to a positive factor after the kernel has run; only called when cautious.
        found_inf: GradScaler's flag; where it is 1 the kernel does nothing, and so does the decay.
    """
    if turns(group, params[0]):
        turn_weights(kernel, params, [state[p]["radius"] for p in params], group["lr"])
        return
    cautious, foreach = group["cautious_wd"], part.foreach
    if foreach is None and part.fused is None:
        foreach = default_to_fused_or_foreach(params, group["differentiable"])[1]
    mode = "fused" if part.fused else "foreach" if foreach else "single"
    if group["kahan"]:
        if found_inf is not None and found_inf.item():
            return
        updates = [torch.zeros_like(p) for p in params]
        kernel(updates)
        if not is_zero(fraction):
            away = distances(params, group, state)
            shrink(updates, masked(away, direction()) if cautious else away, fraction, mode)
        _add_compensated(params, updates, [state[p]["kahan"] for p in params])
    elif is_zero(fraction):
        kernel(params)
    elif cautious:
        away = distances(params, group, state) if pulls(group) else [p.clone() for p in params]
        kernel(params)
        shrink(params, masked(away, direction()), fraction, mode, found_inf)
    else:
        shrink(params, distances(params, group, state), fraction, mode, found_inf)
        kernel(params)


def distances(params: list[Tensor], group: Mapping[str, Any], state: Mapping[Tensor, Any]) -> list[Tensor]:
    """Return ``w - w*``; the weights themselves where they decay towards zero."""
    return [(p - state[p]["anchor"]).to(p.dtype) for p in params] if pulls(group) else params


def shrink(
    params: list[Tensor], old: list[Tensor], fraction: float | Tensor, mode: str, found_inf: Tensor | None = None
) -> None:
    """Do ``w <- w - d * w_old`` in one pass; ``old`` are the weights, or their distances from the anchors."""
    if isinstance(fraction, Tensor) and fraction.is_cpu and not fraction.requires_grad:
        fraction = fraction.item()
    if torch.compiler.is_compiling():  # a float `alpha` would be compiled in, and each new one would recompile
        for p, w in zip(params, old, strict=True):
            p.sub_(w * fraction)
        return
    kinds = kinds_of(params) if mode == "fused" else {}
    if any(type(p).__name__ == "DTensor" for p in kinds.values()):  # of FSDP2; only its local part has a fused SGD
        params, old = ([*map(local, column)] for column in (params, old))
        kinds = kinds_of(params)
    if any(p.is_cpu for p in kinds.values()):
        if found_inf is not None and found_inf.item():
            return
        found_inf = None
    # On a CPU torch's fused SGD is wrong on 16-bit weights. On others it is foreach's arithmetic in one call.
    wrong = any(p.is_cpu and p.dtype not in (torch.float32, torch.float64) for p in kinds.values())
    if mode == "fused" and (wrong or fused_sgd_ is None):
        mode = "foreach"
    if mode == "fused":
        # A fused SGD step with w_old as the gradient and d as the learning rate: the only stock kernel that takes
        # found_inf and a learning rate on the device, so nothing waits and a CUDA graph can capture it.
        for kind, sample in kinds.items():
            alike = [i for i, p in enumerate(params) if len(kinds) == 1 or kind_of(p) == kind]
            lr = fraction.to(sample.device) if isinstance(fraction, Tensor) else fraction
            flag = None if found_inf is None else found_inf.to(sample.device)
            ps, ws = ([column[i] for i in alike] for column in (params, old))
            fused_sgd_(ps, ws, [], lr=lr, found_inf=flag, **_PLAIN_SGD)
    elif mode == "foreach":
        if isinstance(fraction, Tensor):
            foreach_sub_(params, foreach_mul(old, fraction))
        else:
            foreach_add_(params, old, alpha=-fraction)
    else:
        for p, w in zip(params, old, strict=True):
            if isinstance(fraction, Tensor):
                p.addcmul_(w.clone() if w is p else w, fraction.to(p.device), value=-1)
            else:
                p.add_(w, alpha=-fraction)


def masked(old: list[Tensor], direction: list[Tensor]) -> list[Tensor]:
    """Return ``w_old`` where ``u * w_old >= 0`` and 0 elsewhere.

    The sign of ``w`` is used, not ``w``: a product of two small numbers would underflow to 0 and count as agreement.
    """
    kept = []
    for w, u in zip(old, direction, strict=True):
        complex_valued = w.is_complex()
        if complex_valued:
            w, u = torch.view_as_real(w), torch.view_as_real(u)
        keep = w.sign().mul_(u)  # one new tensor, not five; torch 2.6 has no ge_ for shards
        keep = keep.ge(0).mul(w) if hasattr(w, "full_tensor") else keep.ge_(0).mul_(w)
        kept.append(torch.view_as_complex(keep) if complex_valued else keep)
    return kept


def _add_compensated(params: list[Tensor], updates: list[Tensor], residuals: list[Tensor]) -> None:
    """Add updates to weights by Kahan summation: what rounding loses is kept in ``residuals`` for the next step."""
    foreach_add_(residuals, updates)
    lost = [p.clone() for p in params]
    foreach_add_(params, residuals)
    foreach_sub_(lost, params)
    foreach_add_(residuals, lost)


def add_penalty(
    grads: list[Tensor], away: list[Tensor], group: dict[str, Any], grad_scale: Tensor | None = None
) -> list[Tensor]:
    """Return ``g + lam * (w - w*)`` of gradients that still have GradScaler's scale and the sign of ``maximize``."""
    lam = group["weight_decay"]
    if is_zero(lam):
        return grads
    alpha = lam * (1.0 if grad_scale is None else grad_scale.item())
    return list(foreach_add(grads, away, alpha=-alpha if group.get("maximize") else alpha))
