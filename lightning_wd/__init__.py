"""Weight decay done right for PyTorch Lightning, configured through Hydra.

Importing this package loads neither torch nor lightning, since Hydra imports it to read the pack. Each public name is
imported on first use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_wd.callbacks import DecayMonitor as DecayMonitor
    from lightning_wd.callbacks import DecayPlanSummary as DecayPlanSummary
    from lightning_wd.callbacks import DecaySchedule as DecaySchedule
    from lightning_wd.callbacks import MaskedFinetuning as MaskedFinetuning
    from lightning_wd.callbacks import OptimizerOverride as OptimizerOverride
    from lightning_wd.configure import LRSchedulerConfig as LRSchedulerConfig
    from lightning_wd.configure import OptimizerConfig as OptimizerConfig
    from lightning_wd.configure.configure_optimizers import configure_optimizers as configure_optimizers
    from lightning_wd.conversions import convert as convert
    from lightning_wd.decay import Decay as Decay
    from lightning_wd.errors import CheckpointMismatchError as CheckpointMismatchError
    from lightning_wd.errors import ConfigError as ConfigError
    from lightning_wd.errors import MaskError as MaskError
    from lightning_wd.mask import DecayPlan as DecayPlan
    from lightning_wd.mask import Mask as Mask
    from lightning_wd.mask import Rule as Rule
    from lightning_wd.mask import plan_decay as plan_decay
    from lightning_wd.optimizers import SGDW as SGDW
    from lightning_wd.optimizers import AdamW as AdamW
    from lightning_wd.optimizers import MultiOptimizer as MultiOptimizer
    from lightning_wd.optimizers.decoupled import decoupled as decoupled
    from lightning_wd.optimizers.identify import identify as identify
    from lightning_wd.reference import carry_over as carry_over
    from lightning_wd.scale_invariance import scale_invariant as scale_invariant

__version__ = "0.1.0"

_ROOMS = {
    "callbacks": "DecayMonitor DecayPlanSummary DecaySchedule MaskedFinetuning OptimizerOverride",
    "configure": "LRSchedulerConfig OptimizerConfig configure_optimizers",
    "conversions": "convert",
    "decay": "Decay",
    "errors": "CheckpointMismatchError ConfigError MaskError",
    "mask": "DecayPlan Mask Rule plan_decay",
    "optimizers": "AdamW MultiOptimizer SGDW decoupled identify",
    "reference": "carry_over",
    "scale_invariance": "scale_invariant",
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lightning_wd' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    value = getattr(import_module(f"lightning_wd.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
