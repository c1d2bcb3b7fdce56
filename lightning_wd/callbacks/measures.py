r"""What decay does to one parameter group in one step: measured numbers, and what theory predicts for them.

Symbols as in :mod:`lightning_wd.decay`: ``d`` is the fraction of the old weights that the step removed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_wd.callbacks.groups import as_float, group_style

__all__ = ["Snapshot", "adamw_angle", "adamw_rms", "sgd_ratio"]

_WHOLE = 2**16  # numbers of a tensor up to which its update is measured whole; evenly spaced rows of it above
_QUANTILES = 2**20  # numbers of a group from which the quantiles of the lost decay are taken
_CHUNK = 4096  # float32 sums over more lose digits: a plain norm of 38M numbers is off by 0.3 %


def adamw_rms(lr: float, d: float, beta1: float) -> float:
    r"""Return the RMS at which AdamW's weights settle under gradients of pure noise.

    ``RMS^2 = lr^2 / (1 - a^2) * (1 - b1) / (1 + b1) * (1 + a*b1) / (1 - a*b1)`` with ``a = 1 - d``.

    >>> round(adamw_rms(1e-3, 1e-4, 0.9), 5)
    0.07068
    """
    a = 1.0 - d
    square = lr * lr / (1.0 - a * a) * (1.0 - beta1) / (1.0 + beta1) * (1.0 + a * beta1) / (1.0 - a * beta1)
    return math.sqrt(square)


def adamw_angle(d: float, beta1: float) -> float:
    r"""Return the angle, in radians, by which an AdamW step turns a tensor in equilibrium.

    ``sqrt(2 * d * (1 - b1) / (1 + b1))`` (Kosson et al., https://arxiv.org/abs/2305.17212).

    >>> round(adamw_angle(1e-4, 0.9), 6)
    0.003244
    """
    return math.sqrt(2.0 * d * (1.0 - beta1) / (1.0 + beta1))


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
    """What must be kept from before a step to measure it: a copy of (a sample of) the weights of one optimizer.

    Args:
        optimizer: about to step; its gradients are there.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.old = [[_sample(_local(p)).clone() for p in group["params"]] for group in optimizer.param_groups]
        self.buffers = [
            [_buffer_copy(optimizer, p) for p in group["params"]] if _overwrites_gradients(optimizer, group) else None
            for group in optimizer.param_groups
        ]

    def measure(self, optimizer: Optimizer, fractions: list[float | None]) -> list[dict[str, float]]:
        """Return the measured and predicted numbers of each group, after the step; none of a group without weights.

        Args:
            optimizer: the same optimizer, having stepped.
            fractions: ``d_t`` of each group; None where decay is no fixed fraction.
        """
        result: list[dict[str, float]] = []
        for group, old, buffers, d in zip(optimizer.param_groups, self.old, self.buffers, fractions, strict=True):
            if not any(p.numel() for p in group["params"]):
                result.append({})
                continue
            grads = [p.grad for p in group["params"]]
            if buffers is not None:
                grads = _gradients_from_buffers(optimizer, group, buffers)
            numbers = _norms(group["params"], old, grads)
            numbers.update(_predicted(optimizer, group, d))
            numbers.update(_lost_decay(optimizer, group))
            numbers.update(_cautious(group, old))
            if d and not group.get("kahan"):
                numbers["rounded_away"] = _rounded_away(old, d)
            result.append(numbers)
        return result


def _overwrites_gradients(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether torch's foreach kernel writes Nesterov's u over the gradients: a penalty or a sign makes it copy them."""
    penalty = group_style(optimizer, group) == "l2" and as_float(group["weight_decay"])
    return isinstance(optimizer, SGD) and bool(group["nesterov"]) and not penalty and not group["maximize"]


def _buffer_copy(optimizer: Optimizer, p: Tensor) -> Tensor | None:
    buffer = optimizer.state.get(p, {}).get("momentum_buffer")
    return None if buffer is None else buffer.clone()


def _gradients_from_buffers(
    optimizer: Optimizer, group: dict[str, Any], before: list[Tensor | None]
) -> list[Tensor | None]:
    """Return the gradients that the momentum buffers took in: ``g = m_t - mu * m_{t-1}`` (Nesterov has no dampening).

    Only the step sees them clipped and without GradScaler's scale, so a copy from before it would be of others.
    """
    grads: list[Tensor | None] = []
    for p, old in zip(group["params"], before, strict=True):
        now = None if p.grad is None else optimizer.state[p]["momentum_buffer"]
        grads.append(now if now is None or old is None else now - group["momentum"] * old)
    return grads


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor, and any other tensor as it is."""
    tensor = tensor.detach()
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def _dense(grad: Tensor) -> Tensor:
    return _local(grad.to_dense() if grad.is_sparse else grad)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, as FSDP2 and tensor parallelism make them."""
    return hasattr(tensor, "device_mesh")


def _share(tensor: Tensor) -> float:
    """Return one over the number of ranks that hold this rank's part of a tensor."""
    shards = 1
    for dimension, placement in enumerate(getattr(tensor, "placements", ())):
        if placement.is_shard():
            shards *= tensor.device_mesh.size(dimension)  # type: ignore[attr-defined]
    return shards / torch.distributed.get_world_size()


def _sample(tensor: Tensor, limit: int = _WHOLE) -> Tensor:
    """Return evenly spaced rows of a large tensor; a view."""
    return tensor if tensor.numel() <= limit else tensor[:: -(-tensor.numel() // limit)]


def _square(tensor: Tensor) -> Tensor:
    """Return the sum of squares, accurate to float32 at any size."""
    flat = tensor.flatten()
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten()
    whole = flat.numel() // _CHUNK * _CHUNK
    norms = torch.linalg.vector_norm(flat[:whole].view(-1, _CHUNK), dim=1) if whole else flat[:0]
    rest = torch.linalg.vector_norm(flat[whole:])
    norm: Tensor = torch.linalg.vector_norm(torch.cat([norms, rest.view(1)]))
    return norm.square()


def _norms(params: list[Tensor], old: list[Tensor], grads: list[Tensor | None]) -> dict[str, float]:
    """Return norms, the relative and the angular update; global ones where the parameters are sharded."""
    rows = []
    for p, before, grad in zip(params, old, grads, strict=True):
        now, then = _sample(_local(p)).flatten(), before.flatten()
        if now.dtype in (torch.float16, torch.bfloat16):
            now, then = now.float(), then.float()
        moved = now - then
        g = now.new_zeros(()) if grad is None else _square(_dense(grad))
        along = (moved * then.conj()).real.sum() if now.is_complex() else torch.dot(moved, then)
        squares = (_square(_local(p)), g, _square(then), _square(moved), along)
        rows.append(torch.stack([square.float() for square in squares]))
    table = torch.stack([row.to(rows[0].device) for row in rows])  # a group may lie on several devices
    if any(is_sharded(p) for p in params):
        table *= torch.tensor([[_share(p)] for p in params]).to(table)
        torch.distributed.all_reduce(table)
    values = table.tolist()
    numel = sum(p.numel() for p in params)
    weights, gradients, before, moved = (sum(row[i] for row in values) for i in range(4))
    numbers = {
        "weight_norm": math.sqrt(weights),
        "weight_rms": math.sqrt(weights / numel),
        "grad_norm": math.sqrt(gradients),
        "grad_weight_ratio": math.sqrt(gradients / weights) if weights else math.nan,
        "relative_update": math.sqrt(moved / before) if before else math.nan,
        "nonfinite_weights": 0.0 if math.isfinite(weights) else _nonfinite(params),
        "nonfinite_grads": 0.0 if math.isfinite(gradients) else _nonfinite(grads),
    }
    angles = [
        # the part of the move across w_old, and <w_new, w_old> / ||w_old||
        math.atan2(math.sqrt(max(0.0, moved - along * along / before)), math.sqrt(before) + along / math.sqrt(before))
        for p, grad, (_, _, before, moved, along) in zip(params, grads, values, strict=True)
        if p.ndim >= 2 and grad is not None and before > 0
    ]
    return numbers if not angles else {**numbers, "angular_update": sum(angles) / len(angles)}


def _nonfinite(tensors: list[Any]) -> float:
    """Return how many numbers are inf or nan, over all ranks where the tensors are sharded."""
    held = [t for t in tensors if t is not None]
    shared = any(is_sharded(t) for t in held)
    shares = [_share(t) if shared else 1.0 for t in held]
    counts = [share * (~torch.isfinite(_dense(t))).sum() for share, t in zip(shares, held, strict=True)]
    count = torch.stack([count.to(counts[0].device) for count in counts]).sum()
    if shared:
        torch.distributed.all_reduce(count)
    return float(count)


def _predicted(optimizer: Optimizer, group: dict[str, Any], d: float | None) -> dict[str, float]:
    """Return what theory says the norms should settle at, where it says anything."""
    lr, style = as_float(group["lr"]), group_style(optimizer, group)
    if not lr or group.get("cautious"):
        return {}
    if isinstance(optimizer, (Adam, AdamW)) and d and d < 1 and not group["amsgrad"]:  # its v only grows
        beta1 = as_float(group["betas"][0])
        return {
            "weight_rms_predicted": adamw_rms(lr, d, beta1),
            "angular_update_predicted": adamw_angle(d, beta1),
        }
    if isinstance(optimizer, SGD) and not group["dampening"]:
        lam = as_float(group["weight_decay"]) if style == "l2" else (d or 0.0) / lr
        if lam:
            return {"grad_weight_ratio_predicted": sgd_ratio(str(style), lam, lr, group["momentum"])}
    return {}


def _lost_decay(optimizer: Optimizer, group: dict[str, Any]) -> dict[str, float]:
    r"""Return how unevenly Adam's L2 penalty decays: ``d_i = lr * lam / (sqrt(v_hat_i) + eps)`` per coordinate."""
    lam = as_float(group.get("weight_decay", 0.0))
    if not (isinstance(optimizer, (Adam, AdamW)) and lam and group_style(optimizer, group) == "l2"):
        return {}
    held = [optimizer.state[p] for p in group["params"] if "exp_avg_sq" in optimizer.state.get(p, {})]
    beta2, parts = as_float(group["betas"][1]), []
    for state in held:
        v = _sample(_local(state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]), _QUANTILES // len(held))
        v_hat = v.flatten().float() / (1.0 - beta2 ** as_float(state["step"]))
        parts.append((as_float(group["lr"]) * lam / (v_hat.sqrt() + group["eps"])).to(held[0]["exp_avg_sq"].device))
    every = torch.cat(parts)[: 2**24] if parts else torch.empty(0)  # as many as torch.quantile takes
    if not every.numel():  # this rank's part of a sharded group may be empty
        return {}
    p5, p50, p95 = torch.quantile(every, torch.tensor([0.05, 0.5, 0.95], device=every.device)).tolist()
    return {
        "lost_decay_mean": every.mean().item(),
        "lost_decay_p5": p5,
        "lost_decay_p50": p50,
        "lost_decay_p95": p95,
        "lost_decay_spread": p95 / p5 if p5 else math.inf,
    }


def _cautious(group: dict[str, Any], old: list[Tensor]) -> dict[str, float]:
    """Return the fraction of coordinates that a cautious group decayed.

    ``u * w_old >= 0`` is where the step moved a weight towards zero, ``(w_old - w_new) * w_old >= 0``: decay and update
    pull the same way there, and nothing decays elsewhere. Coordinates that rounding held in place tell neither.
    """
    if not group.get("cautious"):
        return {}
    decayed, seen = 0, 0
    for p, before in zip(group["params"], old, strict=True):
        if p.grad is None:
            continue
        after = _sample(_local(p))
        moved = (before != after) | (before == 0)
        decayed += int((((before > after) == (before > 0)) | (before == 0))[moved].sum())
        seen += int(moved.sum())
    return {"cautious_fraction": decayed / seen} if seen else {}


def _rounded_away(old: list[Tensor], d: float) -> float:
    """Return the fraction of weights that a decay of ``d * w`` alone would not change, in their own dtype."""
    lost, seen = 0.0, 0
    for w in old:
        if d > torch.finfo(w.dtype).eps:  # more than a rounding step everywhere
            seen += w.numel()
            continue
        w = w[w != 0]
        lost, seen = lost + (w - d * w == w).sum().item(), seen + w.numel()
    return lost / seen if seen else 0.0
