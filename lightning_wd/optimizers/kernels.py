"""How a step runs: which kernel is right for which tensors, and decay around a kernel that does none itself.

torch's fused CPU kernels walk every tensor as flat memory. Where a parameter and its gradient or state differ in
layout (a channels_last weight with a contiguous gradient, a transposed weight, an expanded gradient) they combine
elements that do not belong together, and say nothing. So layouts are compared in every step: about 0.1 us a tensor,
and no cache that a later ``model.to(memory_format=...)`` could make stale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain, starmap
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, _default_to_fused_or_foreach, _foreach_supported_types

from lightning_wd.errors import ConfigError, explain
from lightning_wd.optimizers.compiled import compiles, kind_of, kinds_of
from lightning_wd.optimizers.groups import group_label
from lightning_wd.optimizers.native import is_native

__all__ = [
    "Part",
    "add_penalty",
    "choose_kernels",
    "is_zero",
    "kinds_in",
    "masked",
    "misfits",
    "prefers_fused",
    "shrink",
    "step_with_decay",
]

_FUSED_DEVICES = ("cpu", "cuda")  # where fused kernels were tried; elsewhere torch's own default stands


class Part(NamedTuple):
    """Tensors of one group that one kernel updates: their indices (None: all), and the flags that choose it."""

    indices: list[int] | None
    fused: bool | None
    foreach: bool | None
    compiled: bool = False
    alike: bool = False  # known to be of one class, device and dtype

    def take(self, columns: list[list[Any]]) -> list[list[Any]]:
        """Return the part's entries of columns, each of which has one entry per parameter (or none at all)."""
        if self.indices is None:
            return columns
        return [column and [column[i] for i in self.indices] for column in columns]


def kinds_in(params: Sequence[Tensor]) -> set[tuple[type, torch.device, torch.dtype]] | None:
    """Return the classes, devices and dtypes of parameters; None while torch.compile traces, which it could not."""
    return None if torch.compiler.is_compiling() else set(map(kind_of, params))


def prefers_fused(group: dict[str, Any], kinds: set[tuple[type, torch.device, torch.dtype]] | None) -> bool:
    """Whether the fused kernel is what a group runs on, layouts aside: asked for, or left to us and supported."""
    if group["fused"] is not None or group["foreach"] is not None or kinds is None:
        return bool(group["fused"])
    # torch asks the same of every tensor, by many more calls
    return not group["differentiable"] and all(starmap(_fusable, kinds))


@cache
def _fusable(kind: type, device: torch.device, dtype: torch.dtype) -> bool:
    return device.type in _FUSED_DEVICES and kind in _foreach_supported_types and dtype.is_floating_point


def choose_kernels(
    group: dict[str, Any],
    params: list[Tensor],
    columns: Sequence[list[Tensor]],
    *,
    index: int,
    sparse: bool = False,
    compile: bool = False,
    flawed: Callable[[Tensor], bool] | None = None,
) -> list[Part]:
    """Choose the kernel of a group's step; tensors that the fused kernel would get wrong get another one.

    Args:
        group: the parameter group; its ``fused`` and ``foreach`` choose as in torch.optim.
        params: its parameters that have a gradient.
        columns: gradients and state tensors, each in the order of ``params``.
        index: the group's position, for the error.
        sparse: whether a gradient is sparse, which no fused kernel takes.
        compile: whether tensors go to the compiled pass, which needs the same layouts.
        flawed: whether the fused kernel gets parameters of this one's class, device and dtype wrong in any layout;
            None for a kernel without flaws.

    Raises:
        ConfigError: ``fused=True`` was asked for and would be wrong.
    """
    kinds = kinds_in(params)
    if not prefers_fused(group, kinds) or (sparse and not group["fused"]):
        return [Part(None, group["fused"], group["foreach"])]
    bad = [] if sparse else misfits(params, columns)
    wrong = []
    if flawed is not None and any(map(flawed, kinds_of(params))):
        wrong = [i for i, p in enumerate(params) if flawed(p)]
    if not bad and not compile and not wrong:
        return [Part(None, True, False, alike=kinds is not None and len(kinds) == 1)]
    if group["fused"] and (bad or wrong):
        label = group_label(group, index)
        _refuse_fused(group, params, columns, bad[0] if bad else wrong[0], label=label, layout=bool(bad))
    unfit = set(bad)
    if compile and not unfit and all(map(is_native, kinds_of(params))):
        return [Part(None, None, None, compiled=True)]
    large = {i for i, p in enumerate(params) if compile and i not in unfit and compiles(p)}
    plain = {*unfit, *wrong} - large
    fused = [i for i in range(len(params)) if i not in large and i not in plain]
    parts = [Part(sorted(large), None, None, compiled=True), Part(fused, True, False), Part(sorted(plain), None, None)]
    return [part for part in parts if part.indices]


def _refuse_fused(
    group: dict[str, Any],
    params: list[Tensor],
    columns: Sequence[list[Tensor]],
    index: int,
    *,
    label: str,
    layout: bool,
) -> None:
    p, names = params[index], group.get("param_names")
    position = next(i for i, other in enumerate(group["params"]) if other is p)
    if layout:
        reason = "the fused kernel needs one dense layout for a parameter, its gradient and its state."
        strides = " and ".join(str(column[index].stride()) for column in columns if column)
        found = f"shape {tuple(p.shape)}, strides {p.stride()} of the parameter, {strides} of its gradient and state"
    else:
        reason = "on a CPU torch's fused kernel leaves such weights as they are, and says nothing."
        found = str(p.dtype)
    raise ConfigError(
        explain(
            f"fused=True is wrong for parameter {names[position] if names else position!r} of {label}: {reason}",
            found=found,
            fix="leave out fused: the fused kernel is then used wherever it is right",
        )
    )


def misfits(params: Sequence[Tensor], columns: Sequence[Sequence[Tensor]]) -> list[int]:
    """Return the indices of parameters whose memory a fused kernel would pair wrongly with a column's."""
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
    """Return the axes from the outermost in memory as (stride, size, axis), or None where memory has holes or overlaps.

    Axes of size 1 are left out: their stride moves nothing.
    """
    axes = sorted(((s, n, i) for i, (s, n) in enumerate(zip(tensor.stride(), tensor.shape, strict=True)) if n != 1))
    expected = 1
    for stride, size, _ in axes:
        if stride != expected:
            return None
        expected *= size
    return axes


def is_zero(value: float | Tensor) -> bool:
    """Whether a number is known to be 0. A tensor is not read: that would wait for the device."""
    return not isinstance(value, Tensor) and value == 0


def step_with_decay(
    kernel: Callable[[list[Tensor]], None],
    params: list[Tensor],
    part: Part,
    *,
    fraction: float | Tensor,
    direction: Callable[[], list[Tensor]],
    cautious: bool,
    differentiable: bool,
    found_inf: Tensor | None,
    residuals: list[Tensor] | None = None,
) -> None:
    """Run ``w <- w - lr * u - d * w_old`` around a kernel that does ``w <- w - lr * u``.

    The decay is subtracted from the old weights as ``w - d * w``. Multiplying by ``1 - d`` would round ``1 - d`` the
    same way in every step, and drift 20 to 30 times more.

    Args:
        kernel: updates the list of weights it is given, in place, without decay.
        params: the weights.
        part: which kernel it is; the decay runs on the same kind.
        fraction: ``d_t``.
        direction: gives ``u`` up to a positive factor, once the kernel has run; only called when ``cautious``.
        cautious: decay only where ``u * w_old >= 0``.
        differentiable: whether autograd records the step.
        found_inf: GradScaler's flag; where it is 1 the kernel does nothing, and so does the decay.
        residuals: what earlier roundings lost (Kahan), per weight: the step is then summed with compensation.
    """
    if part.fused:
        mode = "fused"
    elif part.foreach is None and part.fused is None:
        mode = "foreach" if _default_to_fused_or_foreach(params, differentiable)[1] else "single"
    else:
        mode = "foreach" if part.foreach else "single"
    if residuals is not None:
        if found_inf is not None and found_inf.item():
            return
        updates = [torch.zeros_like(p) for p in params]
        kernel(updates)
        if not is_zero(fraction):
            shrink(updates, masked(params, direction()) if cautious else params, fraction, mode)
        _add_compensated(params, updates, residuals)
    elif is_zero(fraction):
        kernel(params)
    elif cautious:
        old = [p.clone() for p in params]
        kernel(params)
        shrink(params, masked(old, direction()), fraction, mode, found_inf)
    else:
        shrink(params, params, fraction, mode, found_inf)
        kernel(params)


def shrink(
    params: list[Tensor], old: list[Tensor], fraction: float | Tensor, mode: str, found_inf: Tensor | None = None
) -> None:
    """Do ``w <- w - d * w_old`` in one pass."""
    if isinstance(fraction, Tensor) and fraction.is_cpu and not fraction.requires_grad:
        fraction = fraction.item()
    if torch.compiler.is_compiling():  # a float for `alpha` would be compiled in, and each new one compile again
        for p, w in zip(params, old, strict=True):
            p.sub_(w * fraction)
        return
    kinds = kinds_of(params) if mode == "fused" else []
    if any(type(p).__name__ == "DTensor" for p in kinds):  # FSDP2's shards have no fused SGD, their local parts have
        params, old = ([getattr(t, "to_local", lambda t=t: t)() for t in column] for column in (params, old))
    if any(p.is_cpu for p in kinds):
        if found_inf is not None and found_inf.item():
            return
        found_inf = None
        # torch's fused SGD is wrong on 16-bit weights of a CPU. On the others it does foreach's arithmetic in one call,
        # where foreach on a CPU is a loop of calls.
        if any(p.dtype not in (torch.float32, torch.float64) for p in kinds):
            mode = "foreach"
    if mode == "fused":
        # A fused SGD step with w_old for a gradient and d for a learning rate: the only stock kernel that also takes
        # found_inf and a learning rate on the device, so nothing waits and a CUDA graph can hold it.
        grouped: list[Any] = [[params, old]]
        if len(kinds) > 1:
            pairs = Optimizer._group_tensors_by_device_and_dtype([params, old])  # type: ignore[list-item]
            grouped = [lists for lists, _ in pairs.values()]
        for ps, olds in grouped:
            device = ps[0].device
            torch._fused_sgd_(
                ps,
                olds,
                [],
                weight_decay=0.0,
                momentum=0.0,
                lr=fraction.to(device) if isinstance(fraction, Tensor) else fraction,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
                grad_scale=None,
                found_inf=None if found_inf is None else found_inf.to(device),
            )
    elif mode == "foreach":
        if isinstance(fraction, Tensor):
            torch._foreach_sub_(params, torch._foreach_mul(old, fraction))
        else:
            torch._foreach_add_(params, old, alpha=-fraction)
    else:
        for p, w in zip(params, old, strict=True):
            if isinstance(fraction, Tensor):
                p.addcmul_(w.clone() if w is p else w, fraction.to(p.device), value=-1)
            else:
                p.add_(w, alpha=-fraction)


def masked(old: list[Tensor], direction: list[Tensor]) -> list[Tensor]:
    """Return ``w_old`` where ``u * w_old >= 0`` and 0 elsewhere.

    The sign of ``w`` stands for ``w``: a product of two small numbers would underflow to 0, which counts as agreement.
    """
    kept = []
    for w, u in zip(old, direction, strict=True):
        complex_valued = w.is_complex()
        if complex_valued:
            w, u = torch.view_as_real(w), torch.view_as_real(u)
        keep = w.sign().mul_(u).ge_(0).mul_(w)  # one new tensor, not five
        kept.append(torch.view_as_complex(keep) if complex_valued else keep)
    return kept


def _add_compensated(params: list[Tensor], updates: list[Tensor], residuals: list[Tensor]) -> None:
    """Add updates to weights by Kahan's sum: what rounding cuts off is kept in ``residuals`` for the next step."""
    torch._foreach_add_(residuals, updates)
    lost = [p.clone() for p in params]
    torch._foreach_add_(params, residuals)
    torch._foreach_sub_(lost, params)
    torch._foreach_add_(residuals, lost)


def add_penalty(
    grads: list[Tensor], params: list[Tensor], group: dict[str, Any], grad_scale: Tensor | None
) -> list[Tensor]:
    """Return ``g + lam * w`` for gradients that may still carry GradScaler's scale, and the sign of ``maximize``."""
    lam = group["weight_decay"]
    if is_zero(lam):
        return grads
    alpha = lam * (1.0 if grad_scale is None else grad_scale.item())
    return list(torch._foreach_add(grads, params, alpha=-alpha if group["maximize"] else alpha))
