"""What a job refuses before it trains: numbers out of range, a model that does not fit the data, lone processes."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from omegaconf import DictConfig, OmegaConf

from lightning_wd.distributed import HydraDDPStrategy, HydraFSDP2Strategy
from lightning_wd.errors import ConfigError, explain

# The whole numbers of a config: the least that each may be (-1 is "no limit"), and whether it may be null.
WHOLE_NUMBERS = {
    "seed": (0, True),
    "data.seed": (0, False),
    "data.batch_size": (1, False),
    "data.num_workers": (0, False),
    "trainer.max_epochs": (-1, True),
    "trainer.max_steps": (-1, False),
    "trainer.accumulate_grad_batches": (1, False),
    "trainer.check_val_every_n_epoch": (1, True),
    "trainer.log_every_n_steps": (0, True),
}


def check_numbers(cfg: DictConfig) -> None:
    """Refuse what seeds, loaders and the trainer's loops cannot take, before any of them fails somewhere inside."""
    for key, (least, optional) in WHOLE_NUMBERS.items():
        value = OmegaConf.select(cfg, key, default=least)
        if not (type(value) is int and value >= least) and not (value is None and optional):
            raise ConfigError(
                explain(f"{key} must be a whole number >= {least} but got {value!r}.", fix=f"write {key}={least}")
            )
    dropout = OmegaConf.select(cfg, "model.dropout", default=0.0)
    if isinstance(dropout, float) and not 0 <= dropout <= 1:  # of NaN, torch says so in the first step
        raise ConfigError(explain(f"model.dropout must be in [0, 1] but got {dropout}.", fix="write model.dropout=0.1"))
    if OmegaConf.select(cfg, "trainer.val_check_interval") == 0:
        fix = "write trainer.limit_val_batches=0 for no validation, or leave it out"
        raise ConfigError(explain("trainer.val_check_interval=0 is no interval.", fix=fix))


def check_fit(model: DictConfig, data: Any) -> None:
    """Refuse a model that does not take the data's rows: a data module says what it takes in its class's attributes."""
    for key in ("in_features", "in_channels", "num_classes", "vocab_size", "block_size"):
        has, needs = model.get(key), getattr(data, key, None)
        if not isinstance(has, int) or needs is None or has == needs or (has > needs and not key.startswith("in_")):
            continue
        raise ConfigError(
            explain(
                f"model.{key}={has} does not fit the data.",
                found=f"{type(data).__name__} needs {needs}",
                fix=f"write model.{key}={needs}, or choose other data",
            )
        )


def check_strategy(trainer: L.Trainer) -> None:
    """Refuse processes that Lightning would start: under a sweep, each of them would run the whole of it. And those of
    torchrun and of SLURM's srun that would each train alone.
    """
    started = int(os.environ["WORLD_SIZE"]) if TorchElasticEnvironment.detect() else 1
    processes = max(trainer.world_size, started, int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)))
    if processes > 1 and not isinstance(trainer.strategy, (HydraDDPStrategy, HydraFSDP2Strategy)):
        raise ConfigError(
            explain(
                f"{processes} processes need a strategy that runs this job in all of them, as one.",
                found=type(trainer.strategy).__name__,
                fix="write trainer=ddp (GPUs) or trainer=ddp_cpu, and trainer.devices=... beside it; or start one only",
            )
        )
