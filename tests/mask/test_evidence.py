"""What each tensor is taken for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.masks import Holder, decayed, named
from torch import nn
from torch.nn.utils import parametrizations

from lightning_wd import Mask, plan_decay


def kinds(module: nn.Module) -> dict[str, str]:
    return {row.name: row.kind for row in plan_decay(module)}


@pytest.mark.parametrize(
    "name", ["bias", "bias_ih_l0", "in_proj_bias", "q_bias", "pos_bias_u", "r_w_bias", "k_gate_bias", "dt_proj_bias",
             "relative_position_bias_table", "attention_biases", "gate_up_proj_bias", "qBias"]
)  # fmt: skip
def test_biases_of_any_shape_are_known_by_a_whole_word(name: str) -> None:
    assert kinds(Holder(**{name: (8, 4)})) == {name: "bias"}


@pytest.mark.parametrize("name", ["debias", "unbiased_proj", "biased"])
def test_a_part_of_a_word_is_no_bias(name: str) -> None:
    assert kinds(Holder(**{name: (8, 4)})) == {name: "weight"}


def test_t5_keeps_its_biases_in_an_embedding() -> None:
    net = nn.ModuleDict({"relative_attention_bias": nn.Embedding(32, 8), "debias_proj": nn.Linear(8, 8, bias=False)})
    assert kinds(net) == {"relative_attention_bias.weight": "bias", "debias_proj.weight": "weight"}


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4),
     nn.LayerNorm(4), nn.LayerNorm((2, 4, 4)), nn.RMSNorm(4), nn.RMSNorm((2, 4))],
)  # fmt: skip
def test_norm_layers_of_torch(layer: nn.Module) -> None:
    plan = plan_decay(layer)
    assert {row.name: row.group for row in plan} == dict.fromkeys(dict(layer.named_parameters()), "no_decay")
    assert plan["weight"].reason == f"norm layer {type(layer).__name__}"


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("LlamaRMSNorm", {"weight": (4,)}),
        ("LayerNorm2d", {"weight": (4,), "bias": (4,)}),
        ("WithBias_LayerNorm", {"weight": (4,)}),
        ("FrozenBatchNorm2d", {"weight": (4,)}),
        ("RMSNormGated", {"weight": (4,)}),
        ("MultiHeadRMSNorm", {"gamma": (8, 16)}),
        ("LayerNormNoBias", {"weight": (4, 5, 5)}),
        ("GRN", {"gamma": (1, 1, 1, 4)}),
        ("ConvNextV2GRN", {"weight": (1, 1, 1, 4)}),
        ("GlobalResponseNorm", {"weight": (1, 4, 1, 1)}),
    ],
)
def test_norm_layers_by_name_and_shape(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    found = kinds(named(name, **shapes))
    assert {leaf: kind for leaf, kind in found.items() if leaf != "bias"} == dict.fromkeys(
        shapes.keys() - {"bias"}, "norm"
    )


@pytest.mark.parametrize(
    "name",
    ["ConvNorm", "NormLinear", "RobertaPreLayerNormSelfOutput", "Wav2Vec2LayerNormConvLayer", "SpectralNorm",
     "HubertEncoderLayerStableLayerNorm", "WeightNorm"],
)  # fmt: skip
def test_norm_in_a_class_name_is_not_enough(name: str) -> None:
    assert kinds(named(name, weight=(8, 4))) == {"weight": "weight"}


@pytest.mark.parametrize(
    ("name", "shape"), [("ScalarLinearLayer", (4, 1)), ("TensorProduct", (64,)), ("Conv1d", (1, 3))]
)
def test_a_class_that_multiplies_by_its_weight_has_weights_of_any_shape(name: str, shape: tuple[int, ...]) -> None:
    """nequip's readout and e3nn's product of tensors, whose weight is flat."""
    assert kinds(named(name, weight=shape)) == {"weight": "weight"}


def test_a_linear_or_conv_named_norm_is_none() -> None:
    class NormLinear(nn.Linear):
        pass

    class ConvNorm(nn.Conv1d):
        pass

    net = nn.ModuleDict({"a": NormLinear(4, 4), "b": ConvNorm(4, 4, 1)})
    assert kinds(net) == {"a.weight": "weight", "a.bias": "bias", "b.weight": "weight", "b.bias": "bias"}


def test_a_linear_inside_an_adaptive_norm_decays() -> None:
    class AdaLayerNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 8), nn.LayerNorm(4)

    assert kinds(AdaLayerNorm()) == {
        "linear.weight": "weight", "linear.bias": "bias", "norm.weight": "norm", "norm.bias": "bias"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({"A_log": (8, 16)}, "state"),
        ({"D": (2, 8)}, "state"),
        ({"dt_bias": (8,)}, "bias"),
        ({"gamma": (8, 1, 1)}, "scale"),
        ({"gain": (8, 1, 1, 1)}, "vector"),
        ({"logit_scale": (3, 1, 1)}, "scale"),
        ({"time_mix_key": (1, 1, 8)}, "vector"),
        ({"alpha": (1, 8, 1)}, "scale"),
        ({"alpha": (4, 128)}, "scale"),
        ({"gamma": (4, 128), "beta": (4, 128)}, "scale"),
        ({"beta": (50, 2000)}, "weight"),  # topics by words
        ({"scale": ()}, "scale"),
        ({"cls_token": (1, 1, 8)}, "vector"),
        ({"register_tokens": (1, 0, 384)}, "vector"),
        ({"register_tokens": (1, 4, 384)}, "table"),
        ({"position_embeddings": (1, 197, 8)}, "table"),
        ({"pos_embed_win": (1, 8, 7, 7)}, "table"),
        ({"rel_pos_h": (27, 8)}, "table"),
        ({"rel_pos_w": (27, 8)}, "table"),
        ({"height_rel": (31, 8)}, "table"),
        ({"emb_rel_k": (1, 9, 8)}, "table"),
        ({"key_rel_h": (31, 8), "key_rel_w": (31, 8)}, "table"),
        ({"w_rel": (8, 8), "w_loop": (8, 8)}, "weight"),  # a graph network's matrices
        ({"query_tokens": (1, 32, 8)}, "weight"),
        ({"latents": (256, 8)}, "weight"),
        ({"gate_up_proj": (4, 8, 8)}, "weight"),
        ({"x_proj_weight": (2, 8, 8)}, "weight"),
        ({"q": (8, 2, 4)}, "weight"),
        ({"embedding": (9, 4)}, "embedding"),
    ],
)
def test_free_parameters(shapes: dict[str, tuple[int, ...]], kind: str) -> None:
    assert kinds(Holder(**shapes)) == dict.fromkeys(shapes, kind)


@pytest.mark.parametrize("shape", [(), (7,), (7, 1), (7, 5)])
@pytest.mark.parametrize(
    "name",
    ["px_r", "py_r", "log_theta", "background_pro_log_beta", "log_per_batch_std", "sigmas", "prior_logits", "scales",
     "temperatures", "feature_thresholds", "mixture_logits", "weight_log_sigma", "weight_sigma", "scale_shift_table"],
)  # fmt: skip
def test_a_quantity_is_the_same_whatever_its_shape(name: str, shape: tuple[int, ...]) -> None:
    """scvi's ``px_r`` has one dimension, or with dispersion by batch two."""
    net = Holder(**{name: shape})
    assert kinds(net) == {name: "scale"}
    (row,) = plan_decay(net)
    assert (row.wd_mult, row.reason) == (0.0, "scale or distribution parameter")


@pytest.mark.parametrize(
    "name",
    ["scale_weight", "log_proj", "temperature_embed_proj", "catalog", "scaled", "prior_kernel", "mu_proj",
     "rescale_mlp", "probabilities", "px_weight"],
)  # fmt: skip
def test_a_word_of_a_quantity_does_not_make_a_matrix_one(name: str) -> None:
    assert kinds(Holder(**{name: (7, 5)})) == {name: "weight"}


@pytest.mark.parametrize(("rows", "columns"), [(9, 1), (1, 9), (1, 1)])
@pytest.mark.parametrize("cls", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_of_one_row_or_column_is_an_embedding(cls: Any, rows: int, columns: int) -> None:
    net = cls(rows, columns)
    assert kinds(net) == {"weight": "embedding"}
    assert [plan_decay(net, mask)["weight"].wd_mult for mask in ("standard", "no_embeddings")] == [1.0, 0.0]


def test_a_vector_beside_an_embeddings_table_is_a_vector() -> None:
    class Scaled(nn.Embedding):
        def __init__(self) -> None:
            super().__init__(9, 4)
            self.eoi_embedding = nn.Parameter(torch.ones(4))

    assert kinds(Scaled()) == {"weight": "embedding", "eoi_embedding": "vector"}


def test_a_linear_map_of_positions_is_a_matrix_whatever_its_class() -> None:
    """Conformer's linear_pos and DeBERTa's pos_proj, in a Conv1D of GPT-2's kind or a quantized Linear."""

    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

    class QuantLinear(Conv1D):
        pass

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

    net = nn.ModuleDict(
        {"pos_proj": Conv1D(), "linear_pos": QuantLinear(), "time_embed": QuantLinear(), "pos_dense": Table(),
         "pos_embed": Table()}
    )  # fmt: skip
    assert kinds(net) == {
        "pos_proj.weight": "weight", "linear_pos.weight": "weight", "time_embed.weight": "weight",
        "pos_dense.weight": "weight", "pos_embed.weight": "table",
    }  # fmt: skip


def test_experts_biases_are_known_by_the_weights_beside_them() -> None:
    expected = {"w1": "weight", "b1": "bias", "w2": "weight", "b2": "bias"}
    assert kinds(Holder(w1=(4, 8, 16), b1=(4, 16), w2=(4, 16, 8), b2=(4, 8))) == expected
    assert kinds(Holder(b1=(4, 8))) == {"b1": "weight"}
    assert kinds(Holder(w1=(4, 8), b1=(4, 8))) == {"w1": "weight", "b1": "weight"}  # a pair of low rank


def test_what_zero3_has_partitioned_keeps_its_kind() -> None:
    net = nn.ModuleDict({"emb": nn.Embedding(9, 4), "fc": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    before = plan_decay(net).to_dict()
    for p in net.parameters():
        p.ds_shape, p.data = p.shape, torch.empty(0)  # type: ignore[attr-defined]
    assert plan_decay(net).to_dict() == before
    assert [row.name for row in plan_decay(net, {"rules": [{"ndim": 2, "wd_mult": 0}]}) if not row.wd_mult][:2] == [
        "emb.weight",
        "fc.weight",
    ]


def test_thin_weights_of_layers_are_no_vectors() -> None:
    net = nn.ModuleDict({"a": nn.Linear(8, 1, bias=False), "b": nn.Conv1d(1, 1, 3, bias=False), "c": nn.LSTM(1, 4)})
    assert {name for name, kind in kinds(net).items() if kind == "weight"} == {
        "a.weight", "b.weight", "c.weight_ih_l0", "c.weight_hh_l0"
    }  # fmt: skip


def test_lists_of_parameters_are_called_what_the_list_is() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.biases = nn.ParameterList([nn.Parameter(torch.ones(2, 3))])
            self.pos_embed = nn.ParameterDict({"left": nn.Parameter(torch.ones(2, 3))})
            self.experts = nn.ParameterList([nn.Parameter(torch.ones(2, 3))])

    assert kinds(Net()) == {"biases.0": "bias", "pos_embed.left": "table", "experts.0": "weight"}


def test_parametrized_layers_are_still_what_they_are() -> None:
    net = nn.ModuleDict(
        {
            "wn": parametrizations.weight_norm(nn.Linear(4, 4)),
            "sn": parametrizations.spectral_norm(nn.Conv2d(2, 2, 3)),
            "old": Holder(weight_g=(4, 1), weight_v=(4, 4)),
        }
    )
    assert kinds(net) == {
        "wn.bias": "bias",
        "wn.parametrizations.weight.original0": "magnitude",
        "wn.parametrizations.weight.original1": "weight",
        "sn.bias": "bias",
        "sn.parametrizations.weight.original": "weight",
        "old.weight_g": "magnitude",
        "old.weight_v": "weight",
    }
    met = plan_decay(net, Mask([{"wd_mult": 0.5, "module_types": nn.Linear, "ndim": 2}]))
    assert [row.name for row in met if row.wd_mult == 0.5] == [
        *("wn.parametrizations.weight.original0", "wn.parametrizations.weight.original1")
    ]


def test_gates_named_like_weight_norms_halves_are_matrices() -> None:
    gates = {"W_q": (4, 4), "W_v": (4, 4), "W_g": (4, 4)}
    assert kinds(Holder(**gates)) == dict.fromkeys(gates, "weight")
    for shape in ((4, 1, 1), (1, 1, 3), ()):  # weight_norm over the first dimension, the last, all
        assert kinds(Holder(weight_g=shape, weight_v=(4, 2, 3))) == {"weight_g": "magnitude", "weight_v": "weight"}


def test_bias_parametrization_stays_a_bias() -> None:
    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    layer = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(layer, "bias", Double())
    assert kinds(layer) == {"weight": "weight", "parametrizations.bias.original": "bias"}


def test_fastai_lacks_group_and_rms_norm() -> None:
    assert decayed(plan_decay(nn.Sequential(nn.GroupNorm(1, 4), nn.RMSNorm(4), nn.Linear(4, 4)))) == {"2.weight"}
