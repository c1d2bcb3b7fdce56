"""The tables that a person reads."""

from __future__ import annotations

from helpers.masks import tied
from rich.console import Console

from lightning_wd import plan_decay


def test_the_table_shows_every_name_of_a_tensor_and_its_shape() -> None:
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as shown:
        console.print(plan_decay(tied(), style="decoupled").table())
    assert "wte.weight = head.weight" in shown.get()
    assert "6 x 4" in shown.get()
