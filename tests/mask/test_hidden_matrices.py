"""Which tensors Muon takes, as how many matrices, and why AdamW has the others."""

from __future__ import annotations

import pytest
import torch
from models.gpt import GPT
from models.resnet import ResNet
from torch import nn

import lightning_wd as wd
from lightning_wd.mask.hidden_matrices import hidden_matrices


def judged(module: nn.Module, *, weights_only: bool = True) -> dict[str, tuple[int, str]]:
    plan = wd.plan_decay(module)
    matrices = hidden_matrices(module, plan)
    return {r.name: tuple(matrices[id(r.param)]) for r in plan if r.kind == "weight" or not weights_only}


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
    assert judged(module)["experts"] == (0, "3 dimensions: a rule with split says where its matrices are")


@pytest.mark.parametrize("depth", [8, 20])
def test_a_resnet_trains_by_muon(depth: int) -> None:
    with torch.device("meta"):
        module = ResNet(depth=depth, width=32)
    plan, matrices = wd.plan_decay(module), judged(module)
    taken = sum(row.numel for row in plan if matrices.get(row.name, (0,))[0])
    hidden = sum(row.numel for row in plan) - module.net[-1].weight.numel()  # type: ignore[operator, union-attr]
    assert taken / hidden > 0.98
    assert [name for name, (split, _) in matrices.items() if not split] == [
        "net.0.weight",
        f"net.{depth // 2 + 4}.weight",
    ]


def test_a_gpt_trains_by_muon_except_its_tied_embedding() -> None:
    found = judged(GPT("tiny"), weights_only=False)
    assert found["tokens.weight"] == found["positions.weight"] == (0, "embedding")
    assert {split for name, (split, _) in found.items() if name.endswith(("qkv.weight", "proj.weight"))} == {1}
