"""Which classes a config may name: an exact list, checked before anything is instantiated.

A config is trusted input, but also text that is copied from strangers, and ``_target_`` can name any callable of the
interpreter. So the list is short; add your own classes to ``OWN_TARGETS``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import is_dataclass
from typing import Any

from lightning_wd.errors import ConfigError, nearest

__all__ = ["OWN_TARGETS", "TARGETS", "check_targets"]

# The classes of this app: add yours here.
OWN_TARGETS = (
    "checkpoints.BestCheckpoint",
    "data.cifar10.CIFAR10",
    "data.digits.Digits",
    "data.fashion_mnist.FashionMNIST",
    "data.fashion_small.FashionSmall",
    "data.shakespeare.Shakespeare",
    "models.conv_net.ConvNet",
    "models.gpt.GPT",
    "models.mlp.MLP",
    "models.resnet.ResNet",
    "models.shake_shake.ShakeShake",
)

_CALLBACKS = (
    "BatchSizeFinder DeviceStatsMonitor EarlyStopping EMAWeightAveraging GradientAccumulationScheduler "
    "LearningRateMonitor ModelCheckpoint ModelSummary OnExceptionCheckpoint RichModelSummary RichProgressBar "
    "StochasticWeightAveraging ThroughputMonitor Timer TQDMProgressBar WeightAveraging"
).split()
_LOGGERS = "CSVLogger TensorBoardLogger WandbLogger".split()
_STRATEGIES = "DDPStrategy FSDPStrategy ModelParallelStrategy SingleDeviceStrategy".split()
_SCHEDULERS = (
    "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LinearLR MultiStepLR OneCycleLR "
    "PolynomialLR ReduceLROnPlateau StepLR"
).split()

# The classes of the pack, Lightning and torch.
TARGETS = frozenset(
    [
        "lightning_wd.OptimizerConfig",
        "lightning_wd.LRSchedulerConfig",
        "lightning_wd.DecayMonitor",
        "lightning_wd.DecayPlanSummary",
        "lightning_wd.DecaySchedule",
        "lightning_wd.MaskedFinetuning",
        "lightning_wd.OptimizerOverride",
        "lightning_wd.callbacks.RateMonitor",
        "lightning_wd.callbacks.RestartSnapshot",
        "lightning_wd.distributed.HydraDDPStrategy",
        "lightning_wd.distributed.HydraFSDP2Strategy",
        "lightning_wd.runs.folder.RunCSVLogger",
        *(f"{root}.Trainer" for root in ("lightning", "lightning.pytorch")),
        *(f"lightning.pytorch.callbacks.{name}" for name in _CALLBACKS),
        *(f"lightning.pytorch.loggers.{name}" for name in _LOGGERS),
        *(f"lightning.pytorch.strategies.{name}" for name in _STRATEGIES),
        *(f"torch.optim.lr_scheduler.{name}" for name in _SCHEDULERS),
    ]
)


def check_targets(config: Any) -> None:
    """Raise a ConfigError unless every ``_target_`` in a config, at any depth, is in ``TARGETS`` or ``OWN_TARGETS``.

    Args:
        config: what ``hydra.utils.instantiate`` takes: any mixture of DictConfigs, ListConfigs, plain containers and
            dataclasses.

    Raises:
        ConfigError: names the key, the target and the nearest valid one.

    >>> check_targets({"trainer": {"_target_": "lightning.pytorch.Trainer"}})
    >>> check_targets({"x": [{"_target_": "os.system"}]})
    Traceback (most recent call last):
      ...
    lightning_wd.errors.ConfigError: x[0]._target_ 'os.system' is not a class that a config may name.
      fix: correct it, or add it to OWN_TARGETS in recipes/targets.py
    """
    from omegaconf import OmegaConf, SCMode

    if isinstance(config, (list, tuple, dict)) or OmegaConf.is_config(config) or is_dataclass(config):
        # as Hydra reads it: a config inside a plain container, or a dataclass, may name a target too
        made = config if OmegaConf.is_config(config) else OmegaConf.create(config, flags={"allow_objects": True})
        config = OmegaConf.to_container(made, resolve=True, structured_config_mode=SCMode.DICT)
    _check(config, TARGETS | {*OWN_TARGETS}, "")


def _check(node: Any, allowed: Collection[str], path: str) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            where = f"{path}.{key}" if path else str(key)
            if key == "_target_" and not (isinstance(value, str) and value in allowed):
                close = nearest(value, allowed)
                raise ConfigError(
                    f"{where} {value!r} is not a class that a config may name.",
                    nearest=close,
                    fix="correct it, or add it to OWN_TARGETS in recipes/targets.py",
                )
            _check(value, allowed, where)
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            _check(value, allowed, f"{path}[{index}]")
