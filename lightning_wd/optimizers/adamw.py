r"""AdamW with every decay style.

``m <- b1*m + (1-b1)*g;  v <- b2*v + (1-b2)*g^2;  w <- w - lr_t * m_hat / (sqrt(v_hat) + eps) - d_t * w_old``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.optimizer import (
    ParamsT,
    _device_dtype_check_for_fused,
    _get_scalar_dtype,
    _use_grad_for_differentiable,
)

from lightning_wd.decay import kernel_coefficient
from lightning_wd.optimizers.compiled import adam_pass, run_pass
from lightning_wd.optimizers.groups import DecayGroups, all_l2
from lightning_wd.optimizers.kernels import Part, add_penalty, choose_kernels, kinds_in, prefers_fused, step_with_decay

__all__ = ["AdamStep", "AdamW", "in_kernel"]

_Work = tuple[dict[str, Any], list[list[Tensor]], bool, list[Part]]


class AdamStep(DecayGroups):
    """The step of Adam in every decay style, on torch's own kernels; mixed into torch's Adam and AdamW."""

    state_keys: ClassVar[frozenset[str] | None] = frozenset(
        ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "kahan")
    )
    plain_style: ClassVar[str | None] = None  # Adam's and AdamW's states before torch 2.7 look the same

    def _begin(self, *, weight_decay: Any, compile: bool, **settings: Any) -> Any:
        # torch < 2.7 has no such key; with it, groups and states are alike, and later versions can tell ours apart.
        settings["decoupled_weight_decay"] = settings["style"] != "l2"
        return super()._begin(weight_decay=weight_decay, compile=compile, **settings)

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step; the closure, if any, runs first, on the weights as they are.

        Args:
            closure: evaluates the model again and returns the loss.

        Raises:
            ConfigError: ``fused=True`` on a parameter whose layout differs from its gradient's.
        """
        check = getattr(self, "_accelerator_graph_capture_health_check", None)  # its name since torch 2.9
        (check or self._cuda_graph_capture_health_check)()
        loss = self._run_closure(closure)
        self._warn_lost_decay()
        self._initialising = self._initialises_state()
        # All groups are checked before any is changed.
        for group, columns, has_complex, parts in [self._collect(*item) for item in enumerate(self.param_groups)]:
            for part in parts:
                self._update(group, part.take(columns), has_complex, part)
        return loss

    def _collect(self, index: int, group: dict[str, Any]) -> _Work:
        """Return the group, its columns (in the order of `_init_group`), whether one is complex, and its parts."""
        columns: list[list[Tensor]] = [[], [], [], [], [], []]
        has_complex = self._init_group(group, *columns)
        parts = choose_kernels(group, columns[0], columns[1:5], index=index, compile=self._compile)
        return group, columns, has_complex, parts

    def _init_group(
        self,
        group: dict[str, Any],
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        state_steps: list[Tensor],
    ) -> bool:
        """Collect a group's tensors and make missing state, as torch's method of this name (and order) does."""
        fused: bool | None = None  # only asked for where a step count is to be made or moved
        has_complex = False
        for p in group["params"]:
            grad = p.grad
            if grad is None:
                continue
            if grad.is_sparse:
                raise RuntimeError("Adam does not support sparse gradients, please consider SparseAdam instead")
            has_complex |= p.is_complex()
            state = self.state[p]
            if fused is None and (not state or state["step"].device != p.device):
                fused = prefers_fused(group, kinds_in([q for q in group["params"] if q.grad is not None]))
            if not state:
                if group["fused"]:
                    _device_dtype_check_for_fused(p)
                # Fused and captured steps count on the device; the others on the CPU, which is cheaper to read.
                on_device = group["capturable"] or fused
                dtype = _get_scalar_dtype(is_fused=fused)  # type: ignore[no-untyped-call]
                state["step"] = torch.zeros((), dtype=dtype, device=p.device if on_device else "cpu")
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                if group["amsgrad"]:
                    state["max_exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            elif fused and state["step"].device != p.device:  # a state that a loop or foreach kernel left
                state["step"] = state["step"].to(device=p.device, dtype=torch.float32)
            if group["kahan"] and "kahan" not in state:
                state["kahan"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            if group["differentiable"] and state["step"].requires_grad:
                raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
            if group["foreach"] and isinstance(group["lr"], Tensor) and not group["capturable"]:
                raise RuntimeError("lr as a Tensor is not supported for capturable=False and foreach=True")
            params_with_grad.append(p)
            grads.append(grad)
            exp_avgs.append(state["exp_avg"])
            exp_avg_sqs.append(state["exp_avg_sq"])
            if group["amsgrad"]:
                max_exp_avg_sqs.append(state["max_exp_avg_sq"])
            state_steps.append(state["step"])
        return has_complex

    def _update(self, group: dict[str, Any], columns: list[list[Tensor]], has_complex: bool, part: Part) -> None:
        """Run torch's kernel on some tensors of a group, with the decay inside it where it can be."""
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps = columns
        if not params:
            return
        if part.compiled:
            self._update_compiled(group, columns)
            return
        coefficient, functional = in_kernel(group)
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if group["kahan"] and group["style"] == "l2":
            # The kernel will see a stand-in for the weights, so the penalty joins the gradient here.
            grads, coefficient = add_penalty(grads, params, group, grad_scale), 0.0

        beta1, beta2 = group["betas"]
        lr, decay = group["lr"], 0.0 if coefficient is None else coefficient
        # Then torch's functional form would only sort the tensors, by more Python than all of this class takes.
        direct = part.alike and grad_scale is None and found_inf is None and not group["differentiable"]
        direct = direct and type(lr) is type(beta1) is type(beta2) is type(decay) is float

        def kernel(targets: list[Tensor]) -> None:
            settings = {"amsgrad": group["amsgrad"], "eps": group["eps"], "maximize": group["maximize"]}
            numbers = {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": decay}
            tensors = (targets, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps)
            if direct:
                fused: Any = torch._fused_adam_ if functional is adam else torch._fused_adamw_
                torch._foreach_add_(steps, 1)
                fused(*tensors, **settings, **numbers)
                return
            functional(
                *tensors,
                **settings,
                **numbers,
                foreach=part.foreach,
                capturable=group["capturable"],
                differentiable=group["differentiable"],
                fused=part.fused,
                grad_scale=grad_scale,
                found_inf=found_inf,
                has_complex=has_complex,
            )

        step_with_decay(
            kernel,
            params,
            part,
            fraction=self._fraction(group) if coefficient is None else 0.0,
            direction=lambda: exp_avgs,  # m_hat / (sqrt(v_hat) + eps) has the sign of the new m
            cautious=group["cautious"],
            differentiable=group["differentiable"],
            found_inf=found_inf,
            residuals=[self.state[p]["kahan"] for p in params] if group["kahan"] else None,
        )

    def _update_compiled(self, group: dict[str, Any], columns: list[list[Tensor]]) -> None:
        """Run the compiled pass on some tensors of a group."""
        *tensors, steps = columns
        beta1, beta2 = group["betas"]
        penalty = group["style"] == "l2"
        # In float64, which a tensor of bias corrections costs nothing: 1 - 0.999^t loses four digits in float32.
        count = torch.stack(steps).double() + 1
        rates = torch.stack([group["lr"] / (1 - beta1**count), (1 - beta2**count).sqrt()], dim=1)
        fraction = self._fraction(group)
        run_pass(
            adam_pass,
            tensors,
            rates,
            (1 - beta1, beta2, 1 - beta2, group["eps"], fraction, group["weight_decay"] if penalty else 0.0),
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
            penalty=penalty,
            cautious=group["cautious"],
        )
        torch._foreach_add_(steps, 1)


def in_kernel(group: dict[str, Any]) -> tuple[Any, Callable[..., None]]:
    """Return the coefficient that torch's kernel decays with, None if the decay goes around it, and which kernel."""
    style, lam = group["style"], group["weight_decay"]
    if style == "l2":
        return lam, adam
    if style == "constant" or group["cautious"] or group["kahan"]:
        return None, adamw
    coefficient = kernel_coefficient(style, weight_decay=lam, lr=group["lr"], base_lr=group["base_lr"])
    # A coefficient on the device would have to be read, which waits, and which no CUDA graph can hold.
    outside = isinstance(coefficient, Tensor) and not group["differentiable"]
    return None if outside else coefficient, adamw


class AdamW(AdamStep, torch.optim.AdamW):
    r"""Adam with decoupled weight decay in the style you name; in its defaults, torch's AdamW bit for bit.

    .. math::
        w_t = w_{t-1} - \eta_t \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon} - d_t w_{t-1}

    ============= ========================= =====================================================
    style         :math:`d_t`               multiplied by the learning rate?
    ============= ========================= =====================================================
    decoupled     ``lr_t * lam``            yes; torch.optim.AdamW
    independent   ``lr_t / base_lr * lam``  only by the schedule; Loshchilov & Hutter
    constant      ``lam``                   no, not even by the schedule
    corrected     ``lr_t^2 / base_lr * lam``  yes, and once more by the schedule; AdamC
    none          0
    l2            none: ``g <- g + lam * w``  Adam with an L2 penalty, which Adam rescales per coordinate
    ============= ========================= =====================================================

    A constructor call in which every group has style ``l2`` gives an :class:`AdamL2`, which is a torch.optim.Adam and
    no AdamW.

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts.
        lr: learning rate >= 0; also the group's ``base_lr`` unless that key is given.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: ``lam >= 0`` in the unit of ``style``. Default 1e-2; styles ``independent`` and ``constant`` need
            an amount of their own.
        amsgrad: keep the maximum of the second moment.
        style: decay style of the groups that do not name their own.
        cautious: decay a coordinate only where ``u * w >= 0``.
        kahan: keep in one more buffer per weight what rounding cuts off each update: in bfloat16 and float16 a decay
            below the weight's rounding step is otherwise lost.
        maximize: maximize the objective.
        foreach: as in torch.optim; chooses the kernel in every style.
        capturable: safe to capture in a CUDA graph.
        differentiable: let autograd record the step.
        fused: True, False, or None for the fused kernel wherever it is right.
        compile: run one compiled pass that reads and writes each byte once.

    Raises:
        ConfigError: an unknown style or group key, a value out of range, or a missing amount.
        ValueError: torch's own checks of lr, betas and eps.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = AdamW([weight], lr=0.01, weight_decay=1e-3, style="independent")
        >>> weight.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> weight.detach()
        tensor([ 0.9990, -1.9980])

    References:
        Loshchilov & Hutter, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101;
        Defazio, Why Gradients Rapidly Increase Near the End of Training, https://arxiv.org/abs/2506.02285;
        Cautious Weight Decay, https://arxiv.org/abs/2510.12402.
    """

    default_weight_decay: ClassVar[float] = 1e-2

    def __new__(cls, params: Any = None, *args: Any, style: str = "decoupled", **settings: Any) -> Any:
        if cls is AdamW and all_l2(params, style):
            from lightning_wd.optimizers.l2 import AdamL2  # it imports this module

            return AdamL2(params, *args, **settings)
        return super().__new__(cls)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | None = None,
        amsgrad: bool = False,
        *,
        style: str = "decoupled",
        cautious: bool = False,
        kahan: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        compile: bool = False,
    ) -> None:
        amount = self._begin(weight_decay=weight_decay, compile=compile, style=style, cautious=cautious, kahan=kahan)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            amount,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
