"""Throughput of the recipes as a user runs them, against a plain PyTorch loop of the same model and data.

Run it with: python benchmarks/recipes.py DATA [ROUNDS]    (DATA holds fashion_mnist/ and tinyshakespeare/, or will)

The recipe runs whole: Lightning, callbacks, logger, progress bar, metrics, this package's optimizer. The plain loop
has the same tensors in memory, the same augmentation, torch's own fused optimizer and a cosine schedule, and reads the
loss every 10 steps. Both take turns, so that a busy machine slows both; above 1 the recipe is the faster one. Where
other work shares the machine, the ratio of CPU times with OMP_NUM_THREADS=1 is the steadier one.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "recipes"))

import train as recipe  # noqa: E402
from data.images import flip_and_shift, normalise  # noqa: E402

WARM_UP, STEPS = 10, 60  # steps of a run that are left out, and that are timed


class Clock:
    """Times of all optimizer steps of the process, whoever takes them."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []
        register_optimizer_step_post_hook(lambda *_: self.times.append((time.perf_counter(), time.process_time())))

    def per_step(self) -> tuple[float, float]:
        """Mean wall and CPU milliseconds of a step since the last call, without the first steps."""
        times, self.times = self.times[WARM_UP:], []
        assert len(times) == STEPS
        wall, cpu = (1e3 * (last - first) / (STEPS - 1) for first, last in zip(times[0], times[-1], strict=True))
        return wall, cpu


def batches(cfg: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The recipe's batches, made the plain way."""
    data = instantiate(cfg.data)
    data.prepare_data()
    data.setup("fit")
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data.train), generator=generator).split(cfg.data.batch_size)
    for rows in order:
        if hasattr(data.train, "pieces"):
            text = data.train.pieces[rows].long()
            yield text[:, :-1], text[:, 1:]
        else:
            images, labels = (tensor[rows] for tensor in data.train.tensors)
            yield normalise(flip_and_shift(images, data.padding, generator), data.mean, data.std), labels


def plain(cfg: Any) -> None:
    """Train by hand."""
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    lr, decay = cfg.optimizer.lr, cfg.optimizer.weight_decay
    if cfg.optimizer.name == "sgdw":
        optimizer: Any = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=decay, fused=True)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, WARM_UP + STEPS)
    model.train()
    for step, (inputs, targets) in zip(range(WARM_UP + STEPS), batches(cfg), strict=False):
        optimizer.zero_grad()
        logits = model(inputs)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            print(loss.item())


def main(root: Path, rounds: int) -> None:
    """Time both kinds of run in turn and print the medians."""
    folders = {"fashion_resnet_sgdw": root / "fashion_mnist", "shakespeare_gpt": root / "tinyshakespeare"}
    clock = Clock()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} threads")
    print("| experiment | time | recipe ms/step | plain ms/step | plain / recipe | lowest, highest |")
    print("|---|---|---|---|---|---|")
    for experiment, folder in folders.items():
        overrides = [
            f"experiment={experiment}",
            f"data.root={folder}",
            f"trainer.max_steps={WARM_UP + STEPS}",
            "+trainer.limit_test_batches=1",
        ]
        with initialize_config_dir(str(ROOT / "recipes/conf"), version_base="1.3"):
            cfg = compose("train", overrides)
        ours, theirs = [], []
        for _ in range(rounds):
            with contextlib.redirect_stdout(io.StringIO()):
                sys.argv = ["train.py", "--config-path", str(ROOT / "recipes/conf"), *overrides]
                recipe.main()
                ours.append(clock.per_step())
                plain(cfg)
                theirs.append(clock.per_step())
        for index, kind in enumerate(("wall", "CPU")):
            recipe_ms, plain_ms = [run[index] for run in ours], [run[index] for run in theirs]
            ratios = sorted(p / r for p, r in zip(plain_ms, recipe_ms, strict=True))
            print(
                f"| {experiment} | {kind} | {statistics.median(recipe_ms):.1f} | {statistics.median(plain_ms):.1f} "
                f"| {statistics.median(ratios):.3f} | {ratios[0]:.3f}, {ratios[-1]:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    data_root = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the recipe writes its run there
        main(data_root, int(sys.argv[2]) if len(sys.argv) > 2 else 9)
