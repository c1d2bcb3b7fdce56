"""Rich tables of a plan, from plain data; imports nothing else of this package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

__all__ = ["SHOWN_UNITS", "amounts_table", "plan_table", "totals_table"]

SHOWN_UNITS = ("decoupled", "independent", "normalized", "timescale_steps", "timescale_epochs", "timescale_runs")
_NUMERIC_COLUMNS = ("shape", "wd_mult", "lr_mult", "tensors", "parameters", "weight_decay", "lr", *SHOWN_UNITS)


def _table(title: str, columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table with numbers on the right; a narrow terminal folds names and groups, and never cuts them."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(
            column.replace("timescale_", "timescale "),
            justify="right" if column in _NUMERIC_COLUMNS else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])  # not markup: a rule's pattern may hold [brackets]
    return table


def plan_table(plan: Mapping[str, Any]) -> Table:
    """Return the table of a decay plan's ``to_dict()``: one line for each parameter, with the reason."""
    rows = [
        (
            " = ".join(row["names"]),
            " x ".join(map(str, row["shape"])) or "scalar",
            row["group"] or "-",
            f"{row['wd_mult']:g}",
            f"{row['lr_mult']:g}",
            row["style"] or "-",
            row["reason"],
        )
        for row in plan["parameters"]
    ]
    return _table("Decay plan", ("parameter", "shape", "group", "wd_mult", "lr_mult", "style", "reason"), rows)


def totals_table(plan: Mapping[str, Any]) -> Table:
    """Return the table of a decay plan's totals: one line for each group."""
    totals: dict[str, Mapping[str, int]] = dict(plan["totals"])
    rows = [(name, f"{total['tensors']:,}", f"{total['numel']:,}") for name, total in totals.items()]
    table = _table("Totals", ("group", "tensors", "parameters"), rows)
    table.add_section()
    table.add_row("all", *(f"{sum(total[key] for total in totals.values()):,}" for key in ("tensors", "numel")))
    return table


def amounts_table(groups: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of each group's amount of decay, in the units that some group has."""
    shown = [unit for unit in SHOWN_UNITS if any(unit in group.get("units", {}) for group in groups)]
    rows = [
        (
            group["name"],
            (group["style"] or "unknown") + ", cautious" * group["cautious_wd"],
            f"{group['weight_decay']:.4g}",
            f"{group['lr']:.4g}",
            *("-" if (amount := group.get("units", {}).get(unit)) is None else f"{amount:.4g}" for unit in shown),
        )
        for group in groups
    ]
    return _table(
        "Amount at the peak learning rate, in all units", ("group", "style", "weight_decay", "lr", *shown), rows
    )
