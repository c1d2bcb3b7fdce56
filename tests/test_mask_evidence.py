"""What each tensor is taken for, and the cases in which other libraries' masks are silently wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_wd import Mask, MaskError, Rule, plan_decay
from lightning_wd.mask import peer_plan


class Holder(nn.Module):
    """A module that owns tensors of the given names and shapes, and nothing else."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.ones(shape)))


def named(name: str, *bases: type, **shapes: tuple[int, ...]) -> nn.Module:
    """A module of a class with this name."""
    return type(name, bases or (Holder,), {})(**shapes)  # type: ignore[no-any-return]


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
        ({"gamma": (8, 1, 1)}, "vector"),
        ({"gain": (8, 1, 1, 1)}, "vector"),
        ({"logit_scale": (3, 1, 1)}, "vector"),
        ({"time_mix_key": (1, 1, 8)}, "vector"),
        ({"alpha": (1, 8, 1)}, "vector"),
        ({"alpha": (4, 128)}, "vector"),
        ({"gamma": (4, 128), "beta": (4, 128)}, "vector"),
        ({"beta": (50, 2000)}, "weight"),  # topics by words
        ({"scale": ()}, "vector"),
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
        p.ds_shape, p.data = p.shape, torch.empty(0)
    assert plan_decay(net).to_dict() == before
    assert [row.name for row in plan_decay(net, {"rules": [{"ndim": 2, "decay": 0}]}) if not row.decay][:2] == [
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
    met = plan_decay(net, Mask([Rule(0.5, module_types=nn.Linear, ndim=2)]))
    assert [row.name for row in met if row.decay == 0.5] == [
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


class Hooked(nn.Module):
    def __init__(self, names: Any, keywords: Any = ()) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(8, 4))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4))
        self.proj = nn.Linear(4, 4)
        self._names, self._keywords = names, keywords

    def no_weight_decay(self) -> Any:
        return self._names

    def no_weight_decay_keywords(self) -> Any:
        return self._keywords


@pytest.mark.parametrize("collection", [list, set, tuple, dict.fromkeys])
def test_hooks_of_any_submodule_hold_under_its_prefix(collection: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 4), Hooked(collection(["proj.weight", "absent", "0.weight"])))
    plan = plan_decay(net)
    assert {row.name for row in plan if not row.decay and row.name.endswith("weight")} == {"1.proj.weight"}
    assert plan["1.proj.weight"].reason == "hook Hooked.no_weight_decay()"


@pytest.mark.parametrize("hook", ["no_weight_decay", "no_weight_decay_keywords"])
def test_hooks_hung_on_one_module_hold_too(hook: str) -> None:
    net = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    setattr(net["a"], hook, lambda: {"weight"})
    plan = plan_decay(net)
    assert {row.name for row in plan if row.decay} == {"b.weight"}
    assert plan["a.weight"].reason == f"hook Linear.{hook}()"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch calls its older reparametrizations old
def test_hooks_name_what_older_reparametrizations_have_renamed() -> None:
    from torch.nn.utils import prune

    for wrap, leaves in (
        (nn.utils.spectral_norm, {"weight_orig"}),
        (nn.utils.weight_norm, {"weight_g", "weight_v"}),
        (lambda layer: prune.l1_unstructured(layer, "weight", amount=1), {"weight_orig"}),
    ):
        net = nn.Sequential(Hooked({"proj.weight"}))
        wrap(net[0].proj)  # type: ignore[operator]
        hook = "hook Hooked.no_weight_decay()"
        assert {row.name for row in plan_decay(net) if row.reason == hook} == {f"0.proj.{leaf}" for leaf in leaves}


def test_hooks_with_wildcards_under_a_prefix_that_looks_like_one() -> None:
    plan = plan_decay(nn.ModuleDict({"[a]": Hooked(["cpb_mlp.*"])}))
    assert plan["[a].cpb_mlp.0.weight"].reason == "hook Hooked.no_weight_decay()"


def test_hooks_with_wildcards_and_keywords() -> None:
    plan = plan_decay(nn.Sequential(Hooked(["cpb_mlp.*"], ["proj"]), nn.Linear(4, 4)))
    assert {row.name for row in plan if row.decay} == {"1.weight"}
    assert plan["0.cpb_mlp.1.weight"].reason == "hook Hooked.no_weight_decay()"
    assert plan["0.proj.weight"].reason == "hook Hooked.no_weight_decay_keywords()"


def test_a_rule_overrides_a_hook_and_all_and_none_ignore_it() -> None:
    net = Hooked({"proj.weight"})
    assert plan_decay(net, Mask([Rule(1, name="proj.weight")]))["proj.weight"].decay == 1
    assert plan_decay(net, "matrices")["proj.weight"].decay == 0
    assert plan_decay(net, "all")["proj.weight"].decay == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "pos_embed",
            "Hooked.no_weight_decay() must return a collection of parameter names but got 'pos_embed'.\n"
            "  found: str\n  fix: return a set of names, for example {'pos_embed', 'cls_token'}",
        ),
        (
            [3],
            "Hooked.no_weight_decay() must return a collection of parameter names but got [3].\n"
            "  found: list\n  fix: return a set of names, for example {'pos_embed', 'cls_token'}",
        ),
    ],
)
def test_hooks_that_return_no_names_are_refused(names: Any, message: str) -> None:
    with pytest.raises(MaskError) as error:
        plan_decay(Hooked(names))
    assert str(error.value) == message


def test_a_hook_that_fails_is_refused() -> None:
    class Broken(nn.Linear):
        def no_weight_decay(self) -> set[str]:
            raise KeyError("x")

    with pytest.raises(MaskError, match=r"Broken.no_weight_decay\(\) failed: KeyError: 'x'"):
        plan_decay(Broken(2, 2))


def test_marks_of_mamba_and_s4() -> None:
    net = Holder(a=(4, 4), b=(4, 4), c=(4, 4), d=(4, 4), e=(4, 4))
    net.a._no_weight_decay = True  # type: ignore[union-attr]
    net.b._optim = {"weight_decay": 0.0, "lr": 1e-4}  # type: ignore[union-attr]
    net.c._optim = {"weight_decay": 0.02, "lr": None}  # type: ignore[union-attr]
    net.d._no_weight_decay = False  # type: ignore[union-attr]
    plan = plan_decay(net)
    assert {row.name: (row.decay, row.reason) for row in plan} == {
        "a": (0.0, "mark _no_weight_decay"),
        "b": (0.0, "mark _optim"),
        "c": (1.0, "mark _optim"),
        "d": (1.0, "weight"),
        "e": (1.0, "weight"),
    }
    groups = {g["name"]: g for g in plan.groups(lr=1e-2, weight_decay=0.1)}
    assert {
        name: (g["lr"], g["base_lr"], g["weight_decay"], [n for n, _ in g["params"]]) for name, g in groups.items()
    } == {
        "decay": (1e-2, 1e-2, 0.1, ["d", "e"]),
        "no_decay": (1e-2, 1e-2, 0.0, ["a"]),
        "no_decay_lr_0.0001": (1e-4, 1e-4, 0.0, ["b"]),
        "decay_0.02": (1e-2, 1e-2, 0.02, ["c"]),
    }
    ruled = plan_decay(net, Mask([Rule(0.5, name="c"), Rule(lr=3, name="b")]))
    assert {g["name"] for g in ruled.groups(lr=1e-2, weight_decay=0.1)} == {
        *("decay", "no_decay", "no_decay_lr_x3", "decay_x0.5")
    }
    net.e._optim = {"lr": -1}  # type: ignore[union-attr]
    with pytest.raises(MaskError, match="lr in the mark _optim of 'e' must be a number >= 0 but got -1"):
        plan_decay(net)


class PosEmbed(nn.Module):
    """A ViT's outline: a position table whose name says nothing, known by the hook alone."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Parameter(torch.ones(1, 4, 4))
        self.fc = nn.Linear(4, 4)

    def no_weight_decay(self) -> set[str]:
        return {"grid"}


def decayed(plan: Any) -> set[str]:
    return {row.name for row in plan if row.decay}


def test_hooks_name_layers_and_parametrized_tensors() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
            self.cpb_mlp = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4))
            self.cpb_mlp2 = nn.Linear(4, 4)

        def no_weight_decay(self) -> set[str]:
            return {"proj.weight", "cpb_mlp", "absent"}

    reasons = {row.name: row.reason for row in plan_decay(Net()) if row.name.endswith(("weight", "original"))}
    hook = "hook Net.no_weight_decay()"
    assert reasons == {
        "proj.parametrizations.weight.original": hook,
        "cpb_mlp.0.weight": hook,
        "cpb_mlp.2.weight": hook,
        "cpb_mlp2.weight": "weight",
    }


def test_timm_loses_the_hook_in_a_lightning_module_and_under_compile() -> None:
    wrapped = nn.ModuleDict({"model": PosEmbed()})
    assert decayed(peer_plan(wrapped, "timm")) == {"model.grid", "model.fc.weight"}
    assert decayed(plan_decay(wrapped)) == {"model.fc.weight"}
    compiled: Any = torch.compile(PosEmbed(), backend="eager")
    assert decayed(peer_plan(compiled, "timm")) == {"grid", "fc.weight"}
    assert decayed(plan_decay(compiled)) == {"fc.weight"}


def test_transformers_decays_norms_it_does_not_know_and_exempts_debias() -> None:
    """pytorch_optimizer likewise."""
    net = nn.ModuleDict(
        {
            "n1": named("MyRMSNorm", weight=(4,)), "n2": nn.BatchNorm1d(4), "n3": nn.GroupNorm(1, 4),
            "ssm": Holder(A_log=(4, 4)), "debias_proj": nn.Linear(4, 4),
        }
    )  # fmt: skip
    assert decayed(peer_plan(net, "transformers")) == {"n1.weight", "n2.weight", "n3.weight", "ssm.A_log"}
    assert decayed(plan_decay(net)) == {"debias_proj.weight"}


def test_ndim_rules_decay_weight_norms_magnitude() -> None:
    net = parametrizations.weight_norm(nn.Linear(4, 4))
    assert "parametrizations.weight.original0" in decayed(peer_plan(net, "ndim"))
    for mask in ("standard", "no_embeddings", "matrices"):
        assert decayed(plan_decay(net, mask)) == {"parametrizations.weight.original1"}


def test_lightly_returns_tied_parameters_twice_frozen_ones_and_decays_rms_norm() -> None:
    net = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False), "norm": nn.RMSNorm(4)})
    net["b"].weight = net["a"].weight
    net["c"] = nn.Linear(4, 4).requires_grad_(False)
    groups = plan_decay(net).groups(lr=1, weight_decay=1)
    assert [[name for name, _ in g["params"]] for g in groups] == [["a.weight"], ["norm.weight"]]


def test_fastai_lacks_group_and_rms_norm() -> None:
    assert decayed(plan_decay(nn.Sequential(nn.GroupNorm(1, 4), nn.RMSNorm(4), nn.Linear(4, 4)))) == {"2.weight"}


def test_nemo_drops_what_only_starts_like_a_group() -> None:
    net = nn.ModuleDict({"encoder": nn.Linear(4, 4), "encoder_proj": nn.Linear(4, 4)})
    plan = plan_decay(net, Mask([Rule(lr=0.1, name="encoder.*")]))
    placed = {name: g["lr"] for g in plan.groups(lr=1.0, weight_decay=0) for name, _ in g["params"]}
    assert placed == {"encoder.weight": 0.1, "encoder.bias": 0.1, "encoder_proj.weight": 1.0, "encoder_proj.bias": 1.0}


def test_timms_own_test_excludes_a_relu_and_nothing_complains() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(MaskError, match=r"mask pattern '1\.weight' matched no parameter"):
        plan_decay(net, Mask([Rule(0, name="1.weight")]))


def test_ndim_rules_never_decay_a_lazy_weight() -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.LazyConv2d(4, 3))
    with pytest.raises(MaskError) as error:
        plan_decay(net)
    assert str(error.value) == (
        "4 lazy parameters have no shape yet.\n  found: 0.weight, 0.bias, 1.weight, 1.bias\n"
        "  fix: run a dummy batch through the module before its optimizer is configured"
    )
    net[0](torch.ones(1, 2))
    assert plan_decay(net[0])["weight"].decay == 1


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(
        MaskError, match=r"policy 'tim' is unknown.\n  valid: timm, transformers, ndim\n  nearest: 'timm'"
    ):
        peer_plan(nn.Linear(2, 2), "tim")
