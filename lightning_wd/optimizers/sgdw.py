r"""SGDW, and SGD with an L2 penalty: one step in every decay style.

``m <- mu * m + (1 - dampening) * g;  w <- w - lr_t * m - d_t * w_old``
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from lightning_wd._private import device_dtype_check_for_fused
from lightning_wd.mask.module_tree import is_sharded
from lightning_wd.optimizers.formula import SGD, Flags
from lightning_wd.optimizers.kernel_step import KernelStep
from lightning_wd.optimizers.kernels import Part, Work, add_penalty, distances, is_zero, pulls, step_with_decay
from lightning_wd.optimizers.only_l2 import OnlyL2, without_style

__all__ = ["SGDL2", "SGDW", "SGDStep"]


class SGDStep(KernelStep):
    """The step of SGD in every decay style, on torch's own kernels; mixed into torch's SGD."""

    state_keys: ClassVar[frozenset[str] | None] = frozenset(("momentum_buffer", "kahan", "anchor", "radius"))
    formula = SGD

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | None = None,
        nesterov: bool = False,
        *,
        style: str = "decoupled",
        cautious_wd: bool = False,
        toward: str = "zero",
        anchor_dtype: str | torch.dtype | None = None,
        kahan: bool | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        compile: bool | None = None,
    ) -> None:
        ours = {"style": style, "cautious_wd": cautious_wd, "toward": toward, "anchor_dtype": anchor_dtype}
        amount = self._begin(weight_decay=weight_decay, compile=compile, kahan=kahan, **ours)
        init: Any = super().__init__  # of torch's SGD
        flags = {"maximize": maximize, "foreach": foreach, "differentiable": differentiable, "fused": fused}
        init(params, lr, momentum, dampening, amount, nesterov, **flags)

    def _collect(self, index: int, group: dict[str, Any]) -> Work:
        params = [p for p in group["params"] if p.grad is not None]
        grads: list[Any] = [p.grad for p in params]
        for p in params if group["fused"] else ():
            device_dtype_check_for_fused(p)
        states = [self.state[p] for p in params] if group["momentum"] != 0 else None
        buffers: list[Any] = [state.get("momentum_buffer") for state in states or ()]
        sparse = any(map(attrgetter("is_sparse"), grads))
        new = [buffer is None for buffer in buffers]
        # A new buffer gets its gradient's layout.
        held = [g if is_new else b for b, g, is_new in zip(buffers, grads, new, strict=True)] if any(new) else buffers
        flawed = _unfused if not group["fused"] else _skipped
        parts, own = self._parts(index, group, params, [grads, held], states, sparse=sparse, flawed=flawed)
        return group, [params, grads, buffers, *own], sparse, _split_first_steps(parts, new)

    def _update(
        self, group: dict[str, Any], columns: list[list[Any]], sparse: bool, part: Part, state: Mapping[Tensor, Any]
    ) -> None:
        """Run torch's kernel on some tensors of a group, and the decay before or after it."""
        params, grads, buffers, *_ = columns
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if buffers and buffers[0] is None and found_inf is not None and found_inf.item():
            return  # torch's fused kernel would skip, leaving new buffers uninitialised
        coefficient: Any = group["weight_decay"] if group["style"] == "l2" else 0.0
        if (group["kahan"] or pulls(group)) and not is_zero(coefficient):
            # The kernel knows no anchors, and gets zeros in place of the weights where their updates are summed.
            grads, coefficient = add_penalty(grads, distances(params, group, state), group, grad_scale), 0.0
        # torch's foreach kernel overwrites the gradients with Nesterov's u; the fused one only unscales them.
        seen = [g.clone() for g in grads] if group["cautious_wd"] and group["nesterov"] and not part.fused else grads
        momentum, sign = group["momentum"], -1 if group["maximize"] else 1
        new = [i for i, buffer in enumerate(buffers) if buffer is None]  # the kernel makes them

        settings: dict[str, Any] = {key: group[key] for key in ("lr", "momentum", "dampening", "nesterov", "maximize")}
        settings |= {"foreach": part.foreach, "fused": part.fused, "grad_scale": grad_scale, "found_inf": found_inf}

        def kernel(targets: list[Tensor]) -> None:
            sgd(targets, grads, buffers, weight_decay=coefficient, has_sparse_grad=sparse, **settings)

        def direction() -> list[Tensor]:
            if group["nesterov"]:
                return [sign * g + momentum * b for g, b in zip(seen, buffers, strict=True)]
            us = buffers if momentum else [sign * g for g in seen]
            return [u.to_dense() if u.is_sparse else u for u in us]

        fraction = self._fraction(group)
        step_with_decay(kernel, params, part, group, state, fraction=fraction, direction=direction, found_inf=found_inf)
        for i in new:
            self.state[params[i]]["momentum_buffer"] = buffers[i]

    def _in_kernel(self, group: dict[str, Any]) -> bool:
        if group["style"] == "l2":
            return not pulls(group)
        return group["style"] == "none" or (group["style"] != "hyperball" and is_zero(group["weight_decay"]))

    def _flags(self, group: dict[str, Any], turning: bool) -> Flags:
        own = {"momentum": group["momentum"] != 0, "nesterov": group["nesterov"]}
        return super()._flags(group, turning) | {flag for flag, is_on in own.items() if is_on}

    def _update_compiled(self, group: dict[str, Any], columns: list[list[Any]], part: Part) -> None:
        """Run the compiled pass on some tensors of a group that have their momentum buffers."""
        named = dict(zip(("w", "g", "m", "anchor", "radius"), columns, strict=True))
        self._run_pass(group, part, named, {}, size=group["lr"], mu=group["momentum"], c=1 - group["dampening"])


def _skipped(p: Tensor) -> bool:
    """Whether torch's fused SGD (2.13, CPU) leaves all but the last few elements of such weights unchanged."""
    return p.dtype in (torch.float16, torch.bfloat16) and p.is_cpu


def _unfused(p: Tensor) -> bool:
    """Whether such weights need another kernel: FSDP2's shards have no fused SGD; torch refuses fused=True."""
    return _skipped(p) or is_sharded(p)


def _split_first_steps(parts: list[Part], new: list[bool]) -> list[Part]:
    """Split parts into tensors with and without a momentum buffer: fused and compiled steps take all or none."""
    if not any(new):
        return parts
    split = []
    for part in parts:
        if not (part.fused or part.compiled):
            split.append(part)
            continue
        for half in part.split(new):
            first = half.compiled and new[0 if half.indices is None else half.indices[0]]
            split.append(Part(half.indices, None, None) if first else half)  # the compiled pass has no first step
    return split


class SGDL2(OnlyL2, SGDStep, torch.optim.SGD):
    r"""torch's SGD, whose ``weight_decay`` is an L2 penalty ``lam/2 * ||w||^2`` added to the loss.

    .. math::
        g_t \leftarrow g_t + \lambda w_{t-1}, \qquad m_t = \mu m_{t-1} + (1 - \tau) g_t, \qquad
        w_t = w_{t-1} - \eta_t m_t

    The penalty goes through the momentum buffer, which makes it ``1/(1 - mu)`` times stronger than a decoupled decay
    with the same ``lam``; :func:`lightning_wd.convert` knows (unit ``sgd_l2``).

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts.
        weight_decay: ``lam >= 0``; default 0.
        others: as in :class:`~lightning_wd.optimizers.sgdw.SGDW`, without ``style``.

    Raises:
        ConfigError: a group of another style, an unknown key, or a value out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = SGDL2([weight], lr=0.1, weight_decay=0.5)
        >>> weight.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> weight.detach()
        tensor([ 0.9500, -1.9000])

    References:
        Loshchilov & Hutter, Decoupled Weight Decay Regularization, Alg. 1, pink, https://arxiv.org/abs/1711.05101.
    """

    __signature__ = without_style(SGDStep)


class SGDW(SGDStep, torch.optim.SGD):
    r"""SGD with decoupled weight decay in the style you name; without decay, torch's SGD bit for bit.

    The whole step of a weight w with gradient g::

        g = -g if maximize else g
        g = g + lam * w if style == "l2" else g
        m = mu * m + (1 - dampening) * g  # the first step: m = g
        u = g + mu * m if nesterov else m  # without momentum: g
        w = w - lr_t * u - d_t * w  # cautious_wd: the last term only where u * w >= 0

    ``toward`` and style ``hyperball`` are as in :class:`~lightning_wd.optimizers.adamw.AdamW`.
    :mod:`lightning_wd.styles` defines ``d_t`` in each style.

    The learning rate stays outside the momentum buffer, as in torch. The paper's Algorithm 1 has it inside
    (``m <- mu*m + lr_t*g;  w <- w - m - d_t*w``); the two agree only at a constant learning rate. Nesterov's variant is
    torch's; the paper has none.

    Where every group has style ``l2``, the constructor returns an :class:`SGDL2`.

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts.
        lr: learning rate >= 0; also the group's ``base_lr`` unless that key is given.
        momentum: mu in [0, 1); 0 keeps no buffer.
        dampening: the buffer takes ``(1 - dampening) * g``.
        weight_decay: ``lam >= 0`` in the unit of ``style``. Default 0; styles ``independent`` and ``constant`` need an
            amount of their own.
        nesterov: use Nesterov's momentum.
        style, cautious_wd, toward, anchor_dtype, kahan, maximize, foreach, differentiable, fused, compile: as in
            :class:`~lightning_wd.optimizers.adamw.AdamW`.

    Raises:
        ConfigError: an unknown style or group key, a value out of range, or a missing amount.
        ValueError: torch's own checks of lr and momentum.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = SGDW([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
        >>> weight.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> weight.detach()
        tensor([ 0.9500, -1.9000])

    References:
        Loshchilov & Hutter, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101;
        Hanson & Pratt, Comparing Biases for Minimal Network Construction with Back-Propagation, NeurIPS 1988.
    """

    l2_form: ClassVar[Any] = SGDL2
