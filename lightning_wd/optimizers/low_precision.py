"""Decay that the dtype of a weight would round away: kept by Kahan summation, or said."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_wd.errors import warn
from lightning_wd.optimizers.param_groups import group_label, peak_fraction

log = logging.getLogger(__name__)

__all__ = ["meet_low_precision"]


def meet_low_precision(groups: Iterable[tuple[int, dict[str, Any]]], *, compiled: bool) -> None:
    """Decide on ``kahan=None`` of groups, and warn of decay that is lost all the same.

    Kahan summation is turned on for 16-bit weights whose decay is too small to change them; the compiled pass and
    autograd do not go with it.
    """
    for index, group in groups:
        chosen = group.get("kahan", False)
        if "kahan" in group:
            group["kahan"] = bool(chosen)
        if chosen or isinstance(group["weight_decay"], Tensor):
            continue
        fraction = peak_fraction(group)
        for dtype in {p.dtype for p in group["params"] if p.is_floating_point()}:
            half_step = torch.finfo(dtype).eps / 4  # the smallest relative change that can move a weight
            if not 0 < fraction < half_step:
                continue
            lost = (
                f"the decay of {group_label(group, index)} is lost in {str(dtype).removeprefix('torch.')}: a step "
                f"removes d_t = {fraction:.3g} of a weight, less than the dtype's half step {half_step:.3g}, so the "
                "weight rounds back."
            )
            if chosen is None and dtype.itemsize < 4 and not (compiled or group["differentiable"]):
                group["kahan"] = True
                log.info("kahan=None turns Kahan summation on: without it %s", lost)
                break
            fixes = ["write kahan=True"] if "kahan" in group else []
            if dtype.itemsize < 4:
                fixes += ["keep the weights in float32 (Lightning: precision=bf16-mixed)"]
            warn(lost, fix=", or ".join([*fixes, "write a larger weight_decay, or 0"]))
