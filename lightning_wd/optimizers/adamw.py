r"""AdamW, and Adam with an L2 penalty: one step in every decay style.

``m <- b1*m + (1-b1)*g;  v <- b2*v + (1-b2)*g^2;  w <- w - lr_t * m_hat / (sqrt(v_hat) + eps) - d_t * w_old``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from lightning_wd._private import (
    device_dtype_check_for_fused,
    fused_adam_,
    fused_adamw_,
    get_scalar_dtype,
)
from lightning_wd.optimizers.compiled import kinds_of
from lightning_wd.optimizers.formula import ADAM, Flags
from lightning_wd.optimizers.kernel_step import KernelStep
from lightning_wd.optimizers.kernels import (
    Part,
    Work,
    add_penalty,
    count_up,
    distances,
    is_zero,
    prefers_fused,
    pulls,
    step_with_decay,
)
from lightning_wd.optimizers.only_l2 import OnlyL2, without_style
from lightning_wd.styles import kernel_coefficient

__all__ = ["AdamL2", "AdamStep", "AdamW", "in_kernel"]


class AdamStep(KernelStep):
    """The step of Adam in every decay style, on torch's own kernels; mixed into torch's Adam and AdamW."""

    default_weight_decay: ClassVar[float] = 1e-2
    state_keys: ClassVar[frozenset[str] | None] = frozenset(
        "step exp_avg exp_avg_sq max_exp_avg_sq kahan anchor radius".split()
    )
    formula = ADAM
    plain_style: ClassVar[str | None] = None  # Adam's and AdamW's states before torch 2.7 look the same

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
        cautious_wd: bool = False,
        toward: str = "zero",
        anchor_dtype: str | torch.dtype | None = None,
        kahan: bool | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        compile: bool | None = None,
    ) -> None:
        ours = {"style": style, "cautious_wd": cautious_wd, "toward": toward, "anchor_dtype": anchor_dtype}
        ours |= {"kahan": kahan, "decoupled_weight_decay": style != "l2"}
        amount = self._begin(weight_decay=weight_decay, compile=compile, **ours)
        init: Any = super().__init__  # of torch's Adam or AdamW
        flags = {"maximize": maximize, "foreach": foreach, "differentiable": differentiable, "fused": fused}
        init(params, lr, betas, eps, amount, amsgrad, capturable=capturable, **flags)

    def _collect(self, index: int, group: dict[str, Any]) -> Work:
        columns: list[list[Tensor]] = [[], [], [], [], [], []]
        has_complex = self._init_group(group, *columns)
        parts, own = self._parts(index, group, columns[0], columns[1:5])
        return group, [*columns, *own], has_complex, parts

    def _init_group(self, group: dict[str, Any], *columns: list[Tensor]) -> bool:
        """Collect a group's tensors and make missing state, as torch's method of this name does, in its order."""
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps = columns
        fused: bool | None = None  # looked up only when a step count must be made or moved
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
                fused = prefers_fused(group, kinds_of([q for q in group["params"] if q.grad is not None]))
            if not state:
                if group["fused"]:
                    device_dtype_check_for_fused(p)
                # Fused and captured steps count on the device; others on the CPU, where reading is cheaper.
                on_device = group["capturable"] or fused
                dtype = get_scalar_dtype(is_fused=fused)
                state["step"] = torch.zeros((), dtype=dtype, device=p.device if on_device else "cpu")
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                if group["amsgrad"]:
                    state["max_exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            elif fused and state["step"].device != p.device:  # left by a loop or foreach kernel
                state["step"] = state["step"].to(device=p.device, dtype=torch.float32)
            if group["differentiable"] and state["step"].requires_grad:
                raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
            if group["foreach"] and isinstance(group["lr"], Tensor) and not group["capturable"]:
                raise RuntimeError("lr as a Tensor is not supported for capturable=False and foreach=True")
            params.append(p)
            grads.append(grad)
            exp_avgs.append(state["exp_avg"])
            exp_avg_sqs.append(state["exp_avg_sq"])
            if group["amsgrad"]:
                max_exp_avg_sqs.append(state["max_exp_avg_sq"])
            steps.append(state["step"])
        return has_complex

    def _update(
        self,
        group: dict[str, Any],
        columns: list[list[Tensor]],
        has_complex: bool,
        part: Part,
        state: Mapping[Tensor, Any],
    ) -> None:
        """Run torch's kernel on some tensors of a group, with the decay inside the kernel where possible."""
        params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, *_ = columns
        coefficient, functional = in_kernel(group)
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if group["style"] == "l2" and (group["kahan"] or pulls(group)):
            # The kernel knows no anchors, and gets zeros in place of the weights where their updates are summed.
            grads, coefficient = add_penalty(grads, distances(params, group, state), group, grad_scale), 0.0

        beta1, beta2 = group["betas"]
        lr, decay = group["lr"], 0.0 if coefficient is None else coefficient
        # torch's functional form would only sort the tensors, with more Python than this whole class.
        direct = part.alike and grad_scale is None and found_inf is None and not group["differentiable"]
        direct = direct and type(lr) is type(beta1) is type(beta2) is type(decay) is float
        direct = direct and None not in (fused_adam_, fused_adamw_)

        settings = {"amsgrad": group["amsgrad"], "eps": group["eps"], "maximize": group["maximize"]}
        settings |= {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": decay}
        chosen = {"foreach": part.foreach, "fused": part.fused, "grad_scale": grad_scale, "found_inf": found_inf}
        flags = {"capturable": group["capturable"], "differentiable": group["differentiable"]}

        def kernel(targets: list[Tensor]) -> None:
            tensors = (targets, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps)
            if direct:
                fused: Any = fused_adam_ if functional is adam else fused_adamw_
                count_up(steps)
                fused(*tensors, **settings)
            else:
                functional(*tensors, **settings, **chosen, **flags, has_complex=has_complex)

        step_with_decay(
            kernel,
            params,
            part,
            group,
            state,
            fraction=self._fraction(group) if coefficient is None else 0.0,
            direction=lambda: exp_avgs,  # m_hat / (sqrt(v_hat) + eps) has the sign of the new m
            found_inf=found_inf,
        )

    def _in_kernel(self, group: dict[str, Any]) -> bool:
        if group["style"] == "l2":
            return not pulls(group)
        return group["style"] != "hyperball" and (is_zero(group["weight_decay"]) or in_kernel(group)[0] is not None)

    def _flags(self, group: dict[str, Any], turning: bool) -> Flags:
        return super()._flags(group, turning) | ({"amsgrad"} if group["amsgrad"] else set())

    def _update_compiled(self, group: dict[str, Any], columns: list[list[Tensor]], part: Part) -> None:
        *tensors, steps, anchors, radii = columns
        beta1, beta2 = group["betas"]
        # In float64, since 1 - 0.999^t loses four digits in float32.
        count = torch.stack(steps).double() + 1
        rows = {"size": group["lr"] / (1 - beta1**count), "root": (1 - beta2**count).rsqrt()}
        named = dict(zip(("w", "g", "m", "v", "top", "anchor", "radius"), [*tensors, anchors, radii], strict=True))
        self._run_pass(group, part, named, rows, c1=1 - beta1, b2=beta2, c2=1 - beta2, eps=group["eps"])
        count_up(steps)


def in_kernel(group: dict[str, Any]) -> tuple[Any, Callable[..., None]]:
    """Return the coefficient for torch's kernel (None: the decay is done outside it), and the kernel."""
    style, lam = group["style"], group["weight_decay"]
    if style == "l2":
        return lam, adam
    if style == "constant" or group["cautious_wd"] or group["kahan"] or pulls(group):
        return None, adamw
    coefficient = kernel_coefficient(style, weight_decay=lam, lr=group["lr"], base_lr=group["base_lr"])
    # Reading a coefficient from the device would wait, and a CUDA graph cannot capture it.
    outside = isinstance(coefficient, Tensor) and not group["differentiable"]
    return None if outside else coefficient, adamw


class AdamL2(OnlyL2, AdamStep, torch.optim.Adam):
    r"""torch's Adam, whose ``weight_decay`` is an L2 penalty ``lam/2 * ||w||^2`` added to the loss.

    .. math::
        g_t \leftarrow g_t + \lambda w_{t-1}, \qquad
        w_t = w_{t-1} - \eta_t \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts.
        weight_decay: ``lam >= 0``; default 1e-2, as when ``AdamW`` is called with ``style="l2"``.
        others: as in :class:`~lightning_wd.optimizers.adamw.AdamW`, without ``style``.

    Raises:
        ConfigError: a group of another style, an unknown key, or a value out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = AdamL2([weight], lr=0.01, weight_decay=1e-3)
        >>> weight.grad = torch.zeros(2)
        >>> optimizer.step()  # about lr * sign(w), whatever lam is: Adam normalizes it away
        >>> weight.detach()
        tensor([ 0.9900, -1.9900])

    References:
        Kingma & Ba, Adam, https://arxiv.org/abs/1412.6980;
        Loshchilov & Hutter, Decoupled Weight Decay Regularization, Alg. 2, pink, https://arxiv.org/abs/1711.05101.
    """

    __signature__ = without_style(AdamStep)


class AdamW(AdamStep, torch.optim.AdamW):
    r"""Adam with decoupled weight decay in the style you name; by default torch's AdamW bit for bit.

    The whole step of a weight w with gradient g, at step t = 1, 2, ...::

        g = -g if maximize else g
        g = g + lam * w if style == "l2" else g
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**t)
        v_hat = v / (1 - b2**t)  # amsgrad: the largest v so far
        u = m_hat / (sqrt(v_hat) + eps)
        w = w - lr_t * u - d_t * w  # cautious_wd: the last term only where u * w >= 0

    With ``toward``, ``w - w*`` stands in place of ``w`` in the decay and in the penalty. In style ``hyperball`` a
    tensor W of two or more dimensions keeps its norm R: ``W = R * N(W - lr_t * R * N(u))``, ``N(x) = x / ||x||``.
    :mod:`lightning_wd.styles` defines ``d_t`` in each style.

    Where every group has style ``l2``, the constructor returns an :class:`AdamL2`: a torch.optim.Adam, not an AdamW.

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts.
        lr: learning rate >= 0; also the group's ``base_lr`` unless that key is given.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: ``lam >= 0`` in the unit of ``style``. Default 1e-2; styles ``independent`` and ``constant`` need
            an amount of their own.
        amsgrad: keep the maximum of the second moment.
        style: decay style of the groups that do not name their own.
        cautious_wd: decay a coordinate only where ``u * w >= 0``.
        toward: what weights decay towards, ``w*``: ``zero``; ``init``, the weights when the optimizer is built (a
            warning says if they change before the first step); or the path of a checkpoint, read as plain data, whose
            weights are found by name. One that it lacks decays towards zero. The anchor ``w*`` is state from the start.
        anchor_dtype: ``bfloat16`` to halve that state; None is the weight's own.
        kahan: keep what rounding loses in one more buffer per weight, so that bfloat16 and float16 weights decay too.
            None: where the decay would otherwise be lost.
        maximize: maximize the objective.
        foreach: as in torch.optim; chooses the kernel in every style.
        capturable: safe to capture in a CUDA graph.
        differentiable: let autograd record the step.
        fused: None: use the fused kernel where it is correct.
        compile: do the step in one compiled pass over memory. None: where torch's own kernel lacks the style, for
            float32 and float64 weights on a CPU, if there is a C++ compiler and a group has 2^18 elements or more.

    Raises:
        ConfigError: an unknown style or group key, a value out of range, a missing amount, a checkpoint that does not
            fit, or a weight of norm 0 on a hyperball.
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
        Cautious Weight Decay, https://arxiv.org/abs/2510.12402;
        Li et al., Explicit Inductive Bias for Transfer Learning (L2-SP), https://arxiv.org/abs/1802.01483;
        Wen et al., hyperball, https://arxiv.org/abs/2606.16899.
    """

    # `--optimizer=AdamW` of a LightningCLI is torch's class: it looks among subclasses whose path is not private.
    __qualname__ = "_AdamW"

    l2_form: ClassVar[Any] = AdamL2


_AdamW = AdamW  # where pickle looks for a class is its __qualname__
