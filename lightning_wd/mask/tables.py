"""Rich tables of a plan, from plain data; imports nothing else of this package."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

__all__ = ["SHOWN_UNITS", "amounts_table", "plan_table", "totals_table"]

SHOWN_UNITS = ("decoupled", "independent", "normalized", "timescale_steps", "timescale_epochs", "timescale_runs")
_NUMERIC_COLUMNS = ("shape", "wd_mult", "lr_mult", "scale_invariance", "tensors", "parameters", "value")
_SAID = (*_NUMERIC_COLUMNS, "group")  # columns whose cells need their names beside them


class _FittingTable(Table):
    """A table that breaks no word: where it is too wide, each row is its first cell over a line of the others.

    The last column alone wraps.
    """

    def __init__(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        super().__init__(title=title, title_justify="left")
        self.names, self.cells = columns, rows
        for column in columns:
            right = column in _NUMERIC_COLUMNS
            self.add_column(column, justify="right" if right else "left", no_wrap=column != columns[-1])
        for row in rows:
            self.add_row(*map(Text, row))  # not markup: a rule's pattern may hold [brackets]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        *fixed, last = zip(self.names, *self.cells, strict=True)
        widths = [max(map(len, column)) for column in fixed]
        widths += [max(len(word) for cell in last for word in (cell.split() or [""]))]
        if sum(widths) + 3 * len(widths) + 1 <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        yield Text(str(self.title), style="italic")
        for first, *others in self.cells:
            yield Text(first, overflow="fold")
            said = ", ".join(
                f"{name} {cell}" if name in _SAID and not cell.startswith(("lr ", "weight_decay ")) else cell
                for name, cell in zip(self.names[1:], others, strict=True)
            )
            indented = textwrap.wrap(
                said, options.max_width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
            )
            yield Text("\n".join(indented))


def plan_table(plan: Mapping[str, Any]) -> Table:
    """Return the table of a decay plan's ``to_dict()``: one line for each parameter, with the reason.

    Under ``wd_mult`` and ``lr_mult`` stands a group's own ``weight_decay`` or ``lr`` where a rule sets it. The
    optimizer has a column where there is more than one, and ``scale_invariance`` where it was measured.
    """
    several = ["optimizer"] * (len({row["optimizer"] for row in plan["parameters"]}) > 1)
    measured = ["scale_invariance"] * any("scale_invariance" in row for row in plan["parameters"])
    rows = [
        (
            " = ".join(row["names"]),
            " x ".join(map(str, row["shape"])) or "scalar",
            row["group"] or "-",
            _factor(row, "wd_mult", "weight_decay"),
            _factor(row, "lr_mult", "lr"),
            _toward(row["style"] or "-", row.get("toward", "zero")),
            *(row[key] or "-" for key in several),
            *("-" if row.get(key) is None else f"{row[key]:.1e}" for key in measured),
            row["reason"],
        )
        for row in plan["parameters"]
    ]
    columns = ("parameter", "shape", "group", "wd_mult", "lr_mult", "style", *several, *measured, "reason")
    return _FittingTable("Decay plan", columns, rows)


def _toward(style: str, toward: str) -> str:
    """Return a style, and what it decays towards if that is not zero."""
    return style if toward == "zero" else f"{style}, toward {toward}"


def _factor(row: Mapping[str, Any], multiplier: str, own: str) -> str:
    """Return a row's multiplier, or its own value in place of one."""
    settings = row.get("settings", {})
    return f"{own} {settings[own]:g}" if own in settings else f"{row[multiplier]:g}"


def totals_table(plan: Mapping[str, Any]) -> Table:
    """Return the table of a decay plan's totals: one line for each group, and the last for all."""
    totals: dict[str, Mapping[str, int]] = dict(plan["totals"])
    both = ("tensors", "numel")
    totals["all"] = {key: sum(total[key] for total in plan["totals"].values()) for key in both}
    rows = [(name, *(f"{total[key]:,}" for key in both)) for name, total in totals.items()]
    return _FittingTable("Totals", ("group", "tensors", "parameters"), rows)


def amounts_table(groups: Iterable[Mapping[str, Any]]) -> Table:
    """Return the table of each group's amount of decay: one line for each unit that is known."""
    rows = []
    for group in groups:
        style = _toward(
            (group["style"] or "unknown") + ", cautious" * group["cautious_wd"], group.get("toward", "zero")
        )
        units = group.get("units", {})
        amounts = {f"weight_decay ({style})": group["weight_decay"], "lr": group["lr"]}
        if group["style"] == "hyperball":
            amounts = {"lr (hyperball: relative, a step turns a tensor by atan(lr) radians)": group["lr"]}
        amounts |= {unit.replace("timescale_", "timescale "): units[unit] for unit in SHOWN_UNITS if unit in units}
        rows += [(group["name"], amount, f"{value:.4g}") for amount, value in amounts.items()]
    return _FittingTable("Amount at the peak learning rate, in all units", ("group", "amount", "value"), rows)
