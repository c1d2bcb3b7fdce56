r"""Muon for the hidden matrices and AdamW for everything else, in one optimizer with every decoupled decay style.

``m <- mu * m + (1 - mu) * g;  w <- w - lr_t * c * NS(m) - d_t * w_old`` for the groups with ``use_muon=True``, where NS
orthogonalises a matrix by Newton-Schulz iterations and c adjusts the rate to its shape; AdamW's step for the others.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_wd import _private
from lightning_wd.decay import STYLES
from lightning_wd.errors import ConfigError, choice, number
from lightning_wd.optimizers.adamw import AdamStep, in_kernel
from lightning_wd.optimizers.kernels import Part, Work, step_with_decay

__all__ = ["MuonAdamW"]


class MuonAdamW(AdamStep, torch.optim.AdamW):
    r"""torch's Muon on the groups with ``use_muon=True``, AdamW on the others.

    .. math::
        w_t = w_{t-1} - \eta_t\, c\, \mathrm{NS}(\mu m_t + (1 - \mu) g_t) - d_t w_{t-1}

    with :math:`d_t` as in :class:`~lightning_wd.optimizers.adamw.AdamW`; by default torch.optim.Muon bit for bit. One
    learning rate serves both halves: c is ``0.2 * sqrt(max(rows, columns))``, which gives Muon's update the RMS of
    AdamW's (2502.16982).

    Args:
        params: groups as dicts; those with ``use_muon=True`` hold matrices only.
        weight_decay: ``lam >= 0`` in the unit of ``style``. Default 0.1; ``independent`` and ``constant`` need one.
        momentum: ``mu`` of Muon, in [0, 1).
        nesterov: look one gradient ahead of the buffer.
        ns_steps: Newton-Schulz iterations.
        adjust_lr_fn: ``match_rms_adamw``, or ``original`` (``c = sqrt(max(1, rows / columns))``).
        lr, betas, eps, style, cautious_wd, foreach, fused: as in AdamW; the style is any but ``l2``.

    Raises:
        ConfigError: torch < 2.9, which has no Muon; a parameter in a Muon group that is no matrix; style ``l2``.

    Example:
        >>> weight, bias = torch.nn.Parameter(torch.eye(2)), torch.nn.Parameter(torch.ones(2))
        >>> groups = [{"params": [weight], "use_muon": True}, {"params": [bias], "weight_decay": 0.0}]
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

    default_weight_decay: ClassVar[float] = 0.1
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
        cautious_wd: bool = False,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        if _private.missing("muon"):
            raise ConfigError(
                f"torch {torch.__version__} has no Muon that this class can call.",
                valid="torch >= 2.9",
                fix="pip install -U torch, or write optimizer=adamw",
            )
        choice("adjust_lr_fn", adjust_lr_fn, ("match_rms_adamw", "original"))
        ours = {"style": style, "cautious_wd": cautious_wd, "kahan": False, "decoupled_weight_decay": True}
        ns_steps = int(number("ns_steps", ns_steps, minimum=1, whole=True))
        muon = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        amount = self._begin(weight_decay=weight_decay, compile=False, use_muon=False, **ours, **muon)
        torch.optim.AdamW.__init__(self, params, lr, betas, eps, amount, foreach=foreach, fused=fused)

    def _complete(self, group: dict[str, Any], label: str) -> None:
        super()._complete(group, label)
        if not group.get("use_muon"):
            return
        for member in group["params"]:
            name, p = member if isinstance(member, tuple) else ("a parameter", member)
            if p.ndim != 2 or p.is_complex():
                raise ConfigError(
                    f"{name} of {label} is not a real matrix: Muon orthogonalises matrices.",
                    found=f"shape {tuple(p.shape)}, {p.dtype}",
                    fix="put it into a group without use_muon, which AdamW updates",
                )

    def _collect(self, index: int, group: dict[str, Any]) -> Work:
        if not group["use_muon"]:
            return super()._collect(index, group)
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.tensor(0.0)  # torch's Adam expects one in every state it loads
                self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        columns = [params, [p.grad for p in params], [self.state[p]["momentum_buffer"] for p in params]]
        return group, columns, False, [Part(None, None, group["foreach"])] if params else []

    def _update(
        self, group: dict[str, Any], columns: list[list[Tensor]], has_complex: bool, part: Part, state: Any
    ) -> None:
        if not group["use_muon"]:
            super()._update(group, columns, has_complex, part, state)
            return
        params, grads, buffers = columns
        coefficient, _ = in_kernel(group)
        settings = {key: group[key] for key in ("lr", "momentum", "nesterov", "ns_steps", "adjust_lr_fn")}
        iteration = {"ns_coefficients": (3.4445, -4.775, 2.0315), "eps": 1e-7}  # torch's defaults: the quintic one
        moved: list[Tensor] = []

        def kernel(targets: list[Tensor]) -> None:
            before = [p.clone() for p in targets] if group["cautious_wd"] else []
            amount = 0.0 if coefficient is None else coefficient
            _private.muon(targets, grads, buffers, weight_decay=amount, has_complex=False, **settings, **iteration)
            for p in params:
                self.state[p]["step"] += 1
            moved.extend(old - new for old, new in zip(before, targets, strict=False))

        step_with_decay(
            kernel,
            params,
            part,
            group,
            self.state,
            fraction=self._fraction(group) if coefficient is None else 0.0,
            direction=lambda: moved,
        )
