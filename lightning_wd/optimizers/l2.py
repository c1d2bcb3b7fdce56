r"""Adam and SGD with an L2 penalty: ``g <- g + lam * w`` before the optimizer sees the gradient.

They are the controls of this package: torch's own optimizers, with the groups, the checked load and the layout check
of the others. Their decay is no decoupled decay; no ``lam`` makes AdamL2 equal an AdamW (1711.05101, Prop. 2).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_wd.optimizers.adamw import AdamStep, AdamW
from lightning_wd.optimizers.sgdw import SGDStep

__all__ = ["SGDL2", "AdamL2"]


class AdamL2(AdamStep, torch.optim.Adam):
    r"""torch's Adam, whose ``weight_decay`` is an L2 penalty ``lam/2 * ||w||^2`` added to the loss.

    .. math::
        g_t \leftarrow g_t + \lambda w_{t-1}, \qquad
        w_t = w_{t-1} - \eta_t \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts.
        weight_decay: ``lam >= 0``; default 1e-2, as when ``AdamW`` is called with ``style="l2"``.
        lr, betas, eps, amsgrad, kahan, maximize, foreach, capturable, differentiable, fused, compile: as in
            :class:`~lightning_wd.optimizers.adamw.AdamW`.

    Raises:
        ConfigError: a group of another style, an unknown key, or a value out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = AdamL2([weight], lr=0.01, weight_decay=1e-3)
        >>> weight.grad = torch.zeros(2)
        >>> optimizer.step()  # about lr * sign(w), whatever lam: Adam takes the coefficient's meaning away
        >>> weight.detach()
        tensor([ 0.9900, -1.9900])

    References:
        Kingma & Ba, Adam, https://arxiv.org/abs/1412.6980;
        Loshchilov & Hutter, Decoupled Weight Decay Regularization, Alg. 2, pink, https://arxiv.org/abs/1711.05101.
    """

    styles: ClassVar[tuple[str, ...]] = ("l2",)
    default_weight_decay: ClassVar[float] = AdamW.default_weight_decay

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | None = None,
        amsgrad: bool = False,
        *,
        cautious: bool = False,
        kahan: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        compile: bool = False,
    ) -> None:
        amount = self._begin(weight_decay=weight_decay, compile=compile, style="l2", cautious=cautious, kahan=kahan)
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


class SGDL2(SGDStep, torch.optim.SGD):
    r"""torch's SGD, whose ``weight_decay`` is an L2 penalty ``lam/2 * ||w||^2`` added to the loss.

    .. math::
        g_t \leftarrow g_t + \lambda w_{t-1}, \qquad m_t = \mu m_{t-1} + (1 - \tau) g_t, \qquad
        w_t = w_{t-1} - \eta_t m_t

    The penalty goes through the momentum buffer, which makes it ``1/(1 - mu)`` times stronger than a decoupled decay
    with the same ``lam``; :func:`lightning_wd.convert` knows (unit ``sgd_l2``).

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts.
        weight_decay: ``lam >= 0``; default 0.
        lr, momentum, dampening, nesterov, kahan, maximize, foreach, differentiable, fused, compile: as in
            :class:`~lightning_wd.optimizers.sgdw.SGDW`.

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

    styles: ClassVar[tuple[str, ...]] = ("l2",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | None = None,
        nesterov: bool = False,
        *,
        cautious: bool = False,
        kahan: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        compile: bool = False,
    ) -> None:
        amount = self._begin(weight_decay=weight_decay, compile=compile, style="l2", cautious=cautious, kahan=kahan)
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
