"""Lightning callbacks: the decay made visible and schedulable, in modules that need no edit for it."""

from lightning_wd.callbacks.decay_monitor import DecayMonitor
from lightning_wd.callbacks.decay_schedule import DecaySchedule
from lightning_wd.callbacks.masked_finetuning import MaskedFinetuning
from lightning_wd.callbacks.optimizer_override import OptimizerOverride
from lightning_wd.callbacks.plan_summary import DecayPlanSummary
from lightning_wd.callbacks.restart_snapshot import RestartSnapshot

__all__ = [
    "DecayMonitor",
    "DecayPlanSummary",
    "DecaySchedule",
    "MaskedFinetuning",
    "OptimizerOverride",
    "RestartSnapshot",
]
