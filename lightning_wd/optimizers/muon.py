r"""Muon: momentum, orthogonalised matrix by matrix, with every decoupled decay style.

``m <- mu * m + (1 - mu) * g;  w <- w - lr_t * c * NS(mu * m + (1 - mu) * g) - d_t * w_old``, where NS orthogonalises a
matrix by Newton-Schulz iterations and c fits the rate to its shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_wd._private import is_fsdp1_piece
from lightning_wd.errors import ConfigError, choice, listed, number
from lightning_wd.mask.module_tree import is_sharded
from lightning_wd.optimizers.compiled import kinds_of
from lightning_wd.optimizers.kernel_step import KernelStep
from lightning_wd.optimizers.kernels import Part, Work, pulls, step_with_decay
from lightning_wd.optimizers.param_groups import as_float
from lightning_wd.styles import STYLES

__all__ = ["COEFFICIENTS", "Muon", "orthogonalised"]

# (a, b, c) of each iteration X <- a X + b (X X') X + c (X X')^2 X; the last one repeats.
COEFFICIENTS = {
    # https://kellerjordan.github.io/posts/muon/: the steepest slope at 0, never quite 1
    "quintic": ((3.4445, -4.775, 2.0315),),
    # https://arxiv.org/abs/2505.16932, Algorithm 1, with its safety factor: the best polynomial at each iteration
    "polar_express": (
        *(
            (a / 1.01, b / 1.01**3, c / 1.01**5)
            for a, b, c in (
                (8.28721201814563, -23.595886519098837, 17.300387312530933),
                (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
                (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
                (3.3184196573706015, -2.488488024314874, 0.51004894012372),
                (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
                (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
                (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
            )
        ),
        (1.875, -1.25, 0.375),
    ),
}
_ADJUST = {
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "original": lambda rows, columns: math.sqrt(max(1, rows / columns)),
}


class Muon(KernelStep):
    r"""Momentum whose every matrix is orthogonalised; with style ``decoupled``, torch.optim.Muon bit for bit.

    The whole step of a weight w with gradient g::

        m = mu * m + (1 - mu) * g
        u = mu * m + (1 - mu) * g if nesterov else m
        o = NS(u)  # U S V' becomes nearly U V'
        w = w - lr_t * c * o - d_t * w  # cautious_wd: the last term only where o * w >= 0

    :mod:`lightning_wd.styles` defines ``d_t`` in each style. A tensor of more dimensions is flattened to (first, all
    others): to the matrix by which a convolution multiplies each patch, (out, in * kh * kw). A transposed convolution's
    (in, out * kh * kw) is the transpose of its matrix, and orthogonalising commutes with transposing. Under FSDP2 each
    process gathers u, orthogonalises it whole and keeps its shard; m stays sharded.

    Args:
        params: parameters of two or more dimensions, (name, parameter) pairs, or groups as dicts.
        lr: learning rate >= 0; also the group's ``base_lr`` unless that key is given.
        weight_decay: ``lam >= 0`` in the unit of ``style``. Default 0.1; ``independent`` and ``constant`` need one.
        style: any but ``l2``.
        momentum: mu in [0, 1).
        nesterov: look one gradient ahead of the buffer.
        ns_steps: Newton-Schulz iterations.
        ns_coefficients: ``quintic`` or ``polar_express``. Five iterations bring singular values of u from
            ``0.005 * ||u||_F`` up into [0.68, 1.16], or by ``polar_express`` into [0.87, 1.13].
        adjust_lr_fn: c for a matrix of r rows and k columns: ``match_rms_adamw``, ``0.2 * sqrt(max(r, k))``, gives the
            update the RMS of AdamW's, so that one learning rate serves both; ``original`` is ``sqrt(max(1, r / k))``.
        split: how many matrices of equal size are stacked along the first dimension, each orthogonalised by itself: 3
            for a fused QKV (3d, d), E for the experts (E, out, in), the groups of a grouped convolution.
        cautious_wd, toward, anchor_dtype, kahan: as in :class:`~lightning_wd.optimizers.adamw.AdamW`.

    Raises:
        ConfigError: an unknown key, a value out of range, style ``l2``, a parameter that is complex or has fewer than
            two dimensions, or a first dimension that ``split`` does not divide.

    Example:
        >>> weight = torch.nn.Parameter(torch.eye(2))
        >>> optimizer = Muon([weight], lr=0.1, weight_decay=0.5)
        >>> weight.grad = torch.zeros(2, 2)
        >>> optimizer.step()
        >>> weight.detach()
        tensor([[0.9500, 0.0000],
                [0.0000, 0.9500]])

    References:
        Jordan et al., Muon, https://kellerjordan.github.io/posts/muon/;
        Liu et al., Muon is Scalable for LLM Training, https://arxiv.org/abs/2502.16982;
        Amsel et al., The Polar Express, https://arxiv.org/abs/2505.16932.
    """

    # `--optimizer=Muon` of a LightningCLI is torch's class: it looks among subclasses whose path is not private.
    __qualname__ = "_Muon"

    default_weight_decay: ClassVar[float] = 0.1
    styles: ClassVar[tuple[str, ...]] = tuple(style for style in STYLES if style != "l2")
    state_keys: ClassVar[frozenset[str] | None] = frozenset(("momentum_buffer", "kahan", "anchor", "radius"))

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float | None = None,
        *,
        style: str = "decoupled",
        cautious_wd: bool = False,
        toward: str = "zero",
        anchor_dtype: str | torch.dtype | None = None,
        kahan: bool | None = None,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_coefficients: str = "quintic",
        adjust_lr_fn: str = "match_rms_adamw",
        split: int = 1,
    ) -> None:
        amount = self._begin(weight_decay=weight_decay, style=style)
        defaults = {"lr": lr, "weight_decay": amount, "style": style, "cautious_wd": cautious_wd, "kahan": kahan}
        defaults |= {"toward": toward, "anchor_dtype": anchor_dtype}
        defaults |= {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "split": split}
        defaults |= {"ns_coefficients": ns_coefficients, "adjust_lr_fn": adjust_lr_fn, "differentiable": False}
        super().__init__(params, defaults)

    def _check(self, given: dict[str, Any], settings: dict[str, Any], of: str = "") -> None:
        super()._check(given, settings, of)
        for key in ("ns_steps", "split"):
            if key in given:
                settings[key] = int(number(key + of, given[key], minimum=1, whole=True))
        for key, valid in (("ns_coefficients", COEFFICIENTS), ("adjust_lr_fn", _ADJUST)):
            if key in given:
                choice(key + of, given[key], valid)

    def _complete(self, group: dict[str, Any], label: str) -> None:
        super()._complete(group, label)
        split = group.get("split", self.defaults["split"])
        for member in group["params"]:
            name, p = member if isinstance(member, tuple) else ("a parameter", member)
            if not isinstance(p, Tensor):
                continue  # torch refuses it
            found = f"shape {tuple(p.shape)}, {p.dtype}"
            if is_fsdp1_piece(p):
                problem = f"FSDP1 has cut {name} of {label} into pieces: Muon orthogonalises whole matrices."
                raise ConfigError(
                    problem, found=found, fix="use FSDP2 (fully_shard; Lightning's ModelParallelStrategy)"
                )
            if p.ndim < 2 or p.is_complex():
                problem = f"{name} of {label} is not a real matrix: Muon orthogonalises matrices."
                raise ConfigError(problem, found=found, fix="let AdamW update it")
            if p.shape[0] % split:
                divisors = [n for n in range(1, p.shape[0] + 1) if p.shape[0] % n == 0]
                problem = f"split={split} of {label} does not divide the first dimension of {name}."
                fix = "write how many matrices of equal size the tensor stacks"
                raise ConfigError(problem, found=found, valid=listed(divisors, 12), fix=fix)

    def _collect(self, index: int, group: dict[str, Any]) -> Work:
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if p.grad.is_sparse:
                raise RuntimeError("Muon does not support sparse gradients")
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        self._keep_own_state(group, params, kinds_of(params))
        columns = [params, [p.grad for p in params], [self.state[p]["momentum_buffer"] for p in params]]
        return group, columns, False, [Part([i], False, False) for i in range(len(params))]

    def _update(
        self, group: dict[str, Any], columns: list[list[Any]], special: bool, part: Part, state: Mapping[Tensor, Any]
    ) -> None:
        """Update one weight."""
        params, (g,), (m,) = columns
        mu = group["momentum"]
        m.lerp_(g, 1 - mu)
        update, factor = orthogonalised(g.lerp(m, mu) if group["nesterov"] else m, group)
        lr, fraction = as_float(group["lr"]), self._fraction(group)
        in_kernel = group["style"] == "decoupled" and not (group["cautious_wd"] or group["kahan"] or pulls(group))

        def kernel(targets: list[Tensor]) -> None:
            if in_kernel:
                targets[0].mul_(1 - fraction)  # as torch.optim.Muon does it
            targets[0].add_(update, alpha=-lr * factor)

        fraction_outside = 0.0 if in_kernel else fraction
        step_with_decay(kernel, params, part, group, state, fraction=fraction_outside, direction=lambda: [update])


_Muon = Muon  # where pickle looks for a class is its __qualname__


def orthogonalised(update: Tensor, group: dict[str, Any]) -> tuple[Tensor, float]:
    """Return the update with each of its matrices orthogonalised, in bfloat16, and c for matrices of their shape."""
    sharded: Any = update if is_sharded(update) else None
    whole: Tensor = update if sharded is None else sharded.full_tensor()
    matrices = _matrices(whole, group["split"])
    rows, columns = matrices.shape[-2:]
    coefficients = COEFFICIENTS[group["ns_coefficients"]]
    result = _newton_schulz(matrices, [coefficients[min(i, len(coefficients) - 1)] for i in range(group["ns_steps"])])
    result = result.reshape(whole.shape)
    if sharded is not None:
        from torch.distributed.tensor import DTensor, Replicate

        everywhere = [Replicate()] * sharded.device_mesh.ndim
        result = DTensor.from_local(result, sharded.device_mesh, everywhere).redistribute(placements=sharded.placements)
    return result, _ADJUST[group["adjust_lr_fn"]](rows, columns)


def _matrices(tensor: Tensor, split: int) -> Tensor:
    """Return a tensor as a matrix, or as a stack of ``split`` matrices along its first dimension.

    >>> conv, experts = torch.zeros(8, 4, 3, 3), torch.zeros(6, 10, 5)
    >>> [tuple(_matrices(t, n).shape) for t, n in ((conv, 1), (conv, 2), (experts, 6))]
    [(8, 36), (2, 4, 36), (6, 10, 5)]
    """
    if split == 1:
        return tensor.flatten(1)
    stack = tensor.reshape(split, tensor.shape[0] // split, *tensor.shape[1:])
    return (stack.squeeze(1) if stack.ndim > 3 else stack).flatten(2)  # experts are cut one by one


def _newton_schulz(matrices: Tensor, coefficients: list[tuple[float, float, float]]) -> Tensor:
    """Return a matrix, or a stack of them, with all singular values near 1."""
    x = matrices.to(torch.bfloat16, copy=True)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x.div_(x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7))  # now none is larger than 1
    add: Any = torch.addmm if x.ndim == 2 else torch.baddbmm
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = add(x, add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
