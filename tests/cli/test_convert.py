"""``lightning-wd convert``: its output and errors."""

from __future__ import annotations

import pytest

from lightning_wd.cli import main

CARRY = "--from-batch 256 --from-steps 1000 --batch 1024 --steps 250 --family adam"


@pytest.mark.parametrize(
    ("amount", "printed"),
    [
        ("0.1 --from decoupled --to independent", "lr               0.002\n0.0004\n"),
        ("1e-4 --from independent --to independent", "lr               0.002\n0.0004\n"),
        ("0.05 --from normalized --to normalized", "lr               0.002\n0.05\n"),
        ("2 --from timescale_runs --to timescale_runs", "lr               0.002\n2.0\n"),
    ],
)
def test_convert_carries_over(amount: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"convert {amount} --lr 1e-3 {CARRY}".split()) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(("rule", "printed"), [("linear", "0.004\n0.1\n"), ("none", "0.001\n0.4\n")])
def test_convert_takes_a_rule(rule: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"convert 0.1 --from decoupled --to decoupled --lr 1e-3 {CARRY} --lr-rule {rule}".split()) == 0
    assert capsys.readouterr().out == f"lr               {printed}"


def test_convert_carries_over_in_every_unit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"convert 0.1 --from decoupled --lr 1e-3 {CARRY}".split()) == 0
    assert capsys.readouterr().out.splitlines() == [
        "lr               0.002",
        "decoupled        0.2",
        "independent      0.0004",
        "normalized       0.00632456",
        "timescale_epochs needs --steps-per-epoch",
        "timescale_runs   10",
        "sgd_l2           needs --momentum",
    ]


def test_convert(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "5e-4", "--from", "sgd_l2", "--to", "decoupled", "--lr", "0.1", "--momentum", "0.9"]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(5e-3, rel=1e-12)
    steps = ["--lr", "1e-3", "--total-steps", "10000"]
    assert main(["convert", "0.05", "--from", "normalized", "--to", "independent", *steps]) == 0
    assert float(capsys.readouterr().out) == 0.0005
    assert main(["convert", "0.05", "--from", "normalised", "--to", "independent", *steps]) == 2
    assert "nearest: 'normalized'" in capsys.readouterr().err


def test_all_units_of_an_amount(capsys: pytest.CaptureFixture[str]) -> None:
    """d = 1e-3 * 0.1 = 1e-4; normalized 1e-4 * sqrt(10000); timescale 1e4 steps of 100; SGD's L2 d * (1 - 0.9) / lr."""
    command = "convert 0.1 --from decoupled --lr 1e-3 --momentum 0.9 --total-steps 10000 --steps-per-epoch 100"
    assert main(command.split()) == 0
    assert capsys.readouterr().out.split() == (
        "decoupled 0.1 independent 0.0001 normalized 0.01 timescale_epochs 100 timescale_runs 1 sgd_l2 0.01".split()
    )


def test_units_that_need_steps_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("convert 0.1 --from decoupled --lr 1e-3".split()) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "normalized       needs --total-steps",
        "timescale_epochs needs --steps-per-epoch",
        "timescale_runs   needs --total-steps",
        "sgd_l2           needs --momentum",
    ]


def test_one_unit_is_a_plain_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("convert 0.1 --from decoupled --to independent --lr 1e-3".split()) == 0
    assert capsys.readouterr().out == "0.0001\n"
    assert main("convert 0.1 --from decoupled --to decoupledd --lr 1e-3".split()) == 2
    assert "nearest: 'decoupled'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("0.1 --from decopled --lr 1", "--from 'decopled' is unknown.\n"),
        ("0.1 --from decoupled --to sgdl2 --lr 1", "--to 'sgdl2' is unknown.\n"),
        ("0.1 --from decoupled --lr -1", "--lr must be a number >= 0 but got -1.0.\n"),
        ("nan --from decoupled --lr 1", "the amount must be a number >= 0 but got nan.\n"),
        ("0.1 --from sgd_l2 --lr 1 --momentum 1", "--momentum must be a number >= 0 and < 1 but got 1.0.\n"),
        (
            "0.1 --from sgd_l2 --to decoupled --lr 1",
            "unit 'sgd_l2' needs --momentum.\n  fix: add --momentum <number>\n",
        ),
        ("1 --from decoupled --to timescale_runs --lr 1", "unit 'timescale_runs' needs --total-steps.\n"),
        (
            "1 --from timescale_epochs --lr 1 --steps-per-epoch 0",
            "--steps-per-epoch must be a number > 0 but got 0.0.\n",
        ),
        ("1 --from decoupled --lr 1 --total-steps -5", "--total-steps must be a number > 0 but got -5.\n"),
        ("1 --from palm --lr 1", "--from 'palm' is unknown.\n"),
        (f"1 --from palm --lr 1 {CARRY}", "--from 'palm' is unknown.\n"),
        ("1 --from decoupled --lr 1 --batch 8", "nothing can be carried over without --from-batch, --from-steps, "),
        (f"1 --from decoupled --lr 1 {CARRY} --from-batch 0", "--from-batch must be a whole number >= 1 but got 0.\n"),
        (f"1 --from decoupled --lr 1 {CARRY} --batch 0", "--batch must be a whole number >= 1 but got 0.\n"),
        (f"1 --from decoupled --lr 1 {CARRY} --family adamw", "--family 'adamw' is unknown.\n  valid: adam, sgd\n"),
        (
            f"1 --from decoupled --lr 1 {CARRY} --lr-rule lin",
            "--lr-rule 'lin' is unknown.\n  valid: sqrt, linear, none\n",
        ),
        (
            "1 --from decoupled --lr 1 --lr-rule none",
            "nothing can be carried over without --from-batch, --from-steps, ",
        ),
        (f"1 --from decoupled --lr 1 {CARRY} --total-steps 9", "--steps and --total-steps are one number.\n"),
        (f"1 --from sgd_l2 --lr 1 {CARRY}", "reference has no tested rule for style 'l2' of an adaptive optimizer.\n"),
        ("1 --from independent --to decoupled --lr 0", "--lr is 0, so no 'decoupled' coefficient gives"),
    ],
)
def test_errors_name_what_was_typed(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", *arguments.split()]) == 2
    assert capsys.readouterr().err.startswith(f"lightning-wd convert: {message}")
