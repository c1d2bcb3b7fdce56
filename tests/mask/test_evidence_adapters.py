"""peft's tensors: what decays leads to the base model, and what does not would lead elsewhere."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.masks import Holder
from torch import nn

import lightning_wd as wd
from lightning_wd.mask.planner import plan_decay


class Net(nn.Module):
    """An embedding, a convolution, two linear layers, a norm and a head, always of the same weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.conv = nn.Embedding(8, 8), nn.Conv2d(1, 4, 3, padding=1)
        self.up, self.down, self.norm, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> Any:
        h = self.emb(x)
        h = h + self.conv(h[:, None]).mean(1)
        return self.head(self.norm(self.down(torch.relu(self.up(h)))))


@pytest.fixture(scope="module")
def peft() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("peft", reason="peft is not installed")


UP, BOTH = ["up"], ["up", "down"]
# peft's config, its settings -> what decays and what does not, by peft's names
METHODS: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "LoraConfig",
        {"target_modules": ["up", "conv", "emb"], "use_dora": True},
        "lora_A lora_B lora_embedding_A lora_embedding_B",
        "lora_magnitude_vector",
    ),
    ("LoraConfig", {"target_modules": BOTH, "lora_bias": True}, "lora_A lora_B", "lora_B"),  # lora_B's own bias
    ("AdaLoraConfig", {"target_modules": BOTH, "total_step": 10}, "lora_A lora_B lora_E", ""),
    (
        "LoHaConfig",
        {"target_modules": ["up", "conv"], "use_effective_conv2d": True},
        "hada_t1 hada_t2 hada_w1_a hada_w1_b hada_w2_a hada_w2_b",
        "",
    ),
    (
        "LoKrConfig",
        {"target_modules": BOTH, "decompose_both": True, "r": 1},
        "lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b",
        "",
    ),
    (
        "LoKrConfig",
        {"target_modules": ["up", "conv"], "use_effective_conv2d": True, "r": 1, "init_weights": False},
        "lokr_w1 lokr_w2 lokr_w2_a lokr_w2_b",
        "",
    ),
    ("VeraConfig", {"target_modules": UP, "r": 4}, "vera_lambda_b vera_lambda_d", ""),
    ("RandLoraConfig", {"target_modules": UP, "r": 4}, "randlora_gamma randlora_lambda", ""),
    (
        "VBLoRAConfig",
        {"target_modules": UP, "num_vectors": 4, "vector_length": 4},
        "vblora_vector_bank",
        "vblora_logits_A vblora_logits_B",
    ),
    ("DeloraConfig", {"target_modules": BOTH}, "delora_lambda", "delora_A delora_B"),
    ("GraloraConfig", {"target_modules": UP, "r": 4}, "gralora_A gralora_B", ""),
    ("HiraConfig", {"target_modules": BOTH}, "hira_A hira_B", ""),
    ("FourierFTConfig", {"target_modules": UP, "n_frequency": 4}, "fourierft_spectrum", ""),
    ("C3AConfig", {"target_modules": UP, "block_size": 4}, "c3a_kernel", ""),
    ("OFTConfig", {"target_modules": BOTH}, "oft_R", ""),
    ("BOFTConfig", {"target_modules": BOTH}, "boft_R", "boft_s"),
    ("RoadConfig", {"target_modules": UP, "group_size": 4}, "road_theta", "road_alpha"),
    ("MissConfig", {"target_modules": BOTH, "r": 4}, "miss_block", ""),
    ("ShiraConfig", {"target_modules": BOTH, "r": 2}, "shira_weight", ""),
]
ELSEWHERE = {"lora_magnitude_vector", "boft_s", "road_alpha", "ia3_l"}  # zero is no base model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("config", "settings", "decays", "stays"), METHODS, ids=lambda value: str(value)[:12])
def test_what_decays_is_the_base_model_at_zero(
    config: str, settings: dict[str, Any], decays: str, stays: str, peft: Any
) -> None:
    if not hasattr(peft, config):
        pytest.skip(f"this peft has no {config}")
    x = torch.arange(6).reshape(2, 3)
    base = Net()(x)
    torch.manual_seed(1)
    model = peft.get_peft_model(Net(), getattr(peft, config)(**settings)).eval()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    plan = plan_decay(model, "adapters")
    assert {row.reason for row in plan if row.group == "decay"} == {"adapter, zero is the base model"}
    assert {row.reason for row in plan if ".base_layer." in row.name} == {"frozen"}
    assert peft_names(plan, "decay") == decays.split()
    assert peft_names(plan, "no_decay") == stays.split()

    def after(zero: str, kept: str) -> torch.Tensor:
        with torch.no_grad():
            for row in plan:
                if row.group == zero:
                    row.param.zero_()
                elif row.group == kept:
                    row.param.copy_(start[row.name])
        return model(x)  # type: ignore[no-any-return]

    with torch.no_grad():
        for row in plan:
            if row.group:  # trained for a while
                row.param.add_(torch.randn_like(row.param), alpha=0.1)
    assert not torch.allclose(model(x), base)
    assert torch.equal(after("decay", "no_decay"), base)
    if ELSEWHERE & {*stays.split()}:
        assert not torch.allclose(after("no_decay", "decay"), base)


def peft_names(plan: Any, group: str) -> list[str]:
    """Return what peft calls the tensors of a group."""
    names = (
        row.name.partition("base_model.model.")[2] or row.name.partition("base_model.")[2]
        for row in plan
        if row.group == group
    )
    return sorted({re.sub(r"^(up|down|emb|conv)\.", "", name).partition(".")[0] for name in names})


@pytest.mark.filterwarnings("ignore")
def test_scalings_and_prompts_alone_are_no_adapters(peft: Any) -> None:
    config = peft.IA3Config(target_modules=BOTH, feedforward_modules=["down"])
    with pytest.raises(
        wd.MaskError,
        match=r"(?s)mask 'adapters' finds no trainable adapter whose zero is the base model.*ia3_l.*write opt",
    ):
        plan_decay(peft.get_peft_model(Net(), config), "adapters")
    settings = {"num_virtual_tokens": 4, "num_layers": 2, "token_dim": 8, "num_attention_heads": 2}
    prefix = peft.tuners.PrefixEncoder(
        peft.PrefixTuningConfig(**settings, prefix_projection=True, encoder_hidden_size=8)
    )
    both = nn.ModuleDict({"prefix": prefix, "layer": Holder(lora_A=(2, 8))})
    assert {row.name: (row.wd_mult, row.reason) for row in plan_decay(both, "adapters")} == {
        "prefix.embedding.weight": (0.0, "embedding, no adapter"),
        "prefix.transform.0.weight": (0.0, "weight, no adapter"),
        "prefix.transform.0.bias": (0.0, "bias"),
        "prefix.transform.2.weight": (0.0, "weight, no adapter"),
        "prefix.transform.2.bias": (0.0, "bias"),
        "layer.lora_A": (1.0, "adapter, zero is the base model"),
    }


def lora() -> nn.Module:
    """LoRA with DoRA's magnitude and a trained head, by peft's names; the magnitude's class is no vector's by name."""
    magnitude = type("DoraLinearLayer", (Holder,), {})(weight=(16,))
    layer = {"base_layer": nn.Linear(8, 16), "lora_A": nn.Linear(8, 2, False), "lora_B": nn.Linear(2, 16, False)}
    net = nn.ModuleDict(
        {**layer, "lora_magnitude_vector": nn.ModuleDict({"default": magnitude}), "head": nn.Linear(16, 4)}
    )
    net["base_layer"].requires_grad_(False)
    net["lora_E"] = nn.ParameterDict({"default": nn.Parameter(torch.ones(2, 1))})
    return net


@pytest.mark.parametrize(
    ("mask", "decayed"),
    [
        ("standard", {"lora_A.weight", "lora_B.weight", "lora_E.default", "head.weight"}),
        ("adapters", {"lora_A.weight", "lora_B.weight", "lora_E.default"}),
        (
            {"base": "adapters", "rules": [{"name": "head.weight", "wd_mult": 0.5}]},
            {"head.weight", "lora_A.weight", "lora_B.weight", "lora_E.default"},
        ),
    ],
)
def test_adapters_under_each_mask(mask: Any, decayed: set[str]) -> None:
    plan = plan_decay(lora(), mask)
    assert {row.name for row in plan if row.wd_mult} == decayed
    assert plan["lora_magnitude_vector.default.weight"].reason == "magnitude of weight_norm or DoRA"
    assert [(row.name, row.reason, row.group) for row in plan if row.frozen] == [
        ("base_layer.weight", "frozen", None),
        ("base_layer.bias", "frozen", None),
    ]


def test_decay_takes_lora_to_the_base_model_twice_as_fast() -> None:
    """A step with d on both A and B leaves (1 - d)^2 of B A; the base is not touched."""
    net = lora().double()
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    config = {"name": "adamw", "lr": 0.1, "weight_decay": 0.5, "mask": "adapters"}
    optimizer = wd.configure_optimizers(net, config)["optimizer"]
    for _ in range(10):
        for p in net.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        optimizer.step()
    product = net.get_parameter("lora_B.weight") @ net.get_parameter("lora_A.weight")
    torch.testing.assert_close(product, start["lora_B.weight"] @ start["lora_A.weight"] * 0.95**20)
    for name in ("base_layer.weight", "lora_magnitude_vector.default.weight", "head.weight"):
        assert torch.equal(net.get_parameter(name), start[name])
