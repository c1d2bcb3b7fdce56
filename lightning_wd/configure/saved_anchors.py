"""Which rows of a plan a checkpoint has weights for, where they are to decay towards it."""

from __future__ import annotations

from lightning_wd.errors import listed, nearest, warn
from lightning_wd.mask import DecayPlan
from lightning_wd.mask.plan import Row
from lightning_wd.optimizers.anchors import no_match, saved_names
from lightning_wd.optimizers.weights_file import read_weights
from lightning_wd.styles import TOWARD

__all__ = ["with_saved_anchors"]


def with_saved_anchors(plan: DecayPlan, *, unfrozen_later: bool = False) -> DecayPlan:
    """Return the plan where what a checkpoint lacks decays towards zero, and its row says so.

    Frozen weights are what the checkpoint is for, too, where they are ``unfrozen_later``. A checkpoint that lacks most
    of the weights warns.

    Raises:
        ConfigError: a checkpoint that cannot be read, or that has none of the weights that are to decay towards it.
    """
    paths = {row.toward for row in plan if row.toward not in TOWARD}
    for path in paths:
        weights = read_weights(path)
        saved = saved_names([name for row in plan for name in row.names], weights)
        pulled = [row for row in plan if row.toward == path]
        possible = pulled + [row for row in plan if row.frozen and unfrozen_later]
        lacking = [row for row in possible if row.name not in saved]
        where = "optimizer.decay.toward" if path == plan.toward else "a mask rule's toward"
        if len(lacking) == len(possible):
            problem = f"no parameter has its name in {where}={path}."
            raise no_match(problem, [row.name for row in pulled], weights)
        if 2 * _numel(lacking) > _numel(possible):
            near = next((name for row in lacking if (name := nearest(row.name, list(weights)))), None)
            warn(
                f"{where}={path} lacks most of the weights: what it lacks decays towards zero.",
                found=f"{_numel(lacking):,} of {_numel(possible):,} are not in it: {listed(r.name for r in lacking)}",
                nearest=near,
                fix="save the checkpoint under the names of this model, or give a mask rule with toward: zero for what "
                "is new",
            )
        for row in pulled:
            if row.name not in saved:
                row.toward, row.reason = "zero", f"{row.reason}; not in {path}, so towards zero"
    return DecayPlan(plan.rows, plan.style, plan.optimizer, plan.toward) if paths else plan


def _numel(rows: list[Row]) -> int:
    return sum(row.numel for row in rows)
