r"""SGD with momentum and every decay style.

``m <- mu * m + (1 - dampening) * g;  w <- w - lr_t * m - d_t * w_old``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, _device_dtype_check_for_fused, _use_grad_for_differentiable
from torch.optim.sgd import sgd

from lightning_wd.optimizers.compiled import run_pass, sgd_pass
from lightning_wd.optimizers.groups import DecayGroups, all_l2
from lightning_wd.optimizers.kernels import Part, add_penalty, choose_kernels, is_zero, step_with_decay

__all__ = ["SGDW", "SGDStep"]

_Work = tuple[dict[str, Any], list[list[Any]], bool, list[Part]]


class SGDStep(DecayGroups):
    """The step of SGD in every decay style, on torch's own kernels; mixed into torch's SGD."""

    state_keys: ClassVar[frozenset[str] | None] = frozenset(("momentum_buffer", "kahan"))

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step; the closure, if any, runs first, on the weights as they are.

        Args:
            closure: evaluates the model again and returns the loss.

        Raises:
            ConfigError: ``fused=True`` on a parameter whose layout differs from its gradient's.
        """
        loss = self._run_closure(closure)
        self._warn_lost_decay()
        self._initialising = self._initialises_state()
        # All groups are checked before any is changed.
        for group, columns, sparse, parts in [self._collect(*item) for item in enumerate(self.param_groups)]:
            for part in parts:
                self._update(group, part.take(columns), sparse, part)
        return loss

    def _collect(self, index: int, group: dict[str, Any]) -> _Work:
        """Return the group, its columns (in the order of `_init_group`), whether one is sparse, and its parts."""
        params: list[Tensor] = []
        grads: list[Tensor] = []
        buffers: list[Tensor | None] = []
        sparse = self._init_group(group, params, grads, buffers)
        # A buffer that does not exist yet will take its gradient's layout.
        held = [g if b is None else b for b, g in zip(buffers, grads, strict=True)] if buffers else []
        parts = choose_kernels(
            group,
            params,
            [grads, held],
            index=index,
            sparse=sparse,
            compile=self._compile,
            flawed=_unfused if not group["fused"] else _skipped,
        )
        return group, [params, grads, buffers], sparse, _split_first_steps(parts, buffers)

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        momentum_buffer_list: list[Tensor | None],
    ) -> bool:
        """Collect a group's tensors, as torch's method of this name does; return whether a gradient is sparse."""
        sparse = False
        for p in group["params"]:
            if p.grad is None:
                continue
            if group["fused"]:
                _device_dtype_check_for_fused(p)
            params.append(p)
            grads.append(p.grad)
            sparse |= p.grad.is_sparse
            if group["momentum"] != 0:
                momentum_buffer_list.append(self.state[p].get("momentum_buffer"))
            if group["kahan"] and "kahan" not in self.state[p]:
                self.state[p]["kahan"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return sparse

    def _update(self, group: dict[str, Any], columns: list[list[Any]], sparse: bool, part: Part) -> None:
        """Run torch's kernel on some tensors of a group, and the decay before or after it."""
        params, grads, buffers = columns
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if not params or (buffers and buffers[0] is None and found_inf is not None and found_inf.item()):
            return  # on a first step torch's fused kernel would skip, and leave the buffers it made uninitialised
        if part.compiled:
            self._update_compiled(group, columns)
            return
        coefficient: Any = group["weight_decay"] if group["style"] == "l2" else 0.0
        if group["kahan"] and not is_zero(coefficient):
            # The kernel will see a stand-in for the weights, so the penalty joins the gradient here.
            grads, coefficient = add_penalty(grads, params, group, grad_scale), 0.0
        # torch's foreach kernel writes Nesterov's u over the gradients; a fused one only takes GradScaler's scale off.
        seen = [g.clone() for g in grads] if group["cautious"] and group["nesterov"] and not part.fused else grads
        momentum, sign = group["momentum"], -1 if group["maximize"] else 1
        new = [i for i, buffer in enumerate(buffers) if buffer is None]  # the kernel makes them

        def kernel(targets: list[Tensor]) -> None:
            sgd(
                targets,
                grads,
                buffers,
                has_sparse_grad=sparse,
                foreach=part.foreach,
                fused=part.fused,
                grad_scale=grad_scale,
                found_inf=found_inf,
                weight_decay=coefficient,
                momentum=momentum,
                lr=group["lr"],
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
            )

        def direction() -> list[Tensor]:
            if group["nesterov"]:
                return [sign * g + momentum * b for g, b in zip(seen, buffers, strict=True)]
            us = buffers if momentum else [sign * g for g in seen]
            return [u.to_dense() if u.is_sparse else u for u in us]

        step_with_decay(
            kernel,
            params,
            part,
            fraction=self._fraction(group),
            direction=direction,
            cautious=group["cautious"],
            differentiable=group["differentiable"],
            found_inf=found_inf,
            residuals=[self.state[p]["kahan"] for p in params] if group["kahan"] else None,
        )
        for i in new:
            self.state[params[i]]["momentum_buffer"] = buffers[i]

    def _update_compiled(self, group: dict[str, Any], columns: list[list[Any]]) -> None:
        """Run the compiled pass on some tensors of a group that have their momentum buffers."""
        penalty = group["style"] == "l2"
        numbers = (group["lr"], group["momentum"], 1 - group["dampening"], self._fraction(group))
        run_pass(
            sgd_pass,
            columns,
            torch.zeros(len(columns[0]), 0),
            (*numbers, group["weight_decay"] if penalty else 0.0),
            momentum=group["momentum"] != 0,
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            penalty=penalty,
            cautious=group["cautious"],
        )


def _skipped(p: Tensor) -> bool:
    """Whether torch's fused SGD (2.13, CPU) leaves such weights as they are, the last few elements apart."""
    return p.dtype in (torch.float16, torch.bfloat16) and p.is_cpu


def _unfused(p: Tensor) -> bool:
    """Whether such weights take another kernel: FSDP2's shards have no fused SGD; torch says so where it is asked."""
    return _skipped(p) or type(p).__name__ == "DTensor"


def _split_first_steps(parts: list[Part], buffers: list[Tensor | None]) -> list[Part]:
    """Split parts into tensors with and without a momentum buffer: fused and compiled steps take all or none."""
    if not buffers:
        return parts
    split = []
    for part in parts:
        indices = range(len(buffers)) if part.indices is None else part.indices
        new = [i for i in indices if buffers[i] is None] if part.fused or part.compiled else []
        if not new or (part.fused and len(new) == len(indices)):
            split.append(part)
            continue
        old = [i for i in indices if buffers[i] is not None]
        # The compiled pass has no first step.
        split.append(Part(new, None, None) if part.compiled else part._replace(indices=new))
        if old:
            split.append(part._replace(indices=old))
    return split


class SGDW(SGDStep, torch.optim.SGD):
    r"""SGD with decoupled weight decay in the style you name; without decay, torch's SGD bit for bit.

    .. math::
        m_t = \mu m_{t-1} + (1 - \tau) g_t, \qquad w_t = w_{t-1} - \eta_t m_t - d_t w_{t-1}

    ============= ========================= =====================================================
    style         :math:`d_t`               multiplied by the learning rate?
    ============= ========================= =====================================================
    decoupled     ``lr_t * lam``            yes
    independent   ``lr_t / base_lr * lam``  only by the schedule; Loshchilov & Hutter
    constant      ``lam``                   no, not even by the schedule; Hanson & Pratt
    corrected     ``lr_t^2 / base_lr * lam``  yes, and once more by the schedule; SGDC
    none          0
    l2            none: ``g <- g + lam * w``  torch's SGD: the penalty goes through the momentum buffer
    ============= ========================= =====================================================

    The learning rate stays outside the momentum buffer, as in torch. The paper's Algorithm 1 has it inside
    (``m <- mu*m + lr_t*g;  w <- w - m - d_t*w``); the two agree at a constant learning rate only. Nesterov's variant,
    which the paper does not have, takes ``u = g + mu * m`` as torch does.

    A constructor call in which every group has style ``l2`` gives an :class:`SGDL2`.

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts.
        lr: learning rate >= 0; also the group's ``base_lr`` unless that key is given.
        momentum: mu in [0, 1); 0 keeps no buffer.
        dampening: tau; the buffer takes ``(1 - tau) * g``.
        weight_decay: ``lam >= 0`` in the unit of ``style``. Default 0; styles ``independent`` and ``constant`` need an
            amount of their own.
        nesterov: use Nesterov's momentum.
        style: decay style of the groups that do not name their own.
        cautious: decay a coordinate only where ``u * w >= 0``.
        kahan: keep in one more buffer per weight what rounding cuts off each update: in bfloat16 and float16 a decay
            below the weight's rounding step is otherwise lost.
        maximize: maximize the objective.
        foreach: as in torch.optim; chooses the kernel in every style.
        differentiable: let autograd record the step.
        fused: True, False, or None for the fused kernel wherever it is right.
        compile: run one compiled pass that reads and writes each byte once.

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

    def __new__(cls, params: Any = None, *args: Any, style: str = "decoupled", **settings: Any) -> Any:
        if cls is SGDW and all_l2(params, style):
            from lightning_wd.optimizers.l2 import SGDL2  # it imports this module

            return SGDL2(params, *args, **settings)
        return super().__new__(cls)

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
        cautious: bool = False,
        kahan: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        compile: bool = False,
    ) -> None:
        amount = self._begin(weight_decay=weight_decay, compile=compile, style=style, cautious=cautious, kahan=kahan)
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            amount,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
