"""The reading of a group: label, style, peak learning rate and d_t, of this package's optimizers and of others'."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lightning_wd as wd
from lightning_wd.optimizers.param_groups import fraction, group_label, group_names, group_style, peak_fraction, peak_lr


def weights() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(2, 2))]


class Unknown(torch.optim.Optimizer):
    """A third-party optimizer whose rule nobody has read."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})


class NoDecay(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})


def test_labels_and_names() -> None:
    assert [group_label(group, 3) for group in ({"name": "decay"}, {})] == ["group 'decay'", "group 3"]
    groups: list[dict[str, Any]] = [{"params": weights(), "name": "decay"}, {"params": weights()}]
    a = wd.AdamW(groups)
    b = torch.optim.SGD(weights(), lr=0.1)
    assert group_names([a]) == [["decay", "group_1"]]
    assert group_names([a, b]) == [["optimizer_0_decay", "optimizer_0_group_1"], ["optimizer_1_group_0"]]


@pytest.mark.parametrize(
    ("make", "style", "d"),
    [
        (lambda p: wd.AdamW(p, lr=0.1, weight_decay=0.5, style="corrected"), "corrected", 0.05 * 0.5 * 0.5),
        (lambda p: wd.AdamW(p, lr=0.1, weight_decay=0.5, style="independent"), "independent", 0.25),
        (lambda p: wd.SGDW(p, lr=0.1, weight_decay=0.5, style="constant"), "constant", 0.5),
        (lambda p: wd.SGDW(p, lr=0.1, weight_decay=0.5, style="none"), "none", 0.0),
        (lambda p: wd.SGDW(p, lr=0.1, weight_decay=0.5, style="l2"), "l2", None),
        (lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5), "decoupled", 0.05 * 0.5),
        (lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.5), "l2", None),
        (
            lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.5, decoupled_weight_decay=True),
            "decoupled",
            0.05 * 0.5,
        ),
        (lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.5), "l2", None),
        (lambda p: torch.optim.Rprop(p, lr=0.1), "none", 0.0),
        (NoDecay, "none", 0.0),
        (Unknown, None, None),
    ],
)
def test_style_and_fraction_at_half_the_peak(make: Any, style: str | None, d: float | None) -> None:
    optimizer = make(weights())
    group = optimizer.param_groups[0]
    group["initial_lr"], group["lr"] = group["lr"], group["lr"] / 2
    assert group_style(optimizer, group) == style
    assert fraction(optimizer, group) == (None if d is None else pytest.approx(d))
    assert peak_lr(group) == pytest.approx(0.1)


def test_a_fraction_of_tensors_is_a_tensor() -> None:
    """Reading it would wait for the device."""
    optimizer = wd.SGDW(weights(), lr=torch.tensor(0.1), weight_decay=0.5)
    d = fraction(optimizer, optimizer.param_groups[0])
    assert isinstance(d, torch.Tensor)
    assert d.item() == pytest.approx(0.05)
    assert peak_fraction(optimizer.param_groups[0]) == pytest.approx(0.05)
