"""Fabric: masks, decay styles and a schedule without a LightningModule or a Trainer.

python docs/examples/fabric.py
"""

from __future__ import annotations

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_wd as wd

EPOCHS = 20


def main() -> float:
    """Train a small net on noise-free lines; return the last loss."""
    fabric = L.Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    x = torch.randn(256, 4)
    data = DataLoader(TensorDataset(x, x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]])), batch_size=32)
    model = nn.Sequential(nn.Linear(4, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 1))
    # Fabric has no trainer to ask, so we pass the number of steps, which the schedule and the normalized amount need.
    built = wd.configure_optimizers(
        model,
        {"name": "adamw", "lr": 2e-2, "decay": {"style": "independent", "normalized": 0.05}},
        {"name": "warmup_cosine", "warmup_steps": 4},
        total_steps=EPOCHS * len(data),
    )
    fabric.print(*(f"{row.name}: {row.group} ({row.reason})" for row in built["optimizer"].decay_plan), sep="\n")
    schedule = built["lr_scheduler"]["scheduler"]
    model, optimizer = fabric.setup(model, built["optimizer"])
    loader = fabric.setup_dataloaders(data)
    loss = torch.tensor(torch.inf)
    for _ in range(EPOCHS):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            fabric.backward(loss)
            optimizer.step()
            schedule.step()
    # fabric.load checks the state as Trainer does: a different style, group or member is a CheckpointMismatchError
    fabric.print(f"loss {loss.item():.4f}")
    return loss.item()


if __name__ == "__main__":
    main()
