"""The strategies for the Trainer of ``pytorch_lightning``, which refuses a strategy of ``lightning``."""

from __future__ import annotations

from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy

from lightning_wd.distributed.strategies import HydraLaunch, HydraShards

__all__ = ["HydraDDPStrategy", "HydraFSDP2Strategy"]


class HydraDDPStrategy(HydraLaunch, DDPStrategy):  # type: ignore[misc]  # typed as lightning's, and so is the mixin
    """As :class:`lightning_wd.distributed.HydraDDPStrategy`."""


class HydraFSDP2Strategy(HydraShards, ModelParallelStrategy):  # type: ignore[misc]
    """As :class:`lightning_wd.distributed.HydraFSDP2Strategy`."""
