"""Steps a second of 1 and 2 processes: raw torch DDP, Lightning's DDPStrategy, ours. Model and batches are the same.

Every variant leaves biases out of the decay, torch's AdamW by two groups made by hand.

Times on a shared machine differ by some percent from one run to the next (the null row shows by how much), so Python
calls are counted too: a strategy that makes none of its own in a step costs a step nothing. The optimizers' steps are
also timed alone, each beside torch's in the same round, which a busy machine disturbs less.

Run it with: python benchmarks/ddp.py
"""

from __future__ import annotations

import logging
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import lightning_wd as wd
from lightning_wd.distributed import HydraDDPStrategy

STEPS, WARM_UP, ROUNDS, BATCH, WIDTH = 40, 5, 25, 64, 512


def network() -> nn.Module:
    """A multilayer perceptron of 0.8 million weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)
    )


def torch_adamw(model: nn.Module) -> torch.optim.Optimizer:
    """torch's fused AdamW with biases in a group without decay."""
    biases = [p for p in model.parameters() if p.ndim < 2]
    weights = [p for p in model.parameters() if p.ndim >= 2]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=1e-2, fused=True)


def now() -> tuple[float, float]:
    """Seconds on the wall's clock and of this process's CPU time, which others' work on the machine hardly touches."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    """Seconds on both clocks since the start."""
    wall, cpu = now()
    return wall - start[0], cpu - start[1]


class Calls:
    """Counts Python calls of this thread between its two methods."""

    def __init__(self) -> None:
        self.count = 0

    def begin(self) -> None:
        """Count from here."""
        self.count = 0
        sys.setprofile(self._note)

    def end(self) -> None:
        """Count to here."""
        sys.setprofile(None)

    def _note(self, frame: Any, event: str, argument: Any) -> None:
        self.count += event == "call"


class Stopwatch(L.Callback):
    """Seconds, or calls, from the end of the warm-up to the end of training.

    Args:
        calls: counts Python calls where it is given.
    """

    seconds = (0.0, 0.0)

    def __init__(self, calls: Calls | None) -> None:
        self.calls = calls

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        if index == WARM_UP:
            dist.barrier()
            self._start = now()
            if self.calls:
                self.calls.begin()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.calls:
            self.calls.end()
        self.seconds = since(self._start)


class Lit(L.LightningModule):
    """The network under Lightning; ``ours`` configures the optimizer through the package."""

    def __init__(self, ours: bool) -> None:
        super().__init__()
        self.net, self.ours = network(), ours

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        if self.ours:
            return wd.configure_optimizers(self, {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2})
        return torch_adamw(self)


def raw(data: DataLoader[Any], calls: Calls | None) -> tuple[float, float]:
    """Seconds of a bare loop around DistributedDataParallel and torch's fused AdamW."""
    model = DistributedDataParallel(network())
    optimizer = torch_adamw(model)
    start = (0.0, 0.0)
    for index, batch in enumerate(data):
        if index == WARM_UP:
            dist.barrier()
            start = now()
            if calls:
                calls.begin()
        optimizer.zero_grad()
        model(batch[0]).square().mean().backward()
        optimizer.step()
    if calls:
        calls.end()
    return since(start)


def lightning(
    data: DataLoader[Any], calls: Calls | None, strategy: type[DDPStrategy], ours: bool
) -> tuple[float, float]:
    """Seconds of the same under Lightning."""
    watch = Stopwatch(calls)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        strategy=strategy(),
        max_epochs=1,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(Lit(ours), data)
    return watch.seconds


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median, with its 95 % interval by the bootstrap."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(1000))
    return statistics.median(values), medians[25], medians[974]


def ratio(seconds: list[tuple[float, float]], base: list[tuple[float, float]]) -> str:
    """The median over rounds of the ratio of CPU times, with its interval."""
    median, low, high = interval([a / b for (_, a), (_, b) in zip(seconds, base, strict=True)])
    return f"{median:.3f} [{low:.3f}, {high:.3f}]"


def steps_alone() -> str:
    """What an optimizer's step on the network costs beyond torch's AdamW, by CPU time, as a share of a training step.

    A round times one forward and backward pass and one step of each optimizer, in an order drawn anew.
    """
    modules = {"torch's AdamW": Lit(ours=False), "null: the same again": Lit(ours=False), "our AdamW": Lit(ours=True)}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name, module in modules.items():
        configured = module.configure_optimizers()
        optimizers[name] = configured["optimizer"] if module.ours else configured
    batch = torch.randn(BATCH, WIDTH)
    passes: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    for number in range(1000):
        for name in random.Random(number).sample(list(modules), len(modules)):
            optimizers[name].zero_grad()
            start = time.process_time()
            modules[name].training_step([batch], 0).backward()
            passes.append(time.process_time() - start)
            start = time.process_time()
            optimizers[name].step()
            seconds[name].append(time.process_time() - start)
    torchs = seconds["torch's AdamW"]
    whole = statistics.median(passes) + statistics.median(torchs)
    lines = [
        f"Without DDP, a step of {1e3 * whole:.2f} ms, {1e3 * statistics.median(torchs):.2f} of it torch's AdamW:",
        "",
    ]
    for name in list(modules)[1:]:
        extra = interval([a - b for a, b in zip(seconds[name], torchs, strict=True)])
        microseconds = "{:.0f} [{:.0f}, {:.0f}] us".format(*(1e6 * value for value in extra))
        share = "{:.2f} [{:.2f}, {:.2f}] %".format(*(100 * value / whole for value in extra))
        lines.append(f"- {name}: {microseconds} more, {share} of the step")
    return "\n".join(lines)


def worker() -> None:
    """Time the variants in turn, so that a busy machine slows all of them alike; rank 0 prints."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    data = DataLoader(TensorDataset(torch.randn((STEPS + WARM_UP) * BATCH, WIDTH)), BATCH)
    variants: dict[str, Callable[[Calls | None], tuple[float, float]]] = {
        "raw torch DDP": lambda calls: raw(data, calls),
        "Lightning, DDPStrategy, torch's AdamW": lambda calls: lightning(data, calls, DDPStrategy, ours=False),
        "null: the same again": lambda calls: lightning(data, calls, DDPStrategy, ours=False),
        "Lightning, HydraDDPStrategy, torch's AdamW": lambda calls: lightning(
            data, calls, HydraDDPStrategy, ours=False
        ),
        "Lightning, HydraDDPStrategy, our AdamW": lambda calls: lightning(data, calls, HydraDDPStrategy, ours=True),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for number in range(ROUNDS):
        for name in random.Random(number).sample(list(variants), len(variants)):  # all ranks draw the same order
            times[name].append(variants[name](None))
    calls = {}
    for name, variant in variants.items():
        counter = Calls()
        variant(counter)
        calls[name] = counter.count / STEPS
    if dist.get_rank() == 0:
        base, plain = times["raw torch DDP"], times["Lightning, DDPStrategy, torch's AdamW"]
        for name, seconds in times.items():
            speed = STEPS / min(wall for wall, _ in seconds)
            cells = (f"{speed:.0f}", ratio(seconds, base), ratio(seconds, plain), f"{calls[name]:.1f}")
            row = (dist.get_world_size(), name, *cells)
            print("| " + " | ".join(map(str, row)) + " |", flush=True)
    dist.destroy_process_group()


def main() -> None:
    """Print a table; one torchrun for each number of processes."""
    print(f"torch {torch.__version__}, lightning {L.__version__}, {platform.machine()}, {os.cpu_count()} CPUs, gloo,")
    print(f"batch {BATCH} a process, one thread each, {ROUNDS} rounds of {STEPS} steps.\n")
    print("| processes | what | steps/s, best | CPU time / raw DDP | CPU time / Lightning DDP | Python calls / step |")
    print("|---|---|---|---|---|---|", flush=True)
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, __file__], check=True, env=environment, stderr=subprocess.DEVNULL)
    torch.set_num_threads(1)
    print(f"\n{steps_alone()}")


if __name__ == "__main__":
    worker() if "RANK" in os.environ else main()
