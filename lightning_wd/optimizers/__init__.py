"""Optimizers whose weight decay is what you name: drop-in ``torch.optim.Optimizer`` classes. No Lightning needed."""

from lightning_wd.optimizers.adamw import AdamL2, AdamW
from lightning_wd.optimizers.decoupled import decoupled
from lightning_wd.optimizers.identify import identify
from lightning_wd.optimizers.identify_result import Identification
from lightning_wd.optimizers.multi import MultiOptimizer
from lightning_wd.optimizers.muon import Muon
from lightning_wd.optimizers.sgdw import SGDL2, SGDW

__all__ = ["SGDL2", "SGDW", "AdamL2", "AdamW", "Identification", "MultiOptimizer", "Muon", "decoupled", "identify"]
