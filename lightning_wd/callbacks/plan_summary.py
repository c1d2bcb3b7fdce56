"""``DecayPlanSummary``: which parameters decay, by how much and why, shown at the start of every run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import rich
import torch
from rich.console import Console

from lightning_wd._lightning import Callback, wandb_loggers
from lightning_wd.callbacks.decay_schedule import DecaySchedule
from lightning_wd.configure.budget import run_steps
from lightning_wd.configure.cautions import cautions
from lightning_wd.configure.first_step import read_again
from lightning_wd.configure.neighbours import watch_all
from lightning_wd.conversions import all_units
from lightning_wd.errors import checked_keywords, listed
from lightning_wd.mask.tables import SHOWN_UNITS, amounts_table, plan_table, totals_table
from lightning_wd.optimizers.param_groups import configured_weight_decay, group_name, group_style, peak_lr

__all__ = ["DecayPlanSummary"]

_COLLAPSE_ABOVE = 80  # parameters; a longer table has one row for names that differ only in numbers
_COLUMNS = "name shape numel group wd_mult weight_decay lr_mult lr style toward optimizer reason".split()


@checked_keywords()
class DecayPlanSummary(Callback):
    """Show the decay plan when training starts: each parameter, the totals, and the amount in every unit.

    The amount is given at the peak learning rate, where ``d = lr0 * lam_decoupled = lam_independent
    = lam_norm / sqrt(steps) = 1 / timescale_steps``. In style ``hyperball`` there is none, and the learning rate is
    relative. There is a warning where a step would remove a whole weight, where the timescale is below 3 % of the run
    or above 10 runs, and where a group that should decay has 0. Under a :class:`DecaySchedule` the amount is each
    group's base, a line names the schedule, and the warnings are about the largest amount it reaches. With
    ``optimizer.reference``, lines say what was carried over, from which number to which, by which rule; W&B's config
    has the same as ``carried_over``.

    Rank zero prints the plan (above 80 parameters, names that differ only in numbers share a row), writes it to
    ``decay_plan.json`` in the trainer's ``default_root_dir``, and logs it to W&B as the tables ``decay_plan``
    (parameters) and ``decay_groups`` (amounts and totals). The plan is read from the optimizers when training starts,
    after a checkpoint has been loaded. For a module that does not use :func:`lightning_wd.configure_optimizers` the
    parameter groups are shown.

    Example:
        >>> trainer = L.Trainer(callbacks=[DecayPlanSummary()], logger=False, enable_checkpointing=False)
    """

    shows_cautions = True  # so that the optimizer's first step does not

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        watch_all(trainer, pl_module)
        schedule = next((callback for callback in trainer.callbacks if isinstance(callback, DecaySchedule)), None)  # type: ignore[attr-defined]
        for optimizer in trainer.optimizers:
            read_again(optimizer)
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
        carried = [plan["carried_over"] for plan in plans if "carried_over" in plan]
        for logger in wandb_loggers(trainer):
            if carried:
                logger.log_hyperparams({"carried_over": carried[0] if len(carried) == 1 else carried})
            rows = [row | row.get("settings", {}) for plan in plans for row in plan["parameters"]]
            data = [[row.get(column) for column in _COLUMNS] for row in rows]
            for cells in data:
                cells[1] = str(tuple(cells[1]))
            logger.log_table("decay_plan", columns=_COLUMNS, data=data, step=trainer.global_step)
            columns, data = _group_rows(plans)
            logger.log_table("decay_groups", columns=columns, data=data, step=trainer.global_step)


def _describe(
    optimizer: torch.optim.Optimizer,
    module: torch.nn.Module,
    total: int | None,
    per_epoch: int | None,
    scheduled: tuple[str, list[float], list[float]] | None,
) -> dict[str, Any]:
    """Return the plan of an optimizer as plain data; ``scheduled`` is what ``DecaySchedule.largest`` returns."""
    own = [configured_weight_decay(group) or 0.0 for group in optimizer.param_groups]
    shape, lams, largest = scheduled or (None, own, own)
    plan = getattr(optimizer, "decay_plan", None)
    carried = getattr(optimizer, "carried", None)
    whole = {id(row.param): row.numel for row in plan or ()}  # a process may hold a piece only
    groups = []
    for index, (group, lam) in enumerate(zip(optimizer.param_groups, lams, strict=True)):
        style, peak = group_style(optimizer, group), peak_lr(group)
        entry: dict[str, Any] = {"name": group_name(group, index), "style": style, "weight_decay": lam, "lr": peak}
        entry["cautious_wd"] = bool(group.get("cautious_wd", False))
        entry["toward"] = group.get("toward", "zero")
        entry.update(tensors=len(group["params"]), numel=sum(whole.get(id(p), p.numel()) for p in group["params"]))
        if lam and style not in (None, "none"):
            entry["units"] = all_units(style, lam, lr=peak, total_steps=total, steps_per_epoch=per_epoch)
        groups.append(entry)
    return {
        "optimizer": type(optimizer).__name__,
        "total_steps": total,
        "steps_per_epoch": per_epoch,
        **(_plan_of_groups(optimizer, module, groups) if plan is None else plan.to_dict()),
        **({} if carried is None else {"carried_over": carried.describe(optimizer)}),
        **({} if shape is None else {"decay_schedule": {"shape": shape, "largest": largest}}),
        "groups": groups,
        "warnings": cautions(optimizer, total, scheduled),
    }


def _plan_of_groups(
    optimizer: torch.optim.Optimizer, module: torch.nn.Module, groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the same as ``DecayPlan.to_dict``, from the described groups of an optimizer that has no plan."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    strongest = max((entry["weight_decay"] for entry in groups), default=0.0)
    fastest = max((entry["lr"] for entry in groups), default=0.0)
    rows = []
    for group, entry in zip(optimizer.param_groups, groups, strict=True):
        for position, p in enumerate(group["params"]):
            known = names.get(id(p), [f"{entry['name']}[{position}]"])
            rows.append(
                {
                    "name": known[0],
                    "names": known,
                    "shape": list(p.shape),
                    "optimizer": None,
                    "numel": p.numel(),
                    "wd_mult": entry["weight_decay"] / strongest if strongest else 0.0,
                    "lr_mult": entry["lr"] / fastest if fastest else 1.0,
                    "style": entry["style"],
                    "group": entry["name"],
                    "reason": f"weight_decay {entry['weight_decay']:g} of its group",
                }
            )
    totals = {entry["name"]: {key: entry[key] for key in ("tensors", "numel")} for entry in groups}
    return {"style": None, "totals": totals, "parameters": rows}


def _print(plan: dict[str, Any]) -> None:
    """Print the tables; piped output has any width, where rich would cut names at 80 columns."""
    console = rich.get_console()  # the progress bar's, which prints above the bar
    if not console.is_terminal:
        console = Console(width=10_000)
    table = plan_table({**plan, "parameters": _collapse(plan["parameters"])})
    table.title = f"Decay plan of {plan['optimizer']}"
    if plan["total_steps"]:
        table.title += f", {plan['total_steps']:,} optimizer steps"
    for item in (table, totals_table(plan), amounts_table(plan["groups"])):
        console.print(item)
    lines = list(_carried_lines(**plan["carried_over"])) if "carried_over" in plan else []
    if "decay_schedule" in plan:
        shape, largest = plan["decay_schedule"].values()
        most = [f"{lam:.4g} in {group['name']}" for lam, group in zip(largest, plan["groups"], strict=True) if lam]
        lines.append(f"DecaySchedule '{shape}': weight_decay is at most {listed(most) or 0}")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)  # a pattern such as [a-z] is not markup
    for caution in plan["warnings"]:
        console.print(f"warning: {caution}", style="yellow", soft_wrap=True, highlight=False, markup=False)


def _carried_lines(
    reference: dict[str, Any], here: dict[str, Any], rules: dict[str, str], remarks: list[str]
) -> Iterator[str]:
    """Yield what was carried over in words: reference -> here."""
    yield "Carried over from optimizer.reference:"
    for key, value in here.items():
        before = f"{reference[key]:.6g} -> " if key in reference else ""
        yield f"  {key} {before}{value:.6g}" + (f" ({rules[key]})" if key in rules else "")
    yield from (f"  remark: {remark}" for remark in remarks)


def _group_rows(plans: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of W&B's table of groups: amounts in all units, totals, warnings."""
    columns = ("name", "style", "toward", "cautious_wd", "weight_decay", "lr", "tensors", "numel")
    rows = []
    for plan in plans:
        for group in plan["groups"]:
            units = _finite(group.get("units", {}))
            warned = "; ".join(text for text in plan["warnings"] if text.startswith(f"group '{group['name']}'"))
            amounts = (units.get(unit) for unit in SHOWN_UNITS)
            rows.append([plan["optimizer"], *(group[key] for key in columns), *amounts, warned])
    return ["optimizer", *columns, *SHOWN_UNITS, "warnings"], rows


def _collapse(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give parameters whose names differ only in numbers one row, where there are many parameters."""
    if len(rows) <= _COLLAPSE_ABOVE:
        return rows
    folded: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        pattern = tuple(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in row["names"])
        settings = tuple(
            str(row[key]) for key in ("shape", "group", "wd_mult", "lr_mult", "style", "optimizer", "reason")
        )
        folded.setdefault((pattern, settings), []).append(row)
    return [
        members[0] if len(members) == 1 else {**members[0], "names": [f"{' = '.join(pattern)}  ({len(members)})"]}
        for (pattern, _), members in folded.items()
    ]


def _finite(value: Any) -> Any:
    """Return plain data with None for what JSON does not have (an infinite timescale)."""
    return json.loads(json.dumps(value), parse_constant=lambda constant: None)
