"""The cost of DecayMonitor: a measured step, a step in between, and their share of a training step.

python benchmarks/monitor.py                        # a 25-million-parameter transformer on this machine
python benchmarks/monitor.py --layers 12 --width 768 --repeats 3
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import lightning_wd as wd
from lightning_wd.callbacks.decay_monitor import DecayMonitor
from lightning_wd.callbacks.measures import Snapshot


def median_ms(function: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call in milliseconds, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=1024, help="in a batch, in sequences of 128")
    parser.add_argument("--every", type=int, default=50, help="steps between measurements")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(args.width, args.width // 64, 4 * args.width, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, args.layers, enable_nested_tensor=False)
    optimizer = wd.configure_optimizers(model, {"name": "adamw", "weight_decay": 0.1})["optimizer"]
    batch = torch.randn(args.tokens // 128, 128, args.width)

    def train() -> None:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    ds = [1e-4, 0.0]
    monitor = DecayMonitor(args.every)
    monitor._steps, monitor._shrink = [1], [[]]

    def measure() -> None:
        snapshot = Snapshot(optimizer)
        snapshot.measure(optimizer, list(ds))

    step = median_ms(train, args.repeats)
    update = median_ms(optimizer.step, args.repeats)
    measured = median_ms(measure, args.repeats)
    between = median_ms(lambda: monitor._after_step(None, 0, optimizer), 200)  # type: ignore[arg-type]
    numel = sum(p.numel() for p in model.parameters())
    cost = measured / args.every + between
    print(
        f"{numel / 1e6:.1f} M parameters in {len(list(model.parameters()))} tensors, {torch.get_num_threads()} threads"
    )
    print(f"training step (forward, backward, update)  {step:10.2f} ms")
    print(f"update alone                               {update:10.2f} ms")
    print(f"a measurement                              {measured:10.2f} ms")
    print(f"a step between measurements                {between:10.4f} ms")
    shares = f"{100 * cost / step:.2f} % of a training step, {100 * cost / update:.2f} % of the update alone"
    print(f"every {args.every} steps: {shares}")


if __name__ == "__main__":
    main()
