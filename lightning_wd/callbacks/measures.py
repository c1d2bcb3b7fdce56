r"""What weight decay does to a parameter group in one step, as measured and as theory predicts.

Symbols as in :mod:`lightning_wd.styles`: ``d`` is the fraction of the old weights that the step removed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_wd._private import is_fsdp1_piece
from lightning_wd.conversions import adamw_angle
from lightning_wd.mask.module_tree import is_sharded
from lightning_wd.optimizers.hyperball import flat_norm, local
from lightning_wd.optimizers.param_groups import as_float, group_style, stepper_of
from lightning_wd.scale_invariance import INVARIANT, dense, radial_products, radial_share

__all__ = ["Snapshot", "adamw_rms", "sgd_ratio"]

_WHOLE = 2**16  # elements; the update of a larger tensor is measured on evenly spaced rows
_QUANTILES = 2**20  # elements of a group from which the quantiles of the lost decay are taken


def adamw_rms(lr: float, d: float, beta1: float) -> float:
    r"""Return the RMS at which AdamW's weights settle under gradients of pure noise.

    ``RMS^2 = lr^2 / (1 - a^2) * (1 - b1) / (1 + b1) * (1 + a*b1) / (1 - a*b1)`` with ``a = 1 - d``.

    >>> round(adamw_rms(1e-3, 1e-4, 0.9), 5)
    0.07068
    """
    a = 1.0 - d
    square = lr * lr / (d * (1.0 + a)) * (1.0 - beta1) / (1.0 + beta1) * (1.0 + a * beta1) / (1.0 - a * beta1)
    return math.sqrt(square)


def sgd_ratio(style: str, lam: float, lr: float, momentum: float) -> float:
    r"""Return the ratio ``||g|| / ||w||`` at which SGD on normalized layers settles.

    ``(1 - mu) * sqrt(2 * lam / lr)`` with ``lam = d / lr`` for decoupled decay, ``sqrt(2 * lam * (1 - mu) / lr)`` for
    an L2 penalty (Defazio, https://arxiv.org/abs/2506.02285, for mu = 0).

    >>> round(sgd_ratio("decoupled", 0.004, 0.1, 0.9), 6), round(sgd_ratio("l2", 0.004, 0.1, 0.9), 6)
    (0.028284, 0.089443)
    """
    if style == "l2":
        return math.sqrt(2.0 * lam * (1.0 - momentum) / lr)
    return (1.0 - momentum) * math.sqrt(2.0 * lam / lr)


class Snapshot:
    """The weights of an optimizer that is about to step, or a sample of them, kept to measure the step."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.old: dict[Tensor, Tensor] = {}
        self._momentum: dict[Tensor, Tensor | None] = {}  # of the parameters whose gradients the step overwrites
        self._radial: dict[Tensor, Tensor] = {}  # of the gradients with the weights that they are taken at
        for group in optimizer.param_groups:
            for p in group["params"]:
                self.old[p] = _sample(_local(p)).clone()
                if p.grad is not None and not is_fsdp1_piece(p):
                    self._radial[p] = radial_products(_local(p.grad), _local(p))
                if _overwrites_gradients(stepper_of(optimizer, group), group):
                    buffer = optimizer.state.get(p, {}).get("momentum_buffer")
                    self._momentum[p] = None if buffer is None else buffer.clone()

    def measure(self, optimizer: Optimizer, fractions: list[float | None]) -> list[dict[str, float]]:
        """Return each group's measured and predicted numbers after the step; none for a group without weights.

        ``fractions`` holds ``d_t`` of each group; None where decay is not a fixed fraction.
        """
        return [
            self._measure(stepper_of(optimizer, group), group, d) if any(p.numel() for p in group["params"]) else {}
            for group, d in zip(optimizer.param_groups, fractions, strict=True)
        ]

    def _measure(self, optimizer: Optimizer, group: dict[str, Any], d: float | None) -> dict[str, float]:
        params = group["params"]
        old = [self.old[p] for p in params]
        numbers = {
            **_norms(params, old, [self._gradient(optimizer, group, p) for p in params]),
            **self._scale_invariant(params),
            **_predicted(optimizer, group, d),
            **_lost_decay(optimizer, group),
        }
        anchors = _anchors(optimizer, group)
        if anchors:
            rows = [_square(_local(p) - _local(anchor)).view(1) for p, anchor in anchors.items()]
            numbers["anchor_distance"] = math.sqrt(float(_over_ranks(rows, [*anchors]).sum()))
        centres = [_sample(_local(anchors[p])) if p in anchors else None for p in params]
        if group.get("cautious_wd"):
            numbers.update(_cautious(params, old, centres))
        if d and not group.get("kahan"):
            numbers["rounded_away"] = _rounded_away(old, centres, d)
        return numbers

    def _scale_invariant(self, params: list[Tensor]) -> dict[str, float]:
        """Return the fraction of the weights in tensors that the loss does not feel the scale of."""
        empty = [_local(p).new_zeros(1) for p in params]
        rows = [self._radial.get(p, radial_products(zero, zero)) for p, zero in zip(params, empty, strict=True)]
        products = _over_ranks(rows, params).tolist()
        shares = {p: radial_share(*row) for p, row in zip(params, products, strict=True)}
        known = {p: share for p, share in shares.items() if not math.isnan(share)}
        invariant = sum(p.numel() for p, share in known.items() if share < INVARIANT)
        return {"scale_invariant_fraction": invariant / sum(p.numel() for p in known)} if known else {}

    def _gradient(self, optimizer: Optimizer, group: dict[str, Any], p: Tensor) -> Tensor | None:
        """Return the gradient of the step; one that was overwritten, from the momentum: ``g = m_t - mu * m_{t-1}``.

        A copy made before the step would be wrong: the gradient may not have been clipped or unscaled by then.
        """
        if p.grad is None or p not in self._momentum:
            return p.grad
        now: Tensor = optimizer.state[p]["momentum_buffer"]
        before = self._momentum[p]
        return now if before is None else now - group["momentum"] * before  # Nesterov has no dampening


def _overwrites_gradients(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether torch's foreach kernel overwrites gradients with Nesterov's update; L2 and maximize make it copy."""
    penalty = group_style(optimizer, group) == "l2" and as_float(group["weight_decay"])
    return isinstance(optimizer, SGD) and bool(group["nesterov"]) and not penalty and not group["maximize"]


def _norms(params: list[Tensor], old: list[Tensor], grads: list[Tensor | None]) -> dict[str, float]:
    """Return norms and the relative and angular update, global ones where the parameters are sharded."""
    rows = [_products(*each) for each in zip(params, old, grads, strict=True)]
    products = _over_ranks(rows, params).tolist()
    weights, gradients, start, move, _ = (sum(column) for column in zip(*products, strict=True))
    numbers = {
        "weight_norm": math.sqrt(weights),
        "weight_rms": math.sqrt(weights / sum(p.numel() for p in params)),
        "grad_norm": math.sqrt(gradients),
        "grad_weight_ratio": math.sqrt(gradients / weights) if weights else math.nan,
        "relative_update": math.sqrt(move / start) if start else math.nan,
        "nonfinite_weights": 0.0 if math.isfinite(weights) else _nonfinite(params),
        "nonfinite_grads": 0.0 if math.isfinite(gradients) else _nonfinite([g for g in grads if g is not None]),
    }
    angles = [
        _angle(start, move, along)
        for p, grad, (_, _, start, move, along) in zip(params, grads, products, strict=True)
        if p.ndim >= 2 and grad is not None and start > 0
    ]
    if angles:
        numbers["angular_update"] = sum(angles) / len(angles)
    return numbers


def _products(p: Tensor, before: Tensor, grad: Tensor | None) -> Tensor:
    """Return the products ``w w``, ``g g``, ``w_old w_old``, ``move move`` and ``w_old move``; ``move = w - w_old``."""
    old = _widened(before)
    move = _widened(_sample(_local(p))) - old
    g = move.new_zeros(()) if grad is None else _square(_local(grad))
    products = (_square(_local(p)), g, _square(old), _square(move), torch.dot(old, move))
    return torch.stack([product.float() for product in products])


def _angle(start: float, move: float, along: float) -> float:
    """Return the angle between ``w_old`` and ``w_old + move``, from the products of one tensor."""
    across = math.sqrt(max(0.0, move - along * along / start))
    return math.atan2(across, math.sqrt(start) + along / math.sqrt(start))


def _nonfinite(tensors: list[Tensor]) -> float:
    """Return how many elements are inf or nan, over all ranks where the tensors are sharded."""
    counts = [(~torch.isfinite(_widened(_local(t)))).sum().view(1) for t in tensors]
    return float(_over_ranks(counts, tensors).sum())


def _predicted(optimizer: Optimizer, group: dict[str, Any], d: float | None) -> dict[str, float]:
    """Return what the measured numbers should settle at, where theory predicts it."""
    lr = as_float(group["lr"])
    if group_style(optimizer, group) == "hyperball":
        return {"angular_update_predicted": math.atan(lr)}
    if not lr or group.get("cautious_wd") or group.get("toward", "zero") != "zero":
        return {}
    if isinstance(optimizer, (Adam, AdamW)) and d and d < 1 and not group["amsgrad"]:  # its v only grows
        beta1 = as_float(group["betas"][0])
        return {"weight_rms_predicted": adamw_rms(lr, d, beta1), "angular_update_predicted": adamw_angle(d, beta1)}
    if isinstance(optimizer, SGD) and not group["dampening"]:
        style = str(group_style(optimizer, group))
        lam = as_float(group["weight_decay"]) if style == "l2" else (d or 0.0) / lr
        if lam:
            return {"grad_weight_ratio_predicted": sgd_ratio(style, lam, lr, group["momentum"])}
    return {}


def _lost_decay(optimizer: Optimizer, group: dict[str, Any]) -> dict[str, float]:
    r"""Return how unevenly Adam's L2 penalty decays coordinates: ``d_i = lr * lam / (sqrt(v_hat_i) + eps)``."""
    lam = as_float(group.get("weight_decay", 0.0))
    if not (isinstance(optimizer, (Adam, AdamW)) and lam and group_style(optimizer, group) == "l2"):
        return {}
    held = [optimizer.state[p] for p in group["params"] if "exp_avg_sq" in optimizer.state.get(p, {})]
    key = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
    lr, beta2 = as_float(group["lr"]), as_float(group["betas"][1])
    parts = []
    for state in held:
        v = _sample(_local(state[key]), _QUANTILES // len(held)).flatten().float()
        v_hat = v / (1.0 - beta2 ** as_float(state["step"]))
        parts.append((lr * lam / (v_hat.sqrt() + group["eps"])).to(held[0][key].device))
    decays = torch.cat(parts)[: 2**24] if parts else torch.empty(0)  # the limit of torch.quantile
    if not decays.numel():  # this rank's shard of a group may be empty
        return {}
    p5, p50, p95 = torch.quantile(decays, torch.tensor([0.05, 0.5, 0.95], device=decays.device)).tolist()
    return {
        "lost_decay_mean": decays.mean().item(),
        "lost_decay_p5": p5,
        "lost_decay_p50": p50,
        "lost_decay_p95": p95,
        "lost_decay_spread": p95 / p5 if p5 else math.inf,
    }


def _anchors(optimizer: Optimizer, group: dict[str, Any]) -> dict[Tensor, Tensor]:
    """Return what the weights of a group decay towards, where that is not zero."""
    held = {p: optimizer.state.get(p, {}).get("anchor") for p in group["params"]} if "toward" in group else {}
    return {p: anchor for p, anchor in held.items() if anchor is not None and group["toward"] != "zero"}


def _cautious(params: list[Tensor], old: list[Tensor], centres: list[Tensor | None]) -> dict[str, float]:
    """Return the fraction of coordinates that a cautious step decayed.

    It decays where ``u * (w_old - w*) >= 0``, and there it moves the weight towards its centre ``w*``, None for zero:
    ``(w_old - w_new) * (w_old - w*) >= 0``. Coordinates that rounding held in place are not counted.
    """
    decayed, seen = 0, 0
    for p, before, centre in zip(params, old, centres, strict=True):
        if p.grad is None:
            continue
        before, after = _widened(before), _widened(_sample(_local(p)))
        away = before if centre is None else before - _widened(centre)
        moved = (before != after) | (away == 0)
        decayed += int((((before > after) == (away > 0)) | (away == 0))[moved].sum())
        seen += int(moved.sum())
    return {"cautious_fraction": decayed / seen} if seen else {}


def _rounded_away(old: list[Tensor], centres: list[Tensor | None], d: float) -> float:
    """Return the fraction of weights that ``w - d * (w - w*)`` leaves unchanged in their own dtype."""
    lost, seen = 0, 0
    for w, centre in zip(old, centres, strict=True):
        if not w.is_floating_point() or (centre is None and d > torch.finfo(w.dtype).eps):  # larger than rounding
            seen += w.numel()
        else:
            wide = w.float() if w.dtype.itemsize == 1 else w  # float8 has no arithmetic
            away = wide if centre is None else wide - centre.to(wide.dtype)
            lost += int(((wide - d * away).to(w.dtype).eq(w) & (away != 0)).sum())
            seen += int((away != 0).sum())
    return lost / seen if seen else 0.0


# --- tensors ----------------------------------------------------------------------------------------------------------


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor, and any other tensor as it is; dense, complex numbers as pairs."""
    return dense(local(tensor.detach()))


def _share(tensor: Tensor) -> float:
    """Return one over the number of ranks that hold this rank's shard of a tensor."""
    placements = enumerate(getattr(tensor, "placements", ()))
    shards = math.prod(tensor.device_mesh.size(i) for i, placement in placements if placement.is_shard())  # type: ignore[attr-defined]
    return float(shards / torch.distributed.get_world_size())


def _over_ranks(rows: list[Tensor], tensors: list[Tensor]) -> Tensor:
    """Stack a row of numbers for each tensor, summed over all ranks where a tensor is sharded."""
    table = torch.stack([row.to(rows[0].device) for row in rows])  # a group may span devices
    if any(is_sharded(t) for t in tensors):
        table = table * torch.tensor([[_share(t)] for t in tensors], device=table.device)
        torch.distributed.all_reduce(table)
    return table


def _sample(tensor: Tensor, limit: int = _WHOLE) -> Tensor:
    """Return evenly spaced rows of a large tensor, as a view."""
    return tensor if tensor.numel() <= limit else tensor[:: -(-tensor.numel() // limit)]


def _widened(tensor: Tensor) -> Tensor:
    """Return a tensor flat, in float32 unless it is in float64."""
    return tensor.flatten() if tensor.dtype == torch.float64 else tensor.flatten().float()


def _square(tensor: Tensor) -> Tensor:
    """Return the sum of squares."""
    return flat_norm(_widened(tensor)).square()
