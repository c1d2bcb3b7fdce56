"""From what a user sets to what Lightning takes: decay, mask, optimizer and schedule put together."""

from lightning_wd.configure.configure_optimizers import configure_optimizers
from lightning_wd.configure.lr_scheduler_config import LRSchedulerConfig
from lightning_wd.configure.optimizer_config import OptimizerConfig

__all__ = ["LRSchedulerConfig", "OptimizerConfig", "configure_optimizers"]
