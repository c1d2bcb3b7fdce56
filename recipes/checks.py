"""Checks before training: keys, numbers in range, devices that exist, a model that fits, processes that go together."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from omegaconf import DictConfig, OmegaConf

from lightning_wd.distributed import HydraDDPStrategy, HydraFSDP2Strategy
from lightning_wd.errors import ConfigError, nearest, number

# The whole numbers of a config: the least value of each (-1 means "no limit", and is offered to nobody), and whether it
# may be null.
WHOLE_NUMBERS = {
    "seed": (0, True),
    "data.seed": (0, False),
    "data.batch_size": (1, False),
    "data.num_workers": (0, False),
    "data.block_size": (1, False),
    "data.train_size": (1, True),
    "model.block_size": (1, False),
    "trainer.max_epochs": (-1, True),
    "trainer.max_steps": (-1, False),
    "trainer.accumulate_grad_batches": (1, False),
    "trainer.check_val_every_n_epoch": (1, True),
    "trainer.log_every_n_steps": (0, True),
}

# The keys at the top of the config that train.py or a sweep reads. Others, as +note=..., are notes for config.yaml.
KEYS = (
    "data model optimizer lr_scheduler callbacks logger trainer seed ckpt_path init_from hparams_search skip_finished"
).split()


def check_keys(cfg: DictConfig) -> None:
    """Refuse a key that is nearly one that counts: ``+optimzer.lr=1`` would change nothing.

    >>> check_keys(OmegaConf.create({"seed": 0, "note": "a first try"}))
    >>> check_keys(OmegaConf.create({"optimzer": {"lr": 1}}))
    Traceback (most recent call last):
    ...
    lightning_wd.errors.ConfigError: the config has no key 'optimzer'.
      nearest: 'optimizer'
      fix: write optimizer, or give what is yours another name
    """
    for key in set(cfg) - {*KEYS}:
        if close := nearest(key, KEYS):
            fix = f"write {close}, or give what is yours another name"
            raise ConfigError(f"the config has no key {key!r}.", nearest=close, fix=fix)


def check_numbers(cfg: DictConfig) -> None:
    """Refuse what seeds, loaders, dropout and the trainer's loops would fail on later. A whole float becomes an int."""
    for key, (least, optional) in WHOLE_NUMBERS.items():
        value = OmegaConf.select(cfg, key, default=least)
        if (value is None and optional) or value == least == -1:
            continue
        whole = number(key, value, minimum=max(0, least), whole=True)
        if isinstance(value, float):
            OmegaConf.update(cfg, key, whole)
    for key in ("model.dropout", "data.label_noise"):
        number(key, OmegaConf.select(cfg, key, default=0.0), at_most=1.0)
    if OmegaConf.select(cfg, "trainer.val_check_interval") == 0:
        fix = "write trainer.limit_val_batches=0 for no validation, or leave val_check_interval out"
        raise ConfigError("trainer.val_check_interval must not be 0.", fix=fix)


def check_devices(trainer: DictConfig) -> None:
    """Refuse zero devices, a GPU where there is none, and more of them than there are.

    Args:
        trainer: the trainer's node.
    """
    accelerator, devices = trainer.get("accelerator"), trainer.get("devices")
    if isinstance(devices, int) and devices != -1:  # -1 is all GPUs; Lightning reads lists and text
        number("trainer.devices", devices, minimum=1, whole=True)
    gpus = CUDAAccelerator.auto_device_count()
    if accelerator in ("gpu", "cuda") and not gpus and not MPSAccelerator.is_available():
        raise ConfigError(
            f"trainer.accelerator={accelerator} finds no GPU that torch can use.",
            fix="write trainer=default, which takes a GPU if there is one, or trainer=cpu",
        )
    if accelerator in ("auto", "gpu", "cuda") and gpus and isinstance(devices, int) and devices > gpus:
        raise ConfigError(
            f"trainer.devices={devices} is more than there are.",
            found=f"{gpus} GPU{'s' * (gpus > 1)}",
            fix=f"write trainer.devices={gpus}, or trainer=ddp_cpu for processes on the CPU",
        )


_INPUTS = ("in_features", "in_channels", "vocab_size")


def check_fit(model: DictConfig, data: Any) -> None:
    """Refuse a model that cannot take the data; the attributes of the data module say what it needs.

    Args:
        model: the model's node.
        data: the data module.
    """
    takes, gives = ([key for key in _INPUTS if has(key)] for has in (model.__contains__, partial(hasattr, data)))
    if takes and gives and not {*takes} & {*gives}:
        raise ConfigError(
            f"the model takes {takes[0]}, and the data have none.",
            found=f"{type(data).__name__} has {' and '.join(gives)}",
            fix="choose a model that fits (mlp in_features, resnet in_channels, gpt vocab_size), or other data",
        )
    for key in (*_INPUTS, "num_classes", "block_size"):
        has, needs = model.get(key), getattr(data, key, None)
        if not isinstance(has, int) or needs is None or has == needs or (has > needs and not key.startswith("in_")):
            continue
        raise ConfigError(
            f"model.{key}={has} does not fit the data.",
            found=f"{type(data).__name__} needs {needs}",
            fix=f"write model.{key}={needs}, or choose other data",
        )


def check_strategy(trainer: L.Trainer) -> None:
    """Refuse several processes without a strategy of this package.

    Those that Lightning starts would each run the whole sweep; those of torchrun or srun would each train alone.
    """
    started = int(os.environ["WORLD_SIZE"]) if TorchElasticEnvironment.detect() else 1
    processes = max(trainer.world_size, started, int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)))
    if processes > 1 and not isinstance(trainer.strategy, (HydraDDPStrategy, HydraFSDP2Strategy)):
        raise ConfigError(
            f"{processes} processes need a strategy that runs this job in all of them together.",
            found=type(trainer.strategy).__name__,
            fix="write trainer=ddp (GPUs) or trainer=ddp_cpu, with trainer.devices=...; or start one process only",
        )
