"""Whoever adds a group of bare parameters does not know what the groups of the optimizer hold.

https://github.com/pytorch/pytorch/issues/62475 (pytorch#62475)

There: ``add_param_group`` checks the group against the optimizer in mid-run ("should be with/without names").
Here: an optimizer of ``configure_optimizers`` gives the parameters their names, the mask's split, and the schedule.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lightning_wd as wd

ADAMW = {"name": "adamw", "lr": 0.1, "weight_decay": 0.5}
COSINE = {"name": "warmup_cosine", "warmup_steps": 0, "min_lr_factor": 0.0}


def build(**keywords: Any) -> tuple[nn.Sequential, Any, Any]:
    """Return a model with a frozen first layer, its optimizer, and its schedule after half of the run."""
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    built = wd.configure_optimizers(model, {**ADAMW, **keywords}, COSINE, total_steps=4)
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    for _ in range(2):
        optimizer.step()
        schedule.step()
    model[0].requires_grad_(True)
    return model, optimizer, schedule


def test_bare_parameters_get_names_the_split_and_the_schedule() -> None:
    model, optimizer, schedule = build()
    optimizer.add_param_group({"params": model[0].parameters()})
    late = optimizer.param_groups[2:]
    assert [(g["name"], g["param_names"], g["weight_decay"], g["base_lr"], g["lr"]) for g in late] == [
        ("decay_late", ["0.weight"], 0.5, 0.1, pytest.approx(0.05)),
        ("no_decay_late", ["0.bias"], 0.0, 0.1, pytest.approx(0.05)),
    ]
    row = optimizer.decay_plan["0.weight"]
    assert (row.group, row.reason) == ("decay_late", "weight; added later")
    optimizer.step()
    schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == [pytest.approx(0.1 * schedule.eta(3))] * 4


def test_its_lr_is_the_rate_at_this_point() -> None:
    model, optimizer, schedule = build()
    optimizer.add_param_group({"params": model[0].weight, "lr": 0.01, "name": "mine", "betas": (0.8, 0.9)})
    (late,) = optimizer.param_groups[2:]
    assert (late["name"], late["lr"], late["betas"]) == ("mine_decay_late", 0.01, (0.8, 0.9))
    assert late["base_lr"] == pytest.approx(0.02)  # half of the run is over: eta is 1/2
    schedule.step()
    assert late["lr"] == pytest.approx(0.02 * schedule.eta(3))


def test_an_amount_of_its_own_is_kept() -> None:
    model, optimizer, schedule = build()
    optimizer.add_param_group({"params": [*model[0].parameters()], "weight_decay": 0.25})
    (late,) = optimizer.param_groups[2:]
    assert (late["name"], late["weight_decay"], late["param_names"]) == ("late", 0.25, ["0.weight", "0.bias"])
    schedule.step()


def test_the_second_group_has_a_name_of_its_own() -> None:
    model, optimizer, _ = build()
    optimizer.add_param_group({"params": [model[0].weight]})
    optimizer.add_param_group({"params": [model[0].bias]})
    assert [group["name"] for group in optimizer.param_groups[2:]] == ["decay_late", "no_decay_late_2"]


def test_muon_takes_the_matrices() -> None:
    model, optimizer, _ = build(name="muon")
    optimizer.add_param_group({"params": model[0].parameters()})
    late = [(group["name"], group["use_muon"]) for group in optimizer.param_groups if "late" in group["name"]]
    assert late == [("no_decay_late", False), ("decay_muon_late", True)]


def test_what_cannot_be_added_is_refused() -> None:
    model, optimizer, _ = build()
    with pytest.raises(wd.ConfigError) as caught:
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1)), model[2].weight]})
    assert str(caught.value) == (
        "a group that is added to AdamW must hold new parameters of Sequential.\n"
        "  found: 1 that the optimizer has already, 1 that the module lacks\n"
        "  fix: add each parameter of the module once"
    )
    assert len(optimizer.param_groups) == 2
