"""Layer-wise learning rates, and which layer is the output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.masks import compiled, net, tied
from torch import nn

from lightning_wd import Mask, MaskError, Rule, plan_decay


class Model(nn.Module):
    """A body, a head and a last Linear that is not the output, with the hook of a library."""

    def __init__(self, hook: str = "") -> None:
        super().__init__()
        self.head, self.body = nn.Linear(4, 4), nn.Linear(4, 4)
        if hook:
            self.__class__ = type("Model", (Model,), {hook: lambda self: self.head})


def styles(module: nn.Module, mask: Any = None) -> dict[str, str | None]:
    return {row.name: row.style for row in plan_decay(module, mask, "corrected") if row.wd_mult}


def test_corrected_leaves_the_output_layer_decoupled() -> None:
    assert styles(Model()) == {"head.weight": "corrected", "body.weight": "decoupled"}  # the last Linear
    for hook in ("get_output_embeddings", "get_classifier"):
        expected = {"head.weight": "decoupled", "body.weight": "corrected"}
        assert styles(Model(hook)) == expected
        wrapped = nn.ModuleDict({"model": compiled(Model(hook))})
        assert styles(wrapped) == {f"model.{k}": v for k, v in expected.items()}
    assert styles(tied()) == {"wte.weight": "decoupled"}
    headless = nn.ModuleDict({"net": Model("get_classifier"), "fc": nn.Linear(4, 4)})
    headless["net"].head = nn.Identity()
    assert styles(headless) == {"net.body.weight": "corrected", "fc.weight": "decoupled"}
    rule = Mask([Rule(name="body.*", style="corrected")])
    assert styles(Model(), rule) == dict.fromkeys(("head.weight", "body.weight"), "corrected")
    groups = plan_decay(Model(), style="corrected").groups(lr=1, weight_decay=0.1)
    assert [(g["name"], g["style"], g["weight_decay"]) for g in groups] == [
        ("decay", "corrected", 0.1),
        ("no_decay", "corrected", 0.0),
        ("decay_decoupled", "decoupled", 0.1),
    ]


def test_layerwise_rates_by_name() -> None:
    class Bert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.ones(1, 2, 4))
            self.layer = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.head = nn.Linear(4, 4)
            self.embeddings = nn.Embedding(4, 4)

    plan = plan_decay(nn.ModuleDict({"model": Bert()}), Mask.layerwise(0.5, [Rule(lr_mult=3, name="*.head.bias")]))
    assert {row.name: row.lr_mult for row in plan} == {
        "model.pos_embed": 0.125,
        "model.layer.0.weight": 0.25,
        "model.layer.0.bias": 0.25,
        "model.layer.1.weight": 0.5,
        "model.layer.1.bias": 0.5,
        "model.head.weight": 1.0,
        "model.head.bias": 3.0,
        "model.embeddings.weight": 0.125,
    }
    assert plan["model.layer.0.weight"].group == "decay_lr_x0.25"
    with pytest.raises(MaskError, match="layer_decay finds no layers to tell apart"):
        plan_decay(net(), Mask.layerwise(0.5))


class Encoder(nn.Module):
    """An embedding, a list of layers, and a norm after it."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(4, 4)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(layers))})
        self.norm = nn.RMSNorm(4)


def linears(count: int) -> nn.ModuleDict:
    return nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(count))})


def layer_rates(module: nn.Module) -> dict[str, float]:
    return {row.name.removesuffix(".weight"): row.lr_mult for row in plan_decay(module, Mask.layerwise(0.5))}


def test_layerwise_rates_of_a_head_that_is_defined_first() -> None:
    assert layer_rates(nn.ModuleDict({"classifier": nn.Linear(4, 4, bias=False), "backbone": Encoder(2)})) == {
        "classifier": 1.0,
        "backbone.embeddings": 0.125,
        "backbone.encoder.layer.0": 0.25,
        "backbone.encoder.layer.1": 0.5,
        "backbone.norm": 1.0,
    }


def test_layerwise_rates_of_two_towers_count_from_each_ones_end() -> None:
    assert layer_rates(nn.ModuleDict({"text": Encoder(1), "vision": Encoder(2), "proj": linears(1)})) == {
        "text.embeddings": 0.25,
        "text.encoder.layer.0": 0.5,
        "text.norm": 1.0,
        "vision.embeddings": 0.125,
        "vision.encoder.layer.0": 0.25,
        "vision.encoder.layer.1": 0.5,
        "vision.norm": 1.0,
        "proj.layers.0": 1.0,
    }


def test_layerwise_rates_of_lists_before_and_after_the_longest() -> None:
    net = nn.ModuleDict({"stem": linears(1), "encoder": linears(2), "box": linears(1)})
    assert layer_rates(net) == {
        "stem.layers.0": 0.125,
        "encoder.layers.0": 0.25,
        "encoder.layers.1": 0.5,
        "box.layers.0": 1.0,
    }
    detr = nn.ModuleDict({"conv": nn.Linear(4, 4), "encoder": linears(2), "decoder": linears(2)})
    with pytest.raises(MaskError, match=r"two lists of layers.*\n  found: encoder.layers \(2 layers\), decoder.layers"):
        plan_decay(detr, Mask.layerwise(0.5))


def test_layerwise_rates_by_the_names_of_stages_and_experts() -> None:
    def stage() -> nn.ModuleDict:
        return nn.ModuleDict({"down": nn.Linear(4, 4, bias=False), "blocks": linears(2)["layers"]})

    assert layer_rates(nn.ModuleDict({"stem": nn.RMSNorm(4), "stages_0": stage(), "stages_1": stage()})) == {
        "stem": 0.0625,
        "stages_0.down": 0.125,
        "stages_0.blocks.0": 0.125,
        "stages_0.blocks.1": 0.25,
        "stages_1.down": 0.5,
        "stages_1.blocks.0": 0.5,
        "stages_1.blocks.1": 1.0,
    }
    resnet = nn.ModuleDict({f"layer{i}": nn.Sequential(nn.Linear(4, 4, bias=False)) for i in (1, 2)})
    assert layer_rates(nn.ModuleDict({"conv1": nn.RMSNorm(4), **resnet, "fc": nn.RMSNorm(4)})) == {
        "conv1": 0.125,
        "layer1.0": 0.25,
        "layer2.0": 0.5,
        "fc": 1.0,
    }
    layers = nn.ModuleDict({f"encoder_layer_{i}": nn.RMSNorm(4) for i in range(2)})
    encoder = nn.ModuleDict({"ln0": nn.RMSNorm(4), "layers": layers})
    vit = nn.ModuleDict({"conv_proj": nn.RMSNorm(4), "encoder": encoder})
    assert layer_rates(vit) == {
        "conv_proj": 0.25,
        "encoder.ln0": 0.25,
        "encoder.layers.encoder_layer_0": 0.5,
        "encoder.layers.encoder_layer_1": 1.0,
    }
    experts = nn.ModuleList(linears(2) for _ in range(2))
    moe = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"experts": experts}), nn.RMSNorm(4)])})
    rates = layer_rates(moe)
    assert rates.pop("layers.1") == 1.0
    assert set(rates.values()) == {0.5}


def test_layerwise_rates_of_two_models_of_timms() -> None:
    class Timm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.blocks = nn.RMSNorm(4), linears(2)["layers"]

        def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
            return {"stem": r"^stem", "blocks": [(r"^blocks\.(\d+)", None)]}

    own = {"stem": 0.125, "blocks.0": 0.25, "blocks.1": 0.5}
    net = nn.ModuleDict({"teacher": Timm().requires_grad_(False), "student": Timm(), "head": nn.RMSNorm(4)})
    plan = plan_decay(net, Mask.layerwise(0.5), include_frozen=True)
    assert {row.name.removesuffix(".weight"): row.lr_mult for row in plan} == {
        **{f"teacher.{name}": lr for name, lr in own.items()},
        **{f"student.{name}": lr for name, lr in own.items()},
        "head": 1.0,
    }


def test_a_frozen_teacher_does_not_take_the_output_layers_exemption() -> None:
    student, teacher = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
    assert styles(nn.ModuleDict({"student": student, "teacher": teacher.requires_grad_(False)})) == {
        "student.0.weight": "corrected",
        "student.1.weight": "decoupled",
    }
