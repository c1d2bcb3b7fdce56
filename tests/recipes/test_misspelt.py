"""Overrides that Hydra refuses, with the nearest group, option or key."""

from __future__ import annotations

import pytest
from misspelt import misspelt


@pytest.mark.parametrize(
    ("arguments", "nearest", "fix"),
    [
        (["optimizer=adamm"], "adamw", "optimizer=adamw"),
        (["-m", "optimizer=adamw,sgdd"], "sgdw", "optimizer=sgdw"),
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
        ["optimizer.lr=(("],  # Hydra points at the character
    ],
)
def test_nothing_is_said_of_what_is_right(arguments: list[str]) -> None:
    assert misspelt(arguments) is None


def test_a_key_with_nothing_near_lists_its_neighbours() -> None:
    assert misspelt(["data.zzz=1"]) == (
        "data.zzz is not in the config.\n"
        "  valid: batch_size, classes, label_noise, num_workers, seed\n"
        "  fix: see python recipes/train.py --help"
    )
    assert "nearest" not in str(misspelt(["optimizer=sgdw", "optimizer.betas=[0.9,0.99]"]))  # betas are AdamW's
