"""Optimizers by name: the pack's own, and any class by its dotted path."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lightning_wd as wd
from lightning_wd.optimizers import SGDL2, AdamL2
from lightning_wd.optimizers.by_name import OPTIMIZERS, REQUIRED, family, hyperparameters_of, optimizer_class


class Sized(torch.optim.SGD):
    def __init__(self, params: Any, lr: float, size: int, beta: float = 0.5) -> None:
        super().__init__(params, lr)


class OfModel(torch.optim.SGD):
    def __init__(self, model: Any, lr: float = 0.1) -> None:
        super().__init__(model.parameters(), lr)


class Rateless(torch.optim.Optimizer):
    def __init__(self, params: Any, max_lr: float = 0.1) -> None:
        super().__init__(params, {"max_lr": max_lr})


HERE = __name__


def test_torchs_own_give_the_fast_classes() -> None:
    for path, cls, l2, lr in (
        ("torch.optim.Adam", wd.AdamW, AdamL2, 1e-3),
        ("torch.optim.adamw.AdamW", wd.AdamW, AdamL2, 1e-3),
        ("torch.optim.SGD", wd.SGDW, SGDL2, 1e-3),
    ):
        assert family(path)[:4] == (cls, l2, lr, "adam")
    assert optimizer_class("torch.optim.SGD", "l2") is SGDL2
    assert optimizer_class("torch.optim.NAdam", "l2") is optimizer_class("nadamw", "decoupled")
    assert family("torch.optim.NAdam").lr == 2e-3  # the class's own default


def test_the_keywords_are_the_classs_own() -> None:
    assert hyperparameters_of(optimizer_class(f"{HERE}.Sized", "none")) == {"size": REQUIRED, "beta": 0.5}
    assert family(f"{HERE}.Sized").lr is None
    assert hyperparameters_of(wd.SGDW).keys() == hyperparameters_of(optimizer_class("torch.optim.SGD", "l2")).keys()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adamww", ["optimizer.name 'adamww' is unknown", "nearest: 'adamw'"]),
        (None, ["optimizer.name None is unknown"]),
        ("torch.optim.Adamm", ["torch.optim has no 'Adamm'", "fix: write torch.optim.Adam"]),
        ("torch.nn.Linear", ["is no torch.optim.Optimizer class"]),
        ("torch.optim.LBFGS", ["LBFGS cannot be decoupled: it evaluates the closure itself, more than once in a step"]),
        ("lightning_wd.AdamW", ["has a name of its own here", "fix: write adamw"]),
        (f"{HERE}.OfModel", ["OfModel takes 'model' first, not groups of parameters"]),
        (f"{HERE}.Rateless", ["Rateless takes no lr", "found: keywords max_lr"]),
    ],
)
def test_what_is_wrong_is_said(name: Any, words: list[str]) -> None:
    with pytest.raises(wd.ConfigError) as caught:
        family(name)
    assert [word for word in words if word not in str(caught.value)] == []


def test_the_setting_is_called_as_its_place_is() -> None:
    with pytest.raises(
        wd.ConfigError, match=r"rules\[0\].optimizer 'adamx' is unknown(?s:.*)write rules\[0\].optimizer"
    ):
        family("adamx", "rules[0].optimizer")


def test_every_name_has_both_forms() -> None:
    for name in OPTIMIZERS:
        for style in ("l2", "decoupled"):
            assert "lr" not in hyperparameters_of(optimizer_class(name, style))
