"""Distributed training that is right under Hydra: single runs, ``--multirun``, every sweeper and launcher."""

from lightning_wd.distributed.agree import check_ranks_agree
from lightning_wd.distributed.strategies import HydraDDPStrategy, HydraFSDP2Strategy

__all__ = ["HydraDDPStrategy", "HydraFSDP2Strategy", "check_ranks_agree"]
