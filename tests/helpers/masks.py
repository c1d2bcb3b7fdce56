"""The small modules that the tests of masks plan, and short forms of what a plan says."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_wd import plan_decay


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"emb": nn.Embedding(6, 4), "module": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})


NET = [("emb.weight", "decay"), ("module.weight", "decay"), ("module.bias", "no_decay"),
       ("norm.weight", "no_decay"), ("norm.bias", "no_decay")]  # fmt: skip


def placed(module: nn.Module, mask: Any = None) -> list[tuple[str, str | None]]:
    return [(row.name, row.group) for row in plan_decay(module, mask)]


def tied() -> nn.Module:
    module = nn.ModuleDict({"wte": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    module["head"].weight = module["wte"].weight  # type: ignore[assignment, union-attr]
    return module


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


class Extended(nn.DataParallel):
    """A wrapper with a layer of its own, and with another handle on what it wraps."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.head, self.inner = nn.Linear(4, 2), module


class Holder(nn.Module):
    """A module that owns tensors of the given names and shapes, and nothing else."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.ones(shape)))


def named(name: str, *bases: type, **shapes: tuple[int, ...]) -> nn.Module:
    """A module of a class with this name."""
    return type(name, bases or (Holder,), {})(**shapes)  # type: ignore[no-any-return]


def decayed(plan: Any) -> set[str]:
    return {row.name for row in plan if row.wd_mult}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"layernorm": nn.LayerNorm(4), "fc": nn.Linear(4, 4)}) for _ in range(2)
        )
        self.head = nn.Linear(4, 2)
