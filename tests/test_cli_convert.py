"""``lightning-wd convert``: one unit, or an amount in all of them."""

from __future__ import annotations

import pytest

from lightning_wd.cli import main


def test_all_units_of_an_amount(capsys: pytest.CaptureFixture[str]) -> None:
    """d = 1e-3 * 0.1 = 1e-4; normalized 1e-4 * sqrt(10000); timescale 1e4 steps of 100; SGD's L2 d * (1 - 0.9) / lr."""
    command = "convert 0.1 --from decoupled --lr 1e-3 --momentum 0.9 --total-steps 10000 --steps-per-epoch 100"
    assert main(command.split()) == 0
    assert capsys.readouterr().out.split() == (
        "decoupled 0.1 independent 0.0001 normalized 0.01 timescale_epochs 100 sgd_l2 0.01".split()
    )


def test_units_that_need_steps_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("convert 0.1 --from decoupled --lr 1e-3".split()) == 0
    assert capsys.readouterr().out.splitlines()[2:4] == [
        "normalized       needs --total-steps",
        "timescale_epochs needs --steps-per-epoch",
    ]


def test_one_unit_is_a_plain_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("convert 0.1 --from decoupled --to independent --lr 1e-3".split()) == 0
    assert capsys.readouterr().out == "0.0001\n"
    assert main("convert 0.1 --from decoupled --to decoupledd --lr 1e-3".split()) == 2
    assert "nearest: 'decoupled'" in capsys.readouterr().err
