r"""Muon for the hidden matrices and AdamW for everything else, in one optimizer with every decoupled decay style.

``m <- mu * m + (1 - mu) * g;  w <- w - lr_t * c * NS(m) - d_t * w_old`` for the groups with ``muon=True``, where NS
orthogonalises a matrix by Newton-Schulz iterations and c adjusts the rate to its shape; AdamW's step for the others.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_wd.decay import STYLES
from lightning_wd.errors import ConfigError, explain, nearest
from lightning_wd.optimizers.adamw import AdamStep, in_kernel
from lightning_wd.optimizers.kernels import Part, step_with_decay

__all__ = ["MuonAdamW"]

_ADJUSTMENTS = ("match_rms_adamw", "original")


class MuonAdamW(AdamStep, torch.optim.AdamW):
    r"""torch's Muon on the groups with ``muon=True``, AdamW on the others.

    .. math::
        w_t = w_{t-1} - \eta_t\, c\, \mathrm{NS}(\mu m_t + (1 - \mu) g_t) - d_t w_{t-1}

    with :math:`d_t` as in :class:`~lightning_wd.optimizers.adamw.AdamW`, and in its defaults torch.optim.Muon bit for
    bit. One learning rate serves both halves: by default c is ``0.2 * sqrt(max(rows, columns))``, which gives Muon's
    update the RMS of AdamW's (2502.16982).

    Args:
        params: groups as dicts; those with ``muon=True`` hold matrices only.
        lr: learning rate >= 0 of both halves.
        betas: decay rates of AdamW's two moments, each in [0, 1).
        eps: added to AdamW's denominator, >= 0.
        weight_decay: ``lam >= 0`` in the unit of ``style``. Default 1e-2; ``independent`` and ``constant`` need one.
        style: decay style of the groups that do not name their own; any but ``l2``.
        cautious: decay a coordinate only where ``u * w >= 0``.
        momentum: ``mu`` of Muon, in [0, 1).
        nesterov: look one gradient ahead of the buffer.
        ns_steps: Newton-Schulz iterations.
        adjust_lr_fn: ``match_rms_adamw``, or ``original`` (``c = sqrt(max(1, rows / columns))``).
        foreach, fused: kernel of AdamW's half.

    Raises:
        ConfigError: torch < 2.9, which has no Muon; a parameter in a Muon group that is no matrix; style ``l2``.

    Example:
        >>> weight, bias = torch.nn.Parameter(torch.eye(2)), torch.nn.Parameter(torch.ones(2))
        >>> groups = [{"params": [weight], "muon": True}, {"params": [bias], "weight_decay": 0.0}]
        >>> optimizer = MuonAdamW(groups, lr=0.1, weight_decay=0.5)
        >>> weight.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
        >>> optimizer.step()
        >>> weight.detach()
        tensor([[0.9500, 0.0000],
                [0.0000, 0.9500]])

    References:
        Jordan et al., Muon, https://kellerjordan.github.io/posts/muon/;
        Liu et al., Muon is Scalable for LLM Training, https://arxiv.org/abs/2502.16982.
    """

    default_weight_decay: ClassVar[float] = 1e-2
    styles: ClassVar[tuple[str, ...]] = tuple(style for style in STYLES if style != "l2")
    state_keys: ClassVar[frozenset[str] | None] = frozenset(("step", "exp_avg", "exp_avg_sq", "momentum_buffer"))

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | None = None,
        *,
        style: str = "decoupled",
        cautious: bool = False,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                explain(
                    f"torch {torch.__version__} has no Muon.",
                    valid="torch >= 2.9",
                    fix="pip install -U torch, or write optimizer=adamw",
                )
            )
        if adjust_lr_fn not in _ADJUSTMENTS:
            close = nearest(adjust_lr_fn, _ADJUSTMENTS)
            raise ConfigError(
                explain(
                    f"adjust_lr_fn {adjust_lr_fn!r} is unknown.",
                    valid=_ADJUSTMENTS,
                    nearest=close,
                    fix=f"write adjust_lr_fn={close or _ADJUSTMENTS[0]}",
                )
            )
        amount = self._begin(
            weight_decay=weight_decay,
            compile=False,
            style=style,
            cautious=cautious,
            kahan=False,
            muon=False,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=int(ns_steps),
            adjust_lr_fn=adjust_lr_fn,
        )
        super().__init__(params, lr, betas, eps, amount, foreach=foreach, fused=fused)

    def _complete(self, group: dict[str, Any], label: str) -> None:
        super()._complete(group, label)
        if not group.get("muon"):
            return
        members = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
        for member in members:
            name, p = member if isinstance(member, tuple) else ("a parameter", member)
            if p.ndim != 2 or p.is_complex():
                raise ConfigError(
                    explain(
                        f"{name} of {label} is no real matrix, and Muon orthogonalises matrices.",
                        found=f"shape {tuple(p.shape)}, {p.dtype}",
                        fix="put it into a group without muon=True, which AdamW updates",
                    )
                )

    def _collect(self, index: int, group: dict[str, Any]) -> Any:
        if not group["muon"]:
            return super()._collect(index, group)
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.tensor(0.0)  # torch's Adam expects one in every state it loads
                self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        columns = [params, [p.grad for p in params], [self.state[p]["momentum_buffer"] for p in params], [], [], []]
        return group, columns, False, [Part(None, None, group["foreach"])]

    def _update(self, group: dict[str, Any], columns: list[list[Tensor]], has_complex: bool, part: Part) -> None:
        if not group["muon"]:
            super()._update(group, columns, has_complex, part)
            return
        params, grads, buffers = columns[:3]
        if not params:
            return
        from torch.optim._muon import muon

        coefficient, _ = in_kernel(group)
        moved: list[Tensor] = []

        def kernel(targets: list[Tensor]) -> None:
            before = [p.clone() for p in targets] if group["cautious"] else []
            muon(
                targets,
                grads,
                buffers,
                lr=group["lr"],
                weight_decay=0.0 if coefficient is None else coefficient,
                momentum=group["momentum"],
                nesterov=group["nesterov"],
                ns_coefficients=(3.4445, -4.775, 2.0315),  # those of the quintic iteration, torch's default
                eps=1e-7,
                ns_steps=group["ns_steps"],
                adjust_lr_fn=group["adjust_lr_fn"],
                has_complex=False,
            )
            for p in params:
                self.state[p]["step"] += 1
            moved.extend(old - new for old, new in zip(before, targets, strict=False))

        step_with_decay(
            kernel,
            params,
            part,
            fraction=self._fraction(group) if coefficient is None else 0.0,
            direction=lambda: moved,
            cautious=group["cautious"],
            differentiable=False,
            found_inf=None,
        )
