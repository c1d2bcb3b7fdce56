"""Time one optimizer step against torch's and other packages', on CPU or CUDA.

    python benchmarks/optimizers.py                        # GPT-2 small, ResNet-18, 1,000 small tensors; 11 rounds
    python benchmarks/optimizers.py --sets gpt2 --rounds 21 --out benchmarks/results/optimizers.md
    python benchmarks/optimizers.py --families several     # MultiOptimizer against the optimizers that it holds
    python benchmarks/optimizers.py --sets tiny            # does it run? a minute

Every round runs every optimizer once, in an order of its own, so that a busy machine slows all alike; sets of less than
20 million parameters get five times the rounds. `ratio` is the median over rounds of the time divided by torch's fused
optimizer of the same family in the same round, `interval` the quartiles of that ratio; the row `null` is torch's fused
optimizer against itself, and shows what noise alone does. `share` is what a step must move (AdamW 28 bytes a parameter
in float32, SGD with momentum 20) over its time, against the bandwidth of an in-place `x.add_(y)` on 64 MiB or more,
timed in the same round; again a median. `built` is the constructor's time, `state` what the optimizer keeps, in bytes a
parameter. Packages that are not installed are named and left out. In the family `several` AdamW and SGD take turns over
the tensors.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import distributions, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import lightning_wd as wd

BYTES = {"adamw": 28, "sgdw": 20}
LARGE = 20_000_000  # parameters of a set that outgrows every cache


def shapes(name: str) -> list[tuple[int, ...]]:
    """Return the shapes of a set of parameters."""
    if name == "small":
        return [(32, 32)] * 1000
    if name == "tiny":
        return [(520, 520), (64,)] * 2
    if name == "gpt2":
        block = [
            (768,),
            (768,),
            (768, 2304),
            (2304,),
            (768, 768),
            (768,),
            (768,),
            (768,),
            (768, 3072),
            (3072,),
            (3072, 768),
        ]
        return [(50257, 768), (1024, 768), *([*block, (768,)] * 12), (768,), (768,)]
    wide = [64, 64, 128, 256, 512]
    found: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    for stage in range(4):
        before, width = wide[stage], wide[stage + 1]
        found += [(width, before, 3, 3), (width,), (width,), *([(width, width, 3, 3), (width,), (width,)] * 3)]
        found += [(width, before, 1, 1), (width,), (width,)] if stage else []
    return [*found, (1000, 512), (1000,)]


def bare(name: str) -> Any:
    """Import a module without running the ``__init__`` of its parents, which may want packages that are not here."""
    parents = name.split(".")[:-1]
    for depth in range(1, len(parents) + 1):
        parent = ".".join(parents[:depth])
        if parent not in sys.modules:
            spec = find_spec(parent)
            if spec is None or spec.submodule_search_locations is None:
                raise ModuleNotFoundError(f"No module named {parent!r}")
            sys.modules[parent] = ModuleType(parent)
            sys.modules[parent].__path__ = list(spec.submodule_search_locations)
    return import_module(name)


def bytes_moved(family: str, params: list[torch.nn.Parameter]) -> int:
    """Return the bytes that a step of a family must move."""
    halves = {"adamw": params[::2], "sgdw": params[1::2]} if family == "several" else {family: params}
    return sum(BYTES[kind] * p.numel() for kind, half in halves.items() for p in half)


class Separate:
    """Several optimizers stepped one after another, as by hand."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def state(self) -> dict[Any, Any]:
        return {p: held for optimizer in self.optimizers for p, held in optimizer.state.items()}

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def several() -> dict[str, Callable[[Any], Any]]:
    """Return AdamW and SGD on the parameters of one model, apart and as one, the first the measure of the others."""

    def torchs(p: Any) -> Any:
        adamw = torch.optim.AdamW(p[::2], lr=1e-3, weight_decay=0.01, fused=True)
        return Separate(adamw, torch.optim.SGD(p[1::2], lr=1e-3, momentum=0.9, weight_decay=0.01, fused=True))

    def ours(p: Any) -> Any:
        adamw = wd.AdamW(p[::2], lr=1e-3, weight_decay=0.01)
        return Separate(adamw, wd.SGDW(p[1::2], lr=1e-3, momentum=0.9, weight_decay=0.01, style="l2"))

    def multi(p: Any) -> Any:
        sgd: dict[str, Any] = {"params": p[1::2], "optimizer": "sgdw", "momentum": 0.9, "style": "l2"}
        return wd.MultiOptimizer([{"params": p[::2], "optimizer": "adamw"}, sgd], lr=1e-3, weight_decay=0.01)

    apart = "torch AdamW and SGD, fused"
    return {
        apart: torchs,
        f"null: {apart} again": torchs,
        "ours AdamW and SGDW (l2)": ours,
        "ours MultiOptimizer": multi,
    }


def peers(family: str) -> dict[str, Callable[[Any], Any]]:
    """Return other packages' optimizers of a family; the caller drops those that do not import."""
    if family == "several":
        return {}

    def timm(p: Any) -> Any:
        module = bare("timm.optim." + family)
        cls = module.AdamWLegacy if family == "adamw" else module.SGDW
        return cls(p, lr=1e-3, weight_decay=0.01, **({"momentum": 0.9} if family == "sgdw" else {}))

    def pytorch_optimizer(p: Any) -> Any:
        module = import_module("pytorch_optimizer")
        if family == "adamw":
            return module.StableAdamW(p, lr=1e-3, weight_decay=0.01)
        return module.SGDW(p, lr=1e-3, momentum=0.9, weight_decay=0.01)

    def optimi(p: Any) -> Any:
        module = import_module("optimi")
        if family == "adamw":
            return module.AdamW(p, lr=1e-3, weight_decay=0.01)
        return module.SGD(p, lr=1e-3, momentum=0.9, weight_decay=0.01, decouple_wd=True)

    def composer(p: Any) -> Any:
        module = bare("composer.optim.decoupled_weight_decay")
        if family == "adamw":
            return module.DecoupledAdamW(p, lr=1e-3, weight_decay=1e-5)
        return module.DecoupledSGDW(p, lr=1e-3, momentum=0.9, weight_decay=1e-5)

    kozistr = "pytorch_optimizer" + (" (StableAdamW: it has no plain one)" if family == "adamw" else "")
    return {"timm": timm, kozistr: pytorch_optimizer, "torch-optimi": optimi, "Composer": composer}


def contestants(family: str) -> dict[str, Callable[[Any], Any]]:
    """Return the optimizers of a family, the first of them the measure of the others."""
    if family == "several":
        return several()
    base: Any = torch.optim.AdamW if family == "adamw" else torch.optim.SGD
    ours: Any = wd.AdamW if family == "adamw" else wd.SGDW
    extra = {} if family == "adamw" else {"momentum": 0.9}

    def torchs(**flags: Any) -> Callable[[Any], Any]:
        return lambda p: base(p, lr=1e-3, weight_decay=0.01, **extra, **flags)

    def mine(style: str = "decoupled", lam: float = 0.01, **flags: Any) -> Callable[[Any], Any]:
        return lambda p: ours(p, lr=1e-3, weight_decay=lam, style=style, **extra, **flags)

    return {
        "torch fused": torchs(fused=True),
        "null: torch fused again": torchs(fused=True),
        "torch foreach": torchs(foreach=True),
        "torch single": torchs(foreach=False),
        "ours decoupled": mine(),
        "ours independent": mine("independent", 1e-5),
        "ours decoupled, eager": mine(compile=False),
        "ours cautious": mine(cautious_wd=True),
        "ours cautious, eager": mine(cautious_wd=True, compile=False),
        "ours toward init": mine(toward="init"),
        "ours toward init, anchor in bf16": mine(toward="init", anchor_dtype="bfloat16"),
        "ours toward init, eager": mine(toward="init", compile=False),
        "ours hyperball": mine("hyperball", 0.0),
        "ours hyperball, eager": mine("hyperball", 0.0, compile=False),
        **peers(family),
    }


def clock(work: Callable[[], Any], device: str) -> float:
    """Return the seconds that work takes, until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def versions() -> list[str]:
    """Return the other packages that are installed here, with their versions."""
    names = ("timm", "pytorch_optimizer", "torch-optimi", "mosaicml")
    return [f"{name} {version(name)}" for name in names if any(distributions(name=name))]


def state_bytes(optimizer: Any) -> int:
    """Return the bytes of all tensors that an optimizer keeps."""
    held = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return sum(v.numel() * v.element_size() for v in held)


def share_state(optimizer: Any, shared: dict[Any, torch.Tensor]) -> None:
    """Let optimizers have one momentum, one anchor and so on in common: of GPT-2 each alone would fill a gigabyte."""
    for p, held in optimizer.state.items():
        for name, value in held.items():
            if isinstance(value, torch.Tensor) and value.ndim:
                held[name] = shared.setdefault((p, name, value.dtype), value)


def progress(text: str) -> None:
    """Show what is being done, on stderr: in one line of a terminal, in lines of a log."""
    print(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, end="" if sys.stderr.isatty() else "\n", file=sys.stderr)


def build(
    family: str, name: str, params: list[torch.nn.Parameter], device: str
) -> tuple[dict[str, Any], dict[str, list[str]], list[str]]:
    """Make every optimizer and step it twice; return them, their columns `built` and `state`, and what is absent."""
    numel = sum(p.numel() for p in params)
    optimizers, columns, absent = {}, {}, []
    shared: dict[Any, torch.Tensor] = {}
    for label, make in contestants(family).items():
        progress(f"{family}, {name}: {label}")
        try:
            built = min(clock(partial(make, params), device) for _ in range(5))
            optimizer = make(params)
            assert state_bytes(optimizer) == 0 or label in peers(family), f"{label} makes state before it steps"
            for _ in range(2):  # state and compiled code, which SGD has from its second step on
                optimizer.step()
        except Exception as error:
            # A package that is missing or broken here is reported, as is a missing compiler; our own faults are fatal.
            if label not in peers(family) and not isinstance(error, wd.ConfigError):
                raise
            absent.append(f"{label} ({type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''})")
            continue
        optimizers[label] = optimizer
        if numel >= LARGE:
            share_state(optimizer, shared)
        columns[label] = [f"{built * 1e3:.2f}", f"{state_bytes(optimizer) / numel:.2f}"]
    return optimizers, columns, absent


def measure(family: str, name: str, device: str, rounds: int) -> tuple[list[list[str]], list[str]]:
    """Time a family on a set; return the rows of its table and what was left out."""
    draw = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=draw).mul_(0.02).to(device)) for s in shapes(name)]
    for p in params:
        p.grad = torch.randn_like(p) * 0.01
    numel = sum(p.numel() for p in params)
    optimizers, columns, absent = build(family, name, params, device)
    x, y = (torch.ones(max(numel, 2**24), device=device) for _ in range(2))
    times: dict[str, list[float]] = {label: [] for label in optimizers}
    bandwidths = []
    for number in range(rounds):
        progress(f"{family}, {name}: round {number + 1} of {rounds}")
        for label in random.Random(number).sample(list(optimizers), len(optimizers)):
            times[label].append(clock(optimizers[label].step, device))
        # x is read and written, y is read: three times four bytes.
        bandwidths.append(12 * x.numel() / min(clock(lambda: x.add_(y), device) for _ in range(3)))
    progress("")
    rows, moved, measure_of_all = [], bytes_moved(family, params), next(iter(times.values()))
    for label, seconds in times.items():
        low, middle, high = statistics.quantiles(
            [a / b for a, b in zip(seconds, measure_of_all, strict=True)], n=4, method="inclusive"
        )
        share = statistics.median(moved / s / b for s, b in zip(seconds, bandwidths, strict=True))
        median = f"{statistics.median(seconds) * 1e3:.2f}"
        rows.append([label, median, f"{middle:.2f}", f"{low:.2f} - {high:.2f}", f"{share:.2f}", *columns[label]])
    return rows, absent


def main() -> None:
    """Run the benchmark and print (or write) its tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sets = ["gpt2", "resnet18", "small"]
    parser.add_argument("--sets", nargs="+", default=sets, choices=[*sets, "tiny"])
    families = ["adamw", "sgdw", "several"]
    parser.add_argument("--families", nargs="+", default=families, choices=families)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="a Markdown file to write instead of the terminal")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds must be at least 2: one round has no quartiles")
    warnings.simplefilter("ignore")
    info = Path("/proc/cpuinfo")
    cpu = info.read_text() if info.exists() else ""
    model = next((line.split(":")[1].strip() for line in cpu.splitlines() if "model name" in line), "")
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{model or platform.processor()}"
    lines = [
        "# One optimizer step",
        "",
        f"`python {' '.join(sys.argv)}`",
        "",
        f"{datetime.date.today()}, {machine}, {torch.get_num_threads()} of {os.cpu_count()} cores, torch "
        f"{torch.__version__}, float32. Others: {', '.join(versions()) or 'none'}.",
        "Ratio: median over rounds against the first row in the same round; interval: its quartiles. Share: bytes that",
        "a step must move, over its time, against the bandwidth of an in-place `x.add_(y)` in the same round. Built:",
        "the constructor, in ms. State: bytes a parameter that the optimizer keeps.",
    ]
    for name in args.sets:
        numel = sum(math.prod(s) for s in shapes(name))
        rounds = args.rounds * (5 if numel < LARGE else 1)
        for family in args.families:
            load = os.getloadavg()[0]
            rows, absent = measure(family, name, args.device, rounds)
            table = [
                "",
                f"## {family}, {name} ({len(shapes(name))} tensors, {numel:,} parameters)"
                + (f", {BYTES[family]} bytes each" if family in BYTES else ""),
                "",
                f"{rounds} rounds; load average {load:.1f} before, {os.getloadavg()[0]:.1f} after.",
                "",
                "| optimizer | ms | ratio | interval | share | built | state |",
                "|---|---|---|---|---|---|---|",
                *("| " + " | ".join(row) + " |" for row in rows),
                *(["", "Not measured: " + "; ".join(absent) + "."] if absent else []),
            ]
            print("\n".join(table), flush=True)
            lines += table
            if args.out:  # after each table, so that an interrupted run keeps what it has
                args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
