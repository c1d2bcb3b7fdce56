"""Checks of a plan for the zoos, by a tensor's layer and name alone, independent of the package's evidence."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lightning_wd import DecayPlan, plan_decay

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
NORM_NAME = re.compile(r"(?:Batch|Layer|Group|RMS|Rms)Norm(?:\d[dD])?$")
BIAS_NAME = re.compile(r"(?:^|_)bias(?:es)?(?:_|$)")


def check_plan(model: nn.Module) -> DecayPlan:
    """Return the decay plan of a model, or fail with the names of misplaced tensors."""
    plan = plan_decay(model)
    assert [row.name for row in plan] == [name for name, _ in model.named_parameters()]
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    members = [id(param) for group in plan.groups(lr=1.0, weight_decay=1.0) for _, param in group["params"]]
    assert sorted(members) == sorted(trainable)
    modules = dict(model.named_modules(remove_duplicate=False))
    wrong = []
    for row in plan:
        for name in row.names if row.group else ():
            path, _, leaf = name.rpartition(".")
            owner = modules[path]
            norm = isinstance(owner, NORMS) or NORM_NAME.search(type(owner).__name__)
            if row.wd_mult and (norm or BIAS_NAME.search(leaf)):
                wrong.append(f"{name} decays")
            weight = isinstance(owner, (nn.Linear, _ConvNd)) and leaf == "weight"
            if not row.wd_mult and (weight or leaf == "in_proj_weight") and "hook" not in row.reason:
                wrong.append(f"{name} does not decay: {row.reason}")
    assert wrong == []
    return plan


def outline(names: Iterable[str]) -> list[str]:
    """Return each name once, in order, with # for layer numbers: blocks.#.attn.qkv.weight."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "#", name) for name in names))
