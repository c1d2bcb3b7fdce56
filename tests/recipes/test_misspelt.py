"""Overrides that Hydra refuses, with the nearest group, option or key."""

from __future__ import annotations

import pytest
from misspelt import misspelt


@pytest.mark.parametrize(
    ("arguments", "nearest", "fix"),
    [
        (["optimizer=adamm"], "adamw", "optimizer=adamw"),
        (["-m", "optimizer=adamw,sgdd"], "sgdw", "optimizer=adamw,sgdw"),
        (["callbacks=[decay_cosine,decay_monitr]"], "decay_monitor", "callbacks=[decay_cosine,decay_monitor]"),
        (["optimizer/decay=independant"], "independent", "optimizer/decay=independent"),
        (["optimzer=sgdw"], "optimizer", "optimizer=sgdw"),
        (["optimizer=sgdw", "optimizer.momentun=0.8"], "optimizer.momentum", "optimizer.momentum=0.8"),
        (["trainre.max_epochs=2"], "trainer.max_epochs", "trainer.max_epochs=2"),
        (["optimizer.wd=0.1"], "optimizer.weight_decay", "optimizer.weight_decay=0.1"),
        (["lr=0.1"], "optimizer.lr", "optimizer.lr=0.1"),
        (["learning_rate=0.1"], "optimizer.lr", "optimizer.lr=0.1"),
        (["epochs=3"], "trainer.max_epochs", "trainer.max_epochs=3"),
    ],
)
def test_the_nearest_is_named(arguments: list[str], nearest: str, fix: str) -> None:
    lines = str(misspelt(arguments)).splitlines()
    assert f"  nearest: '{nearest}'" in lines
    assert f"  fix: write {fix}" in lines


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config-path", "conf", "-m", "seed=1,2", "optimizer=adamw,sgdw", "optimizer.lr=0.1"],
        ["optimizer=sgdw", "optimizer/decay=normalized", "+optimizer.nesterov_=1", "++x.y=1", "~optimizer.nesterov"],
        ["experiment=adamwr", "callbacks=[decay_cosine,decay_monitor]", "hydra.job.name=x", "lr_scheduler=glob(*)"],
        ["-m", "callbacks=default,decay_monitor", "callbacks.decay_monitor.every_n_steps=3", "hydra/launcher=joblib"],
    ],
)
def test_nothing_is_said_of_what_is_right(arguments: list[str]) -> None:
    assert misspelt(arguments) is None


@pytest.mark.parametrize(
    "typed", ["optimizer.lr=((", "~seed=((", 'optimizer.mask.rules=[{name: "net.8.*"', "optimizer.name='x"]
)
def test_a_bracket_or_quote_is_left_open(typed: str) -> None:
    lines = str(misspelt(["seed=1", typed])).splitlines()
    assert lines[0] == f"{typed} cannot be read as key=value."
    assert lines[1].startswith("  fix: close each bracket and quote, and put single quotes around it all: ")


@pytest.mark.parametrize(
    ("arguments", "said", "fix"),
    [
        (["optimizer.lr", "0.1"], "optimizer.lr is not key=value.", "optimizer.lr=<value>, without spaces around ="),
        (["seed=1", "optimizer.lr", "=", "0.1"], "optimizer.lr is not key=value.", "optimizer.lr=<value>, without"),
        (["--optimizer.lr=0.1"], "--optimizer.lr=0.1 is no option.", "optimizer.lr=0.1, without dashes"),
        (["optimizer.mask.rules={name: a}"], "optimizer.mask.rules is a list.", "'optimizer.mask.rules=[{name:a}]'"),
        (["--seed", "1"], "--seed is no option.", "seed=<value>, without dashes"),
    ],
)
def test_an_override_of_another_form(arguments: list[str], said: str, fix: str) -> None:
    lines = str(misspelt(arguments)).splitlines()
    assert lines[0] == said
    assert lines[1].startswith(f"  fix: write {fix}")


def test_a_key_with_nothing_near_lists_its_neighbours() -> None:
    assert misspelt(["data.zzz=1"]) == (
        "data.zzz is not in the config.\n"
        "  valid: batch_size, classes, label_noise, num_workers, seed\n"
        "  fix: see python recipes/train.py --help"
    )
    assert "nearest" not in str(misspelt(["optimizer=sgdw", "optimizer.betas=[0.9,0.99]"]))  # betas are AdamW's
