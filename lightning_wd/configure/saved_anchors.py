"""Which rows of a plan a checkpoint has weights for, where they are to decay towards it."""

from __future__ import annotations

from lightning_wd.decay import TOWARD
from lightning_wd.mask import DecayPlan
from lightning_wd.optimizers.anchors import no_match, read_weights, saved_names

__all__ = ["with_saved_anchors"]


def with_saved_anchors(plan: DecayPlan, *, unfrozen_later: bool = False) -> DecayPlan:
    """Return the plan where what a checkpoint lacks decays towards zero, and its row says so.

    Frozen weights are what the checkpoint is for, too, where they are ``unfrozen_later``.

    Raises:
        ConfigError: a checkpoint that cannot be read, or that has none of the weights that are to decay towards it.
    """
    paths = {row.toward for row in plan if row.toward not in TOWARD}
    for path in paths:
        weights = read_weights(path)
        saved = saved_names([name for row in plan for name in row.names], weights)
        pulled = [row for row in plan if row.toward == path]
        if not any(row.name in saved for row in plan if row.toward == path or (row.frozen and unfrozen_later)):
            where = "optimizer.decay.toward" if path == plan.toward else "a mask rule's toward"
            problem = f"no parameter has its name in {where}={path}."
            raise no_match(problem, [row.name for row in pulled], weights)
        for row in pulled:
            if row.name not in saved:
                row.toward, row.reason = "zero", f"{row.reason}; not in {path}, so towards zero"
    return DecayPlan(plan.rows, plan.style, plan.optimizer, plan.toward) if paths else plan
