"""Throughput of the recipes as a user runs them, against a plain PyTorch loop of the same model and data.

Run it with: python benchmarks/recipes.py DATA [ROUNDS]
DATA holds fashion_mnist/ and tinyshakespeare/; absent files are downloaded.

The recipe runs as it is: Lightning, callbacks, logger, progress bar, metrics, this package's optimizer. The plain loop
has the same tensors in memory, the same augmentation, torch's own fused optimizer and a cosine schedule, and reads the
loss every 10 steps. They take turns, so that a busy machine slows both; above 1 the recipe is faster. Forward and
backward are the same work, yet on a shared machine they vary by more than all the rest takes; so the last column gives
both the mean of their model times and compares the rest: loop, data, optimizer, metrics, logs.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
from models.gpt import GPT  # noqa: E402
from models.resnet import ResNet  # noqa: E402

WARM_UP, STEPS = 10, 40  # steps of a run that are ignored, then timed


class Clock:
    """Times all optimizer steps of the process, whoever takes them, and the forward and backward in them.

    Args:
        models: classes of the models.
    """

    def __init__(self, *models: Any) -> None:
        self.ends: list[float] = []
        self.inside = 0.0
        self.insides: list[float] = []
        register_optimizer_step_post_hook(self._note)
        for owner, name in [(model, "forward") for model in models] + [(Tensor, "backward")]:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _note(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())
        self.insides.append(self.inside)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            self.inside += time.perf_counter() - begin
            return result

        return timed

    def per_step(self) -> tuple[float, float]:
        """Return the mean milliseconds of a step, and of its forward and backward, since the last call."""
        (ends, insides), self.ends, self.insides = (self.ends[WARM_UP:], self.insides[WARM_UP:]), [], []
        assert len(ends) == STEPS
        return 1e3 * (ends[-1] - ends[0]) / (STEPS - 1), 1e3 * (insides[-1] - insides[0]) / (STEPS - 1)


def batches(cfg: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the recipe's batches without a DataLoader."""
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
    """Time both in turn and print the medians."""
    folders = {"fashion_resnet_sgdw": root / "fashion_mnist", "shakespeare_gpt": root / "tinyshakespeare"}
    clock = Clock(GPT, ResNet)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} threads\n")
    print("| experiment | recipe ms/step | plain ms/step | plain / recipe | lowest, highest | at equal model time |")
    print("|---|---|---|---|---|---|", flush=True)
    for experiment, folder in folders.items():
        overrides = [
            f"experiment={experiment}",
            f"data.root={folder}",
            f"trainer.max_steps={WARM_UP + STEPS}",
            "+trainer.limit_test_batches=1",
        ]
        with initialize_config_dir(str(ROOT / "recipes/conf"), version_base="1.3"):
            cfg = compose("train", overrides)
        sys.argv = ["train.py", "--config-path", str(ROOT / "recipes/conf"), *overrides]
        runs: dict[bool, list[tuple[float, float]]] = {True: [], False: []}  # whether it is the recipe -> times
        for number in range(rounds):
            for ours in (True, False) if number % 2 else (False, True):
                with contextlib.redirect_stdout(io.StringIO()):
                    recipe.main() if ours else plain(cfg)
                runs[ours].append(clock.per_step())
        ratios = sorted(p / r for (p, _), (r, _) in zip(runs[False], runs[True], strict=True))
        recipe_rest, plain_rest = (statistics.median(step - model for step, model in runs[o]) for o in (True, False))
        model_ms = statistics.median(model for _, model in runs[True] + runs[False])
        recipe_ms, plain_ms = (statistics.median(step for step, _ in runs[o]) for o in (True, False))
        print(
            f"| {experiment} | {recipe_ms:.1f} | {plain_ms:.1f} | {statistics.median(ratios):.3f} "
            f"| {ratios[0]:.3f}, {ratios[-1]:.3f} | {(model_ms + plain_rest) / (model_ms + recipe_rest):.3f} "
            f"({model_ms:.1f} + {plain_rest:.1f} to {model_ms:.1f} + {recipe_rest:.1f} ms) |",
            flush=True,
        )


if __name__ == "__main__":
    data_root = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the recipe writes its run there
        main(data_root, int(sys.argv[2]) if len(sys.argv) > 2 else 9)
