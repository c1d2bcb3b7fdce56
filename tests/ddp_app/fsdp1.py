"""FSDP1 with original parameters; for tests/distributed/test_fsdp1.py.

torchrun --standalone --nproc_per_node=2 tests/ddp_app/fsdp1.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils.data import DataLoader, DistributedSampler

import lightning_wd as wd

GLOBAL_BATCH, ROWS, EPOCHS = 8, 16, 4
# ndim and lr_mult are of the original shapes and names, whatever piece of a tensor a process holds.
MASK = {"rules": [{"ndim": 3, "wd_mult": 0}, {"name": "*.blocks.1.*", "lr_mult": 0.5}]}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw", "lr": 0.02, "weight_decay": 0.5, "mask": MASK},
    "sgdw": {"name": "sgdw", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.5, "mask": MASK},
    "adam_l2": {"name": "adam_l2", "lr": 0.02, "weight_decay": 0.1, "mask": MASK},
}


class Block(nn.Module):
    """A norm layer with its bias, and a matrix, in a unit of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.linear(self.norm(x))
        return out


class Net(nn.Module):
    """Tensors of one to three dimensions, with an uneven number of elements for two processes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pos_embed = nn.Parameter(torch.randn(1, 3, 6))
        self.scale = nn.Parameter(torch.ones(()).reshape(1))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.mix = nn.Parameter(torch.randn(6, 6))  # no layer's: only its shape tells it from a vector
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 3, 6) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x @ self.mix * self.scale).mean(1)
        return out


UNITS = ModuleWrapPolicy({Block})


class Lit(L.LightningModule):
    def __init__(self, optimizer: dict[str, Any]) -> None:
        super().__init__()
        self.net, self.config = Net(), optimizer

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, self.config)


class FSDPOnCPU(FSDPStrategy):
    """Lightning's FSDPStrategy wraps for a GPU only, though FSDP1 runs on a CPU that it is told of."""

    def _setup_model(self, model: nn.Module) -> FullyShardedDataParallel:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)


class Save(L.Callback):
    """Save when training ends, while the model is still in pieces."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.path is not None:
            trainer.save_checkpoint(self.path)


def train(
    optimizer: str, strategy: Any, epochs: int, *, save: Path | None = None, ckpt: Path | None = None
) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", devices=2 if isinstance(strategy, FSDPStrategy) else 1, strategy=strategy,
        max_epochs=epochs, callbacks=[Save(save)], use_distributed_sampler=False, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data: Any = torch.randn(ROWS, 18, generator=torch.Generator().manual_seed(1))
    rank, world = (trainer.global_rank, trainer.world_size) if trainer.world_size > 1 else (0, 1)
    sampler: Any = DistributedSampler(data, world, rank, shuffle=False)
    trainer.fit(Lit(OPTIMIZERS[optimizer]), DataLoader(data, GLOBAL_BATCH // world, sampler=sampler), ckpt_path=ckpt)
    return trainer


def strategy() -> FSDPOnCPU:
    """Pieces stay pieces in the checkpoint: torch's FSDP1 cannot gather a whole one on a CPU, whatever optimizer."""
    return FSDPOnCPU(auto_wrap_policy=UNITS, process_group_backend="gloo", state_dict_type="sharded")


def weights(trainer: L.Trainer) -> dict[str, Tensor]:
    """The whole weights, on each rank."""
    if not isinstance(trainer.model, FullyShardedDataParallel):
        return {name: p.detach().clone() for name, p in trainer.lightning_module.named_parameters()}
    with FullyShardedDataParallel.summon_full_params(trainer.model):
        named = trainer.lightning_module.named_parameters()
        return {name.replace("_fsdp_wrapped_module.", ""): p.detach().clone() for name, p in named}


def record(trainer: L.Trainer) -> dict[str, Any]:
    (optimizer,) = trainer.optimizers
    keys = ("name", "lr", "weight_decay", "style", "param_names")
    groups = [{key: group[key] for key in keys} for group in optimizer.param_groups]
    plan: Any = optimizer.decay_plan  # type: ignore[attr-defined]
    pieces = {row.name: list(row.param.shape) for row in plan}
    return {"weights": weights(trainer), "groups": groups, "plan": plan.to_dict(), "pieces": pieces}


def by_hand() -> dict[str, Any]:
    """torch's own loop: one optimizer from before wrapping, one from after, a step each; and what is refused."""
    cpu, made = torch.device("cpu"), {}
    for when in ("before", "after"):
        net = Net()
        optimizer = wd.configure_optimizers(net, OPTIMIZERS["adamw"])["optimizer"]
        wrapped = FullyShardedDataParallel(net, auto_wrap_policy=UNITS, use_orig_params=True, device_id=cpu)
        if when == "after":
            optimizer = wd.configure_optimizers(wrapped, OPTIMIZERS["adamw"])["optimizer"]
        wrapped(torch.ones(2, 18)).sum().backward()
        optimizer.step()
        pieces = [p.detach().clone() for p in wrapped.parameters()]
        made[when] = {"plan": optimizer.decay_plan.to_dict(), "pieces": pieces, "states": len(optimizer.state)}
    flat = FullyShardedDataParallel(Net(), use_orig_params=False, device_id=cpu)
    within = Net()
    FullyShardedDataParallel(within, use_orig_params=True, device_id=cpu)
    refused = {}
    for case, module in (("flat", flat), ("within", within)):
        try:
            wd.plan_decay(module, MASK)
        except wd.MaskError as error:
            refused[case] = str(error)
    return {**made, "refused": refused}


def main(folder: Path) -> None:
    rank = os.environ["RANK"]
    for name in OPTIMIZERS:
        torch.save(record(train(name, strategy(), EPOCHS)), folder / f"{name}-{rank}.pt")
        train(name, strategy(), EPOCHS // 2, save=folder / f"{name}.ckpt")
        resumed = train(name, strategy(), EPOCHS, ckpt=folder / f"{name}.ckpt")
        torch.save(record(resumed), folder / f"{name}-resumed-{rank}.pt")
    torch.save(by_hand(), folder / f"by_hand-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
