"""Models trained in several ways of distributing them; for tests/distributed/test_equality.py.

torchrun --standalone --nproc_per_node=2 tests/ddp_app/equality.py FOLDER WAY...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import lightning_wd as wd
from lightning_wd.distributed import HydraDDPStrategy, HydraFSDP2Strategy
from lightning_wd.optimizers import Muon

GLOBAL_BATCH, ROWS, EPOCHS = 16, 64, 3
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw", "lr": 0.02, "decay": {"style": "independent", "normalized": 0.3}},
    "sgdw": {"name": "sgdw", "lr": 0.1, "momentum": 0.9, "decay": {"style": "decoupled", "timescale_epochs": 5.0}},
    "adam_l2": {"name": "adam_l2", "lr": 0.02, "weight_decay": 0.1},
    "cautious": {
        "name": "adamw",
        "lr": 0.01,  # tuned at a batch of 4 and 48 steps: 0.02 at the 16 and 12 of here, with weight_decay 1.0
        "weight_decay": 0.5,
        "decay": {"style": "decoupled", "cautious": True},
        "reference": {"global_batch": 4, "steps": 48},
    },
    "muon": {"name": "muon", "lr": 0.02, "weight_decay": 0.1},
    "several": {
        "name": "adamw",
        "lr": 0.02,
        "weight_decay": 0.1,
        "mask": {"rules": [{"name": "*.bias", "optimizer": "sgdw", "lr": 0.1}, {"ndim": 1, "optimizer": "nadamw"}]},
    },
    "toward": {"name": "adamw", "lr": 0.02, "weight_decay": 1.0, "decay": {"toward": "init"}},
    "hyperball": {"name": "sgdw", "lr": 0.1, "decay": {"style": "hyperball"}},
}
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
# way -> batch size of one process, accumulation
WAYS = {"single": (16, 1), "ddp": (8, 1), "ddp_accumulated": (4, 2), "fsdp2": (8, 1)}


class Net(L.LightningModule):
    """Linear, LayerNorm, Tanh, Linear, in float64 so that only rounding of the last digits can differ."""

    def __init__(self, optimizer: dict[str, Any], shard: bool) -> None:
        super().__init__()
        self.optimizer, self.shard = optimizer, shard
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 4)).double()

    def configure_model(self) -> None:
        if self.shard:
            from torch.distributed.fsdp import fully_shard

            assert self.device_mesh is not None
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, self.optimizer)


def train(optimizer: str, way: str) -> dict[str, Any]:
    """Train at one global batch; return the weights, the plan and what each group decays by."""
    batch, accumulated = WAYS[way]
    strategies = {"single": SingleDeviceStrategy, "fsdp2": HydraFSDP2Strategy}
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1 if way == "single" else 2,
        strategy=strategies.get(way, HydraDDPStrategy)(),
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulated,
        use_distributed_sampler=False,
        callbacks=[wd.DecayMonitor(4)],
        **QUIET,
    )
    rows = torch.randn(ROWS, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    module = Net(OPTIMIZERS[optimizer], shard=way == "fsdp2")
    data = TensorDataset(rows[:, :6], rows[:, 6:])
    # in order: Lightning's own sampler shuffles, and then each way would see other batches
    sampler: DistributedSampler[Any] = DistributedSampler(
        data, trainer.num_devices, int(os.environ.get("RANK", "0")), shuffle=False
    )
    trainer.fit(module, DataLoader(data, batch, sampler=sampler))
    weights = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in module.named_parameters()}
    (made,) = trainer.optimizers
    groups = [{key: group[key] for key in ("name", "lr", "weight_decay", "style")} for group in made.param_groups]
    plan = [(row.name, row.wd_mult, row.lr_mult, row.style, row.group, row.reason) for row in wd.plan_decay(module)]
    weights = {name: value.detach().clone() for name, value in weights.items()}
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"weights": weights, "groups": groups, "plan": plan, "steps": trainer.global_step, "metrics": metrics}


class Parts(L.LightningModule):
    """Parts of which ``shared`` is used on both ranks, ``one`` on rank 0, ``none`` nowhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("shared", "one", "none")})

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        out = self.parts["shared"](batch[0])
        return (self.parts["one"](out) if self.global_rank == 0 else out).square().mean()

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, {"name": "adamw", "lr": 0.01, "weight_decay": 1.0})


def train_parts() -> dict[str, dict[str, torch.Tensor]]:
    """Train under DDP and return the weights before and after."""
    strategy = HydraDDPStrategy(find_unused_parameters=True)
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, max_steps=10, **QUIET)
    module = Parts()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(40, 4)), batch_size=2))
    return {"before": before, "after": {name: p.detach().clone() for name, p in module.named_parameters()}}


def train_matrices(mesh: DeviceMesh | None) -> dict[str, list[Any]]:
    """Step Muon over a convolution, a fused QKV and experts, in shards of a mesh; return the whole and what is held."""
    source = torch.Generator().manual_seed(0)
    shapes = {(5, 3, 2, 2): 1, (12, 4): 3, (4, 3, 6): 4}  # five rows are no two equal shards

    def drawn(shape: tuple[int, ...]) -> torch.Tensor:
        whole = torch.randn(shape, generator=source)
        return whole if mesh is None else distribute_tensor(whole, mesh, [Shard(0)])

    params = {shape: nn.Parameter(drawn(shape)) for shape in shapes}
    groups = [{"params": [p], "split": shapes[shape]} for shape, p in params.items()]
    optimizer = Muon(groups, lr=0.1, weight_decay=0.5, cautious_wd=True)
    for _ in range(3):
        for shape, p in params.items():
            p.grad = drawn(shape)
        optimizer.step()
    buffers = [optimizer.state[p]["momentum_buffer"] for p in params.values()]
    return {
        "weights": [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in params.values()],
        "held": [b.to_local().shape[0] if isinstance(b, DTensor) else b.shape[0] for b in buffers],
    }


def reload_shards(mesh: DeviceMesh | None) -> list[torch.Tensor]:
    """Save several optimizers over shards by torch.distributed.checkpoint, load that into new ones, and go on."""
    source = torch.Generator().manual_seed(0)

    def drawn() -> list[torch.Tensor]:
        whole = [torch.randn(shape, generator=source, dtype=torch.float64) for shape in ((8, 5), (8,), (5, 8))]
        return whole if mesh is None else [distribute_tensor(each, mesh, [Shard(0)]) for each in whole]

    def made(values: list[torch.Tensor]) -> tuple[nn.Module, Any]:
        module = nn.ParameterDict({f"w{i}": nn.Parameter(value) for i, value in enumerate(values)})
        rules = [{"name": "w1", "optimizer": "sgdw", "momentum": 0.9}, {"name": "w2", "optimizer": "nadamw"}]
        config = {"name": "adamw", "lr": 0.1, "weight_decay": 0.5, "mask": {"base": "all", "rules": rules}}
        return module, wd.configure_optimizers(module, config)["optimizer"]

    def steps(module: nn.Module, optimizer: Any) -> None:
        for _ in range(3):
            for p, grad in zip(module.parameters(), drawn(), strict=True):
                p.grad = grad
            optimizer.step()

    module, optimizer = made(drawn())
    steps(module, optimizer)
    if mesh is not None:
        saved = get_optimizer_state_dict(module, optimizer)
        module, optimizer = made([p.detach().clone() for p in module.parameters()])
        set_optimizer_state_dict(module, optimizer, saved)
    steps(module, optimizer)
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in module.parameters()]


def main(folder: Path, ways: list[str]) -> None:
    rank = os.environ["RANK"]
    for way in ways:
        for optimizer in OPTIMIZERS:
            torch.save(train(optimizer, way), folder / f"{optimizer}-{way}-{rank}.pt")
    torch.save(train_parts(), folder / f"parts-{rank}.pt")
    mesh = init_device_mesh("cpu", (2,))
    torch.save(train_matrices(mesh), folder / f"matrices-{rank}.pt")
    torch.save(reload_shards(mesh), folder / f"reloaded-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
