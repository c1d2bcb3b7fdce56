"""The tables that a person reads."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.masks import tied
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_wd import plan_decay
from lightning_wd.mask.tables import amounts_table, totals_table


def lines(table: Table, width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as shown:
        console.print(table)
    return [line.rstrip() for line in shown.get().splitlines()]


def cells(table: Table, width: int = 250) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines(table, width) if line.startswith("│")]


def test_the_table_shows_every_name_of_a_tensor_and_its_shape() -> None:
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as shown:
        console.print(plan_decay(tied(), style="decoupled").table())
    assert "wte.weight = head.weight" in shown.get()
    assert "6 x 4" in shown.get()


LONG = "a_name_that_is_longer_than_most_but_not_than_a_line_of_eighty"
RULES = [{"name": "0.weight", "lr": 0.5, "weight_decay": 0.3}, {"name": f"{LONG}.weight", "lr_mult": 3}]


def long_named() -> Table:
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    net.add_module(LONG, nn.Linear(8, 8))
    return plan_decay(net, {"rules": RULES}, style="decoupled").table()


def test_a_rules_own_values_stand_in_place_of_the_multipliers() -> None:
    table = cells(long_named())
    assert [row[:5] for row in table] == [
        ["0.weight", "8 x 4", "decay_0.3_lr_0.5", "weight_decay 0.3", "lr 0.5"],
        ["0.bias", "8", "no_decay", "0", "1"],
        ["1.weight", "8", "no_decay", "0", "1"],
        ["1.bias", "8", "no_decay", "0", "1"],
        [f"{LONG}.weight", "8 x 8", "decay_lr_x3", "1", "3"],
        [f"{LONG}.bias", "8", "no_decay", "0", "1"],
    ]


@pytest.mark.parametrize("width", [70, 80, 100])
def test_a_narrow_table_breaks_no_word(width: int) -> None:
    shown = lines(long_named(), width)
    assert max(map(len, shown)) <= width
    assert [line for line in shown if not line.startswith(" ")] == [
        "Decay plan", "0.weight", "0.bias", "1.weight", "1.bias", f"{LONG}.weight", f"{LONG}.bias"
    ]  # fmt: skip
    words = " ".join(" ".join(shown).split())
    for text in ("group decay_0.3_lr_0.5, weight_decay 0.3, lr 0.5, decoupled", "wd_mult 0, lr_mult 1", "lr_mult 3"):
        assert text in words


def test_only_the_reason_wraps_where_the_rest_fits() -> None:
    plan = plan_decay(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)), {"rules": RULES[:1]}, style="decoupled")
    assert [row[0] for row in cells(plan.table(), 110) if row[0]] == [row.name for row in plan]
    assert len(cells(plan.table(), 110)) > len(plan)


def test_amounts_stand_one_a_line_and_fit_eighty_columns() -> None:
    units = {"decoupled": 0.1, "independent": 1e-4, "normalized": 0.01, "timescale_steps": 1e4, "timescale_runs": 1.0}
    groups: list[dict[str, Any]] = [
        {"name": "decay", "style": "decoupled", "cautious_wd": True, "weight_decay": 0.1, "lr": 1e-3, "units": units},
        {"name": "no_decay", "style": None, "cautious_wd": False, "weight_decay": 0.0, "lr": 1e-3},
    ]
    assert cells(amounts_table(groups), 80) == [
        ["decay", "weight_decay (decoupled, cautious)", "0.1"],
        ["decay", "lr", "0.001"],
        ["decay", "decoupled", "0.1"],
        ["decay", "independent", "0.0001"],
        ["decay", "normalized", "0.01"],
        ["decay", "timescale steps", "1e+04"],
        ["decay", "timescale runs", "1"],
        ["no_decay", "weight_decay (unknown)", "0"],
        ["no_decay", "lr", "0.001"],
    ]


def test_the_last_total_is_of_all() -> None:
    plan = plan_decay(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)))
    assert cells(totals_table(plan.to_dict())) == [["decay", "1", "32"], ["no_decay", "3", "24"], ["all", "4", "56"]]
