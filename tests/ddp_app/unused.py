"""A module with parts that no rank or only one rank uses, under DDP; for tests/distributed/test_equality.py.

torchrun --standalone --nproc_per_node=2 tests/ddp_app/unused.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_wd as wd
from lightning_wd.distributed import HydraDDPStrategy


class Parts(L.LightningModule):
    """``shared`` is used on both ranks, ``one`` on rank 0, ``none`` nowhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("shared", "one", "none")})

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        out = self.parts["shared"](batch[0])
        return (self.parts["one"](out) if self.global_rank == 0 else out).square().mean()

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, {"name": "adamw", "lr": 0.01, "weight_decay": 1.0})


def main(folder: Path) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=HydraDDPStrategy(find_unused_parameters=True),
        max_steps=10,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Parts()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(40, 4)), batch_size=2))
    after = {name: p.detach().clone() for name, p in module.named_parameters()}
    torch.save({"before": before, "after": after}, folder / f"unused-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
