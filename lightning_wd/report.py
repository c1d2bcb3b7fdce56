"""Plain data to what a person reads: rich tables. Pure, and imports nothing else of this package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

__all__ = ["plan_table", "totals_table"]


def plan_table(plan: Mapping[str, Any]) -> Table:
    """Return the table of a decay plan's ``to_dict()``: one line for each parameter, with the reason.

    >>> row = {"name": "w", "names": ["w"], "shape": [2, 3], "numel": 6, "decay": 1.0, "lr": 1.0, "style": None}
    >>> plan_table({"parameters": [row | {"group": "decay", "reason": "weight"}]}).row_count
    1
    """
    table = Table(title="Decay plan", title_justify="left")
    # Names and groups are what a reader looks for, so a narrow terminal folds them and never cuts them.
    table.add_column("parameter", overflow="fold")
    table.add_column("shape", justify="right", overflow="fold")
    table.add_column("group", overflow="fold")
    table.add_column("decay", justify="right")
    table.add_column("lr", justify="right")
    table.add_column("style", overflow="fold")
    table.add_column("reason", overflow="fold")
    for row in plan["parameters"]:
        table.add_row(
            Text(" = ".join(row["names"])),
            " x ".join(map(str, row["shape"])) or "scalar",
            Text(row["group"] or "-"),
            f"{row['decay']:g}",
            f"{row['lr']:g}",
            row["style"] or "-",
            Text(row["reason"]),  # a rule's pattern may hold [brackets]
        )
    return table


def totals_table(plan: Mapping[str, Any]) -> Table:
    """Return the table of a decay plan's totals: one line for each group.

    >>> totals_table({"totals": {"decay": {"tensors": 1, "numel": 6}}}).row_count
    2
    """
    table = Table(title="Totals", title_justify="left")
    table.add_column("group", overflow="fold")
    table.add_column("tensors", justify="right")
    table.add_column("parameters", justify="right")
    totals: Iterable[tuple[str, Mapping[str, int]]] = plan["totals"].items()
    for name, total in totals:
        table.add_row(Text(name), f"{total['tensors']:,}", f"{total['numel']:,}")
    table.add_section()
    every = [plan["totals"][name] for name in plan["totals"]]
    table.add_row("all", f"{sum(t['tensors'] for t in every):,}", f"{sum(t['numel'] for t in every):,}")
    return table
