"""Which tensors Muon takes, as how many matrices, and why AdamW has the others."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from models.gpt import GPT
from models.resnet import Block
from torch import nn

import lightning_wd as wd
from lightning_wd.mask.hidden_matrices import Matrices, hidden_matrices


def judged(module: nn.Module, *, weights_only: bool = True) -> dict[str, Matrices]:
    plan = wd.plan_decay(module)
    matrices = hidden_matrices(module, plan)
    return {r.name: matrices[id(r.param)] for r in plan if r.kind == "weight" or not weights_only}


def between(*layers: nn.Module) -> nn.Module:
    """Layers behind an input layer and before an output layer."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(8, 8), (1, "hidden matrix")),
        (nn.Conv2d(8, 16, 1), (1, "flattened to (16, 8)")),
        (nn.Conv1d(8, 16, 5), (1, "flattened to (16, 40)")),
        (nn.ConvTranspose2d(8, 16, 3), (1, "flattened to (8, 144)")),
        (nn.Conv2d(8, 16, 3, groups=4), (4, "4 groups, each flattened to (4, 18)")),
        (nn.ConvTranspose2d(8, 16, 3, groups=4), (4, "4 groups, each flattened to (2, 36)")),
        (nn.Conv2d(8, 16, 3, groups=8), (8, "8 groups, each flattened to (2, 9)")),  # two filters a channel
        (nn.Conv2d(8, 8, 3, groups=8), (0, "depthwise convolution")),
        (nn.Linear(8, 1), (0, "one row or column")),
        (nn.Bilinear(4, 5, 6), (1, "flattened to (6, 20)")),
    ],
    ids=str,
)
def test_a_hidden_layer(layer: nn.Module, expected: tuple[int, str]) -> None:
    assert judged(between(layer))["1.weight"] == expected


def test_input_and_output_layer() -> None:
    assert judged(between(nn.Linear(8, 8))) == {
        "0.weight": (0, "input layer"),
        "1.weight": (1, "hidden matrix"),
        "2.weight": (0, "output layer"),
    }
    text = nn.Sequential(nn.Embedding(9, 8), nn.Conv1d(8, 8, 3), nn.Linear(8, 2))
    assert judged(text)["1.weight"] == (1, "flattened to (8, 24)")  # the embedding is the input layer
    assert judged(nn.Sequential(nn.Linear(4, 8), nn.Conv1d(8, 8, 3), nn.Linear(8, 2)))["1.weight"][0] == 1


def test_what_is_no_weight_says_its_kind() -> None:
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    assert judged(module, weights_only=False) == {
        "0.weight": (0, "embedding"),
        "1.weight": (1, "hidden matrix"),
        "1.bias": (0, "bias"),
        "2.weight": (0, "norm"),
        "2.bias": (0, "bias"),
        "3.weight": (0, "output layer"),
        "3.bias": (0, "bias"),
    }


def test_stacked_experts_wait_for_a_rule() -> None:
    module = between(nn.Linear(8, 8))
    module.experts = nn.Parameter(torch.zeros(4, 8, 8))  # type: ignore[assignment]
    found = judged(module)
    assert found["experts"] == (0, "3 dimensions: a rule with split says where its matrices are")
    assert found["0.weight"] == (0, "input layer")  # although the experts come first


def test_resnet18_trains_by_muon() -> None:
    with torch.device("meta"):
        widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
        blocks = [Block(a, b, stride=1 + (a != b)) for a, b in pairwise(widths)]
        module = nn.Sequential(nn.Conv2d(3, 64, 7, 2, bias=False), nn.BatchNorm2d(64), *blocks, nn.Linear(512, 1000))
    plan, matrices = wd.plan_decay(module), judged(module)
    assert sum(row.numel for row in plan) == 11_689_512
    assert [name for name, (split, _) in matrices.items() if not split] == ["0.weight", "10.weight"]
    taken = sum(plan[name].numel for name, (split, _) in matrices.items() if split)
    assert round(taken / (11_689_512 - 513_000), 3) == 0.998


def test_a_gpt_trains_by_muon_except_its_tied_embedding() -> None:
    found = judged(GPT("tiny"), weights_only=False)
    assert found["tokens.weight"] == found["positions.weight"] == (0, "embedding")
    assert {split for name, (split, _) in found.items() if name.endswith(("qkv.weight", "proj.weight"))} == {1}
