"""Lightning callbacks that show and schedule weight decay, for modules that stay as they are."""

from lightning_wd.callbacks.decay_monitor import DecayMonitor
from lightning_wd.callbacks.decay_schedule import DecaySchedule
from lightning_wd.callbacks.masked_finetuning import MaskedFinetuning
from lightning_wd.callbacks.optimizer_override import OptimizerOverride
from lightning_wd.callbacks.plan_summary import DecayPlanSummary
from lightning_wd.callbacks.rate_monitor import RateMonitor
from lightning_wd.callbacks.restart_snapshot import RestartSnapshot
from lightning_wd.configure.schedule_free_mode import ScheduleFreeMode

__all__ = [
    "DecayMonitor",
    "DecayPlanSummary",
    "DecaySchedule",
    "MaskedFinetuning",
    "OptimizerOverride",
    "RateMonitor",
    "RestartSnapshot",
    "ScheduleFreeMode",
]
