"""Masks: which parameters decay, by how much, and why.

A :class:`Rule` says something about some parameters, a :class:`Mask` puts rules over a preset, and :func:`plan_decay`
applies it to a module: the :class:`DecayPlan` has one row for each tensor and makes the optimizer's groups.
"""

from lightning_wd.mask.masks import Mask, as_mask
from lightning_wd.mask.peers import peer_plan
from lightning_wd.mask.plan import DecayPlan, Difference, Row
from lightning_wd.mask.planner import plan_decay
from lightning_wd.mask.rules import Rule

__all__ = ["DecayPlan", "Difference", "Mask", "Row", "Rule", "as_mask", "peer_plan", "plan_decay"]
