"""A Hydra app whose ranks each write what they ran with, for tests/distributed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import hydra
import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader, TensorDataset

from lightning_wd.distributed import HydraDDPStrategy

LEFT_BEHIND = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")


class Ended(Callback):
    """Writes how Hydra says that the job has ended."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: object) -> None:
        end = {"status": job_return.status.name, "value": repr(job_return._return_value)}
        file = f"end{os.environ.get('LOCAL_RANK', '0')}.json"
        Path(config.hydra.runtime.output_dir, file).write_text(json.dumps(end))


class Linear(L.LightningModule):
    def __init__(self, foo: int, fail: str) -> None:
        super().__init__()
        self.foo, self.fail = foo, fail
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        failing = {"rank0": 0, "caught": 0, "rank1": 1}.get(self.fail)
        if self.global_rank == failing and index == 1:
            Path(HydraConfig.get().runtime.output_dir, "raised").touch()
            raise RuntimeError(f"boom on rank {self.global_rank}")
        return (self.layer(batch[0]) * self.foo).square().mean()

    def test_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("test/loss", self.layer(batch[0]).square().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@hydra.main(version_base="1.3", config_path="conf", config_name="app")
def main(cfg: DictConfig) -> float:
    before = [name for name in LEFT_BEHIND if name in os.environ]
    initialized = torch.distributed.is_initialized()
    L.seed_everything(3)
    if cfg.resolve == cfg.foo:
        OmegaConf.resolve(cfg)
    if cfg.differ:
        cfg.foo += int(os.environ["RANK"])
    if cfg.fail == "early" and os.environ.get("LOCAL_RANK") == "1":
        Path(HydraConfig.get().runtime.output_dir, "raised").touch()
        raise RuntimeError("early boom")
    strategy = HydraDDPStrategy() if cfg.processes > 1 else SingleDeviceStrategy()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=cfg.processes,
        strategy=strategy,
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(TensorDataset(torch.arange(16.0).reshape(8, 2)), batch_size=2)
    module = Linear(cfg.foo, cfg.fail)
    try:
        trainer.fit(module, data)
    except RuntimeError:
        if cfg.fail != "caught":
            raise
        return float("inf")  # what a search makes of a bad trial
    trainer.test(module, data, verbose=False)  # the same processes serve the whole job
    if cfg.fail == "late" and trainer.global_rank == 1:
        raise RuntimeError("late boom")
    record = {
        "config": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "resolved": not OmegaConf.is_interpolation(cfg, "folder"),
        "cwd": os.getcwd(),
        "before": before,
        "initialized": initialized,
        "world_size": trainer.world_size,
        "num_nodes": trainer.num_nodes,
        "tested": float(trainer.callback_metrics["test/loss"]),
        "weights": torch.cat([p.flatten() for p in module.parameters()]).tolist(),
    }
    folder = Path(HydraConfig.get().runtime.output_dir)
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(record))
    return float(cfg.foo)


if __name__ == "__main__":
    main()
