"""``DecayPlanSummary``: which parameters decay, by how much and why, said at the start of every run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.table import Table

from lightning_wd.callbacks.decay_schedule import DecaySchedule
from lightning_wd.callbacks.groups import as_float, group_name, group_style, peak_lr
from lightning_wd.callbacks.steps import run_steps
from lightning_wd.decay import all_units, step_fraction
from lightning_wd.report import plan_table, totals_table

__all__ = ["DecayPlanSummary"]

_COLLAPSE_ABOVE = 80  # parameters; a longer table is folded over the numbers in names (blocks.0, blocks.1, ...)
_SHORT_EPOCHS = 0.5  # a timescale below this many epochs forgets most of the data before it comes round again
_LONG_RUNS = 10.0  # above this many runs, decay removes less than a tenth of a weight over the whole run
_UNITS = ("decoupled", "independent", "normalized", "timescale_steps", "timescale_epochs", "timescale_runs")
_COLUMNS = ("name", "shape", "numel", "group", "decay", "lr", "style", "reason")


class DecayPlanSummary(L.Callback):
    """Show the decay plan when training starts: each parameter, the totals, and the amount in every unit.

    The amount is given at the peak learning rate, where ``d = lr0 * lam_decoupled = lam_independent
    = lam_norm / sqrt(steps) = 1 / timescale_steps``. A warning says where a step would remove a whole weight, where the
    timescale is a small part of an epoch, and where it is many times the run. Under a :class:`DecaySchedule` the amount
    is each group's base, a line names the schedule, and the warnings are of the largest amount it reaches.

    The plan is printed (more than 80 parameters: folded over the numbers in their names), written to
    ``decay_plan.json`` in the trainer's ``default_root_dir``, and logged as the table ``decay_plan`` to W&B. It is
    read from the optimizers as training starts, after a checkpoint was loaded. Modules that do not use
    :func:`lightning_wd.configure_optimizers` are shown by their parameter groups. W&B also gets the groups with their
    amounts and totals, as the table ``decay_groups``. Rank zero only.

    Example:
        >>> trainer = L.Trainer(callbacks=[DecayPlanSummary()], logger=False, enable_checkpointing=False)
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        schedule = next((callback for callback in trainer.callbacks if isinstance(callback, DecaySchedule)), None)  # type: ignore[attr-defined]
        scheduled = [None if schedule is None else schedule.largest(trainer, i) for i in range(len(trainer.optimizers))]
        if not trainer.is_global_zero:
            return
        steps = run_steps(trainer)
        plans = [
            _describe(optimizer, pl_module, *steps, amounts)
            for optimizer, amounts in zip(trainer.optimizers, scheduled, strict=True)
        ]
        if not plans:
            return
        written = plans[0] if len(plans) == 1 else {"optimizers": plans}
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_finite(written), indent=1, allow_nan=False)
        (folder / "decay_plan.json").write_text(text + "\n", encoding="utf-8")
        for plan in plans:
            _print(plan)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                rows = [row for plan in plans for row in plan["parameters"]]
                data = [[_cell(row[column]) for column in _COLUMNS] for row in rows]
                logger.log_table("decay_plan", columns=list(_COLUMNS), data=data, step=trainer.global_step)
                columns, data = _group_rows(plans)
                logger.log_table("decay_groups", columns=columns, data=data, step=trainer.global_step)


def _describe(
    optimizer: torch.optim.Optimizer,
    module: torch.nn.Module,
    total: int | None,
    per_epoch: int | None,
    scheduled: tuple[str, list[float], float] | None,
) -> dict[str, Any]:
    """Return the plan of an optimizer as plain data: parameters, totals, groups with their amount, warnings.

    Args:
        scheduled: of its DecaySchedule: the shape, each group's base, and the largest multiplier.
    """
    own = [as_float(group.get("base_weight_decay", group.get("weight_decay", 0.0))) for group in optimizer.param_groups]
    shape, lams, largest = scheduled or (None, own, 1.0)
    plan = getattr(optimizer, "decay_plan", None)
    described: dict[str, Any] = {
        "optimizer": type(optimizer).__name__,
        "total_steps": total,
        "steps_per_epoch": per_epoch,
    }
    described.update(_plan_of_groups(optimizer, module, lams) if plan is None else plan.to_dict())
    if shape is not None:
        described["decay_schedule"] = {"shape": shape, "largest_multiplier": largest}
    groups, cautions = [], []
    for index, (group, lam) in enumerate(zip(optimizer.param_groups, lams, strict=True)):
        name, style, peak = group_name(group, index), group_style(optimizer, group), peak_lr(group)
        entry: dict[str, Any] = {"name": name, "style": style, "weight_decay": lam, "lr": peak}
        entry["cautious"] = bool(group.get("cautious", False))
        entry.update(tensors=len(group["params"]), numel=sum(p.numel() for p in group["params"]))
        if lam and style not in (None, "none"):
            known: Any = {"lr": peak, "total_steps": total, "steps_per_epoch": per_epoch}
            entry["units"] = all_units(str(style), lam, **known)
            where, most = f"group '{name}'", lam * largest
            if shape is not None:
                where += f" at its largest weight_decay {most:.4g}"
            strongest = all_units(str(style), most, **known) if most else {}
            cautions += [f"{where}: {caution}" for caution in _cautions(str(style), most, peak, strongest)]
        groups.append(entry)
    return {**described, "groups": groups, "warnings": cautions}


def _plan_of_groups(optimizer: torch.optim.Optimizer, module: torch.nn.Module, lams: list[float]) -> dict[str, Any]:
    """Return what ``DecayPlan.to_dict`` would, read from the groups of an optimizer that has no plan."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    strongest = max(lams, default=0.0)
    fastest = max((peak_lr(group) for group in optimizer.param_groups), default=0.0)
    rows, totals = [], {}
    for index, (group, lam) in enumerate(zip(optimizer.param_groups, lams, strict=True)):
        label = group_name(group, index)
        numel = sum(p.numel() for p in group["params"])
        totals[label] = {"tensors": len(group["params"]), "numel": numel}
        for position, p in enumerate(group["params"]):
            known = names.get(id(p), [f"{label}[{position}]"])
            rows.append(
                {
                    "name": known[0],
                    "names": known,
                    "shape": list(p.shape),
                    "numel": p.numel(),
                    "decay": lam / strongest if strongest else 0.0,
                    "lr": peak_lr(group) / fastest if fastest else 1.0,
                    "style": group_style(optimizer, group),
                    "group": label,
                    "reason": f"weight_decay {lam:g} of its group",
                }
            )
    return {"style": None, "totals": totals, "parameters": rows}


def _cautions(style: str, lam: float, peak: float, units: dict[str, float]) -> Iterable[str]:
    fraction = step_fraction(style, weight_decay=lam, lr=peak, base_lr=peak)
    if fraction >= 1:
        yield f"a step at the peak learning rate removes {fraction:.3g} of each weight (d_t >= 1): lower weight_decay"
        return
    epochs, runs = units.get("timescale_epochs", math.inf), units.get("timescale_runs", 0.0)
    if epochs < _SHORT_EPOCHS:
        yield f"the timescale is {epochs:.3g} epochs, far below one: weights forget the data before they see all of it"
    if _LONG_RUNS < runs < math.inf:
        yield f"the timescale is {runs:.3g} times the run: decay hardly acts (it removes {1 / runs:.2g} of a weight)"


def _print(plan: dict[str, Any]) -> None:
    """Print the tables; where output is piped, as wide as they need, because rich would cut names at 80 columns."""
    heading = f"Decay plan of {plan['optimizer']}"
    if plan["total_steps"]:
        heading += f", {plan['total_steps']:,} optimizer steps"
    table = plan_table({**plan, "parameters": _collapse(plan["parameters"])})
    table.title = heading
    amounts = _amounts_table(plan["groups"])
    console = Console(markup=False)  # a pattern such as [a-z] is no markup
    if not console.is_terminal:
        tables = (table, amounts, totals_table(plan))
        console = Console(
            markup=False, width=max(console.measure(item, options=_unbounded(console)).maximum for item in tables)
        )
    for item in (table, totals_table(plan), amounts):
        console.print(item)
    if "decay_schedule" in plan:
        shape, most = plan["decay_schedule"].values()
        console.print(
            f"DecaySchedule '{shape}' multiplies each weight_decay by a factor of its own, at most {most:.4g}",
            soft_wrap=True,
            highlight=False,
        )
    for caution in plan["warnings"]:
        console.print(f"warning: {caution}", style="yellow", soft_wrap=True, highlight=False)


def _unbounded(console: Console) -> Any:
    return console.options.update(width=10_000, max_width=10_000)


def _amounts_table(groups: list[dict[str, Any]]) -> Table:
    """Return the table of what each group is given, in all units."""
    shown = [unit for unit in _UNITS if any(unit in group.get("units", {}) for group in groups)]
    table = Table(title="Amount at the peak learning rate, in all units", title_justify="left")
    for column in ("group", "style", "weight_decay", "lr", *(unit.replace("_", " ") for unit in shown)):
        justify: Any = "left" if column in ("group", "style") else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for group in groups:
        style = str(group["style"] or "unknown") + (", cautious" if group["cautious"] else "")
        numbers = [group["units"].get(unit) if "units" in group else None for unit in shown]
        cells = ["-" if number is None else f"{number:.4g}" for number in numbers]
        table.add_row(group["name"], style, f"{group['weight_decay']:.4g}", f"{group['lr']:.4g}", *cells)
    return table


def _group_rows(plans: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and the rows of W&B's table of groups: amounts in all units, totals, warnings."""
    columns = ("name", "style", "cautious", "weight_decay", "lr", "tensors", "numel")
    rows = []
    for plan in plans:
        for group in plan["groups"]:
            units = _finite(group.get("units", {}))
            warned = "; ".join(text for text in plan["warnings"] if text.startswith(f"group '{group['name']}'"))
            rows.append(
                [plan["optimizer"], *(group[key] for key in columns), *(units.get(unit) for unit in _UNITS), warned]
            )
    return ["optimizer", *columns, *_UNITS, "warnings"], rows


def _collapse(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fold parameters that differ in the numbers of their names only into one row each, if there are many."""
    if len(rows) <= _COLLAPSE_ABOVE:
        return rows
    folded: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        pattern = tuple(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in row["names"])
        settings = tuple(str(row[key]) for key in ("shape", "group", "decay", "lr", "style", "reason"))
        folded.setdefault((pattern, settings), []).append(row)
    return [
        members[0] if len(members) == 1 else {**members[0], "names": [f"{' = '.join(pattern)}  ({len(members)})"]}
        for (pattern, _), members in folded.items()
    ]


def _cell(value: Any) -> Any:
    return str(tuple(value)) if isinstance(value, list) else value


def _finite(value: Any) -> Any:
    """Return plain data with None for what JSON cannot say (an infinite timescale)."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
