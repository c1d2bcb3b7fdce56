"""How long a plan takes, as a multiple of one pass of ``named_parameters()`` over the same 10,000 tensors.

Run it with: python benchmarks/mask.py
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from lightning_wd import Mask, Rule, plan_decay

TENSORS = 10_000
ROUNDS = 31


class Block(nn.Module):
    """A transformer block's tensors: 12, nested three deep."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(4, 12), "proj": nn.Linear(4, 4)})
        self.mlp = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4))


def model() -> nn.Module:
    """A model of 10,000 tensors, without storage."""
    with torch.device("meta"):
        blocks = nn.ModuleList(Block() for _ in range(TENSORS // 12))
        rest = nn.ParameterList(nn.Parameter(torch.empty(4, 4)) for _ in range(TENSORS % 12))
        return nn.ModuleDict({"blocks": blocks, "rest": rest})


def seconds(function: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Time the passes in turn, so that a busy machine slows all of them alike, and print the medians."""
    net = model()
    passes: dict[str, Callable[[], object]] = {
        "named_parameters()": lambda: list(net.named_parameters()),
        "plan_decay, standard": lambda: plan_decay(net),
        "plan_decay, one rule": lambda: plan_decay(net, Mask([Rule(wd_mult=0.1, name="*.mlp.*.weight")])),
        "plan_decay, 4 rules and layerwise": lambda: plan_decay(
            net,
            Mask.layerwise(
                0.75,
                [Rule(wd_mult=0.1, name=f"*.{n}") for n in ("mlp.*.weight", "attn.*.weight", "norm1.*", "norm2.*")],
            ),
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(ROUNDS):
        for name, function in passes.items():
            gc.collect()
            times[name].append(seconds(function))
    floor = times["named_parameters()"]
    print(f"{len(list(net.parameters())):,} tensors, torch {torch.__version__}, Python {platform.python_version()}")
    print("| pass | median ms | times named_parameters() |\n|---|---|---|")
    for name, taken in times.items():
        ratio = statistics.median(t / f for t, f in zip(taken, floor, strict=True))
        print(f"| {name} | {1000 * statistics.median(taken):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
