"""The plan: rows, groups, ties, wrapping, the output layer; and that it is a partition whatever the module tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lightning_wd import ConfigError, Mask, MaskError, Rule, plan_decay


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"emb": nn.Embedding(6, 4), "module": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})


NET = [("emb.weight", "decay"), ("module.weight", "decay"), ("module.bias", "no_decay"),
       ("norm.weight", "no_decay"), ("norm.bias", "no_decay")]  # fmt: skip


def placed(module: nn.Module, mask: Any = None) -> list[tuple[str, str | None]]:
    return [(row.name, row.group) for row in plan_decay(module, mask)]


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def test_rows_are_in_the_order_of_named_parameters() -> None:
    plan = plan_decay(net())
    assert [(row.name, row.group) for row in plan] == NET
    assert [row.name for row in plan] == [name for name, _ in net().named_parameters()]
    row = plan["module.weight"]
    assert (row.names, row.shape, row.numel, row.decay, row.lr, row.style) == (
        ("module.weight",),
        (4, 4),
        16,
        1,
        1,
        None,
    )
    assert len(plan) == 5
    assert "norm.bias" in plan
    with pytest.raises(KeyError, match=r"no parameter 'norm.wight' in the plan; nearest: 'norm\.weight'"):
        plan["norm.wight"]


def test_groups_are_what_torch_takes_and_checkpoints_hold_the_names() -> None:
    module = net()
    groups = plan_decay(module, style="independent").groups(lr=0.1, weight_decay=1e-3, cautious=False)
    assert [settings_of(g) for g in groups] == [
        {"cautious": False, "name": "decay", "lr": 0.1, "base_lr": 0.1, "weight_decay": 1e-3, "style": "independent"},
        {"cautious": False, "name": "no_decay", "lr": 0.1, "base_lr": 0.1, "weight_decay": 0.0, "style": "independent"},
    ]
    own = dict(module.named_parameters())
    assert all(param is own[name] for g in groups for name, param in g["params"])
    state = torch.optim.SGD(groups).state_dict()
    assert [g["param_names"] for g in state["param_groups"]] == [
        ["emb.weight", "module.weight"],
        ["module.bias", "norm.weight", "norm.bias"],
    ]


def test_groups_with_equal_settings_are_one_and_named_readably() -> None:
    rules = [Rule(0.1, name="module.*", lr=10), Rule(0, name="emb.*", lr=10), Rule(0.1, name="norm.weight", lr=10.0)]
    groups = plan_decay(net(), Mask(rules)).groups(lr=0.01, weight_decay=0.5)
    assert [(g["name"], g["lr"], g["weight_decay"], [n for n, _ in g["params"]]) for g in groups] == [
        ("no_decay", 0.01, 0.0, ["norm.bias"]),
        ("no_decay_lr_x10", 0.1, 0.0, ["emb.weight"]),
        ("decay_x0.1_lr_x10", 0.1, 0.05, ["module.weight", "module.bias", "norm.weight"]),
    ]


def test_group_names_stay_unique_where_rounding_would_merge_them() -> None:
    rules = [Rule(0.1, name="emb.*"), Rule(0.1 + 1e-12, name="module.weight")]
    names = [g["name"] for g in plan_decay(net(), Mask(rules)).groups(lr=1, weight_decay=1)]
    assert names == ["no_decay", "decay_x0.1", "decay_x0.10000000000100001"]


def test_a_tensor_lr_is_not_aliased() -> None:
    lr = torch.tensor(0.5)
    groups = plan_decay(net()).groups(lr=lr, weight_decay=0.0)
    groups[0]["lr"].fill_(9.0)
    assert (lr.item(), groups[1]["lr"].item()) == (0.5, 0.5)
    assert type(groups[0]["base_lr"]) is float


@pytest.mark.parametrize(
    ("plan_style", "rule_style", "amount", "expected"),
    [
        ("decoupled", "independent", 0.1, 0.1 * 1e-2),  # d = lr * lam_decoupled = lam_independent
        ("independent", "corrected", 1e-3, 1e-3 / 1e-2),
        ("decoupled", "corrected", 0.1, 0.1),
        ("constant", "independent", 1e-3, 1e-3),
        (None, "independent", 0.1, 0.1),
    ],
)
def test_a_rules_style_keeps_the_strength_at_the_peak(
    plan_style: str | None, rule_style: str, amount: float, expected: float
) -> None:
    plan = plan_decay(net(), Mask([Rule(0.5, name="emb.*", style=rule_style)]), plan_style)
    group = plan.groups(lr=1e-2, weight_decay=amount)[-1]
    assert (group["name"], group["style"]) == (f"decay_x0.5_{rule_style}", rule_style)
    assert group["weight_decay"] == pytest.approx(0.5 * expected, rel=1e-15)


@pytest.mark.parametrize(("plan_style", "rule_style"), [("decoupled", "l2"), ("l2", "decoupled")])
def test_an_l2_group_among_others_takes_the_number_and_says_so(plan_style: str, rule_style: str) -> None:
    plan = plan_decay(net(), Mask([Rule(0.5, name="emb.*", style=rule_style)]), plan_style)
    words = f"has style '{rule_style}' under a weight_decay given for '{plan_style}'.*the number 0.1 is taken as it is"
    with pytest.warns(UserWarning, match=words):
        group = plan.groups(lr=1e-2, weight_decay=0.1)[-1]
    assert (group["style"], group["weight_decay"]) == (rule_style, 0.05)


def test_excluded_parameters_keep_the_plans_style() -> None:
    plan = plan_decay(net(), Mask([Rule(name="*", style="l2")]), "decoupled")
    assert {row.name: (row.group, row.style) for row in plan if not row.decay} == dict.fromkeys(
        ("module.bias", "norm.weight", "norm.bias"), ("no_decay", "decoupled")
    )


@pytest.mark.parametrize(
    ("lr", "weight_decay"), [(-1, 0.1), (0.1, -1), (float("nan"), 0), (0.1, float("inf")), (True, 0)]
)
def test_values_out_of_range_are_refused(lr: Any, weight_decay: Any) -> None:
    with pytest.raises(ConfigError, match="must be a number >= 0"):
        plan_decay(net()).groups(lr=lr, weight_decay=weight_decay)


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ConfigError, match="style 'decopled' is not a decay style"):
        plan_decay(net(), style="decopled")


def test_frozen_parameters_are_listed_and_in_no_group() -> None:
    module = net()
    module["emb"].requires_grad_(False)  # type: ignore[index]
    row = plan_decay(module)["emb.weight"]
    assert (row.group, row.reason, row.decay, row.kind) == (None, "frozen", 0.0, "embedding")
    assert "emb.weight" not in [n for g in plan_decay(module).groups(lr=1, weight_decay=1) for n, _ in g["params"]]
    assert plan_decay(module, include_frozen=True)["emb.weight"].group == "decay"


@pytest.mark.parametrize(
    ("module", "found"),
    [(nn.ReLU(), "no parameter at all"), (nn.Linear(2, 2).requires_grad_(False), "2 parameters, all frozen")],
)
def test_a_plan_with_nothing_to_train_has_no_groups(module: nn.Module, found: str) -> None:
    plan = plan_decay(module)
    with pytest.raises(MaskError) as error:
        plan.groups(lr=1, weight_decay=1)
    assert str(error.value) == (
        f"the plan has no trainable parameter, so there is nothing to optimize.\n  found: {found}\n"
        "  fix: set requires_grad=True on what shall train, or pass the module that holds the parameters"
    )


def test_no_module_is_refused() -> None:
    with pytest.raises(MaskError, match="fix: pass the module itself, not its parameters"):
        plan_decay(list(net().parameters()))  # type: ignore[arg-type]


def tied() -> nn.Module:
    module = nn.ModuleDict({"wte": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    module["head"].weight = module["wte"].weight  # type: ignore[assignment, union-attr]
    return module


def test_a_tied_tensor_is_one_row_with_all_its_names() -> None:
    plan = plan_decay(tied())
    assert [(row.names, row.decay) for row in plan] == [(("wte.weight", "head.weight"), 1.0)]
    assert plan["head.weight"] is plan["wte.weight"]
    assert len(plan.groups(lr=1, weight_decay=1)[0]["params"]) == 1


@pytest.mark.parametrize(
    ("mask", "decay", "lr"),
    [
        ("no_embeddings", 0.0, 1.0),
        (Mask([Rule(0, name="head.*")]), 0.0, 1.0),
        (Mask([Rule(1, name="head.*")], base="no_embeddings"), 0.0, 1.0),
        (Mask([Rule(2, name="wte.*")]), 2.0, 1.0),
        (Mask([Rule(lr=10, name="head.*")]), 1.0, 10.0),
        (Mask([Rule(lr=0, name="head.*")]), 1.0, 0.0),
    ],
)
def test_where_ties_disagree_exclusion_wins_then_the_earlier_evidence(mask: Any, decay: float, lr: float) -> None:
    with pytest.warns(UserWarning, match=r"disagrees about one tied tensor: wte\.weight: .*; head\.weight: "):
        (row,) = plan_decay(tied(), mask)
    assert (row.decay, row.lr) == (decay, lr)


def test_a_rule_for_all_names_of_a_tie_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = plan_decay(tied(), Mask([Rule(0.5, name="*.weight")], base="no_embeddings"))
    assert row.decay == 0.5


def test_shared_modules_and_cycles() -> None:
    module = net()
    module["again"] = module["module"]  # type: ignore[index, operator]
    module["module"].parent = module  # type: ignore[index]
    plan = plan_decay(module, style="corrected")
    assert [row.name for row in plan] == [name for name, _ in NET]
    assert plan["module.weight"].style == "decoupled"
    assert plan["module.weight"].names == ("module.weight", "again.weight")


@pytest.fixture
def one_process(tmp_path: Any) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


def inside(module: nn.Module) -> nn.Module:
    module["module"] = compiled(checkpoint_wrapper(module["module"]))  # type: ignore[index, operator]
    return module


@pytest.mark.parametrize(
    "wrap", [compiled, checkpoint_wrapper, inside, nn.DataParallel, torch.optim.swa_utils.AveragedModel]
)
def test_names_survive_wrapping(wrap: Any) -> None:
    assert placed(wrap(net())) == NET
    assert placed(wrap(net()), {"rules": [{"name": "module.*", "lr": 2}]})[1] == ("module.weight", "decay_lr_x2")


class Extended(nn.DataParallel):
    """A wrapper with a layer of its own, and with another handle on what it wraps."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.head, self.inner = nn.Linear(4, 2), module


def test_what_a_wrapper_adds_is_planned() -> None:
    module = Extended(net())
    assert placed(module) == [*NET, ("head.weight", "decay"), ("head.bias", "no_decay")]
    assert plan_decay(module)["module.weight"].names == ("module.weight",)
    module.add_module("norm", nn.LayerNorm(4))
    with pytest.raises(MaskError) as error:
        plan_decay(module)
    assert str(error.value) == (
        "two tensors are called 'norm.weight': Extended has one of its own beside that of the module that it wraps.\n"
        "  fix: rename what Extended adds, or hold the wrapped module under a name of your own"
    )


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # newer torch calls it old
def test_torchscript_has_lost_the_types() -> None:
    module = net()
    module["norm"] = torch.jit.script(nn.LayerNorm((4, 4)))  # type: ignore[index, operator]
    with pytest.raises(MaskError) as error:
        plan_decay(module)
    assert str(error.value) == (
        "TorchScript keeps no layer types, so which of these are norms, embeddings or matrices is lost.\n"
        "  found: norm.weight, norm.bias\n"
        "  fix: plan and train the module before torch.jit.script or torch.jit.trace, or freeze what is scripted"
    )
    for param in module["norm"].parameters():  # type: ignore[index]
        param.requires_grad_(False)
    assert placed(module)[3:] == [("norm.weight", None), ("norm.bias", None)]


def test_a_users_own_dict_called_parametrizations() -> None:
    module = nn.ModuleDict(
        {"parametrizations": nn.ModuleDict({"bias": nn.Linear(4, 4), "weight": nn.LayerNorm((4, 4))})}
    )
    assert [(row.name, row.kind) for row in plan_decay(module)] == [
        ("parametrizations.bias.weight", "weight"),
        ("parametrizations.bias.bias", "bias"),
        ("parametrizations.weight.weight", "norm"),
        ("parametrizations.weight.bias", "bias"),
    ]


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # FSDP1 calls itself old, and CPU slow
def test_names_survive_distributed_wrapping() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.nn.parallel import DistributedDataParallel

    assert placed(DistributedDataParallel(compiled(net()))) == NET

    class Root(nn.Module):  # torch 2.6 shards no ModuleDict, not even one with a forward
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def no_weight_decay(self) -> set[str]:
            return {"emb.weight"}

    sharded = Root()
    for name, child in net().named_children():
        sharded.add_module(name, child)
    before = plan_decay(sharded).to_dict()
    assert before["parameters"][0]["reason"] == "hook Root.no_weight_decay()"
    fully_shard(sharded.get_submodule("module"))
    fully_shard(sharded.get_submodule("norm"))
    fully_shard(sharded)
    assert plan_decay(sharded).to_dict() == before
    assert all(type(param).__name__ == "DTensor" for g in plan_decay(sharded).groups(lr=1, weight_decay=1)
               for _, param in g["params"])  # fmt: skip
    cpu = torch.device("cpu")
    assert placed(FullyShardedDataParallel(net(), use_orig_params=True, device_id=cpu)) == NET
    with pytest.raises(MaskError) as error:
        plan_decay(FullyShardedDataParallel(net(), device_id=cpu))
    assert str(error.value) == (
        "FSDP1 has flattened parameters, so which of them are biases, norms or matrices is lost.\n"
        "  found: _flat_param\n"
        "  fix: plan before wrapping, or use FSDP2 (fully_shard; Lightning's ModelParallelStrategy)"
    )


FSDP1_SCRIPT = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from lightning_wd import MaskError, plan_decay

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
for original in (True, False):
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.LayerNorm(4), nn.Linear(4, 4))
    net[2] = FSDP(net[2], use_orig_params=original, device_id=torch.device("cpu"))
    try:
        plan_decay(net)
    except MaskError as error:
        print(str(error).splitlines()[1].strip(), [p.ndim for p in net[2].parameters()], flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_fsdp1_makes_every_parameter_flat(tmp_path: Path) -> None:
    """pytorch#101343, open_clip#358: also with use_orig_params a matrix is 1-D, and ndim rules exempt all of them."""
    script = tmp_path / "flat.py"
    script.write_text(FSDP1_SCRIPT)
    root = Path(__file__).parents[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(root)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(rank), str(tmp_path / "store")],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    done = [process.communicate(timeout=500) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], [err[-2000:] for _, err in done]
    assert done[0][0].splitlines() == ["found: 2.weight, 2.bias [1, 1]", "found: 2._flat_param [1]"]
    assert done[1][0].splitlines() == ["found: 2.weight [1, 1]", "found: 2._flat_param [1]"]  # its bias is whole


def test_hooks_that_list_wrapped_names_are_found() -> None:
    class Lister(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = compiled(nn.Linear(4, 4))

        def no_weight_decay(self) -> list[str]:
            return [name for name, _ in self.named_parameters() if name.endswith("weight")]

    assert placed(nn.Sequential(Lister())) == [("0.fc.weight", "no_decay"), ("0.fc.bias", "no_decay")]


def test_a_lightning_module_and_its_metrics() -> None:
    lightning = pytest.importorskip("lightning")
    torchmetrics = pytest.importorskip("torchmetrics")

    class Lit(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.acc = net(), torchmetrics.Accuracy("binary")

    expected = [(f"net.{name}", group) for name, group in NET]
    assert placed(Lit()) == expected
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    assert placed(fabric.setup(Lit())) == expected


def test_the_meta_device() -> None:
    with torch.device("meta"):
        assert placed(net()) == NET


class Model(nn.Module):
    """A body, a head and a last Linear that is not the output, with the hook of a library."""

    def __init__(self, hook: str = "") -> None:
        super().__init__()
        self.head, self.body = nn.Linear(4, 4), nn.Linear(4, 4)
        if hook:
            self.__class__ = type("Model", (Model,), {hook: lambda self: self.head})


def styles(module: nn.Module, mask: Any = None) -> dict[str, str | None]:
    return {row.name: row.style for row in plan_decay(module, mask, "corrected") if row.decay}


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

    plan = plan_decay(nn.ModuleDict({"model": Bert()}), Mask.layerwise(0.5, [Rule(lr=3, name="*.head.bias")]))
    assert {row.name: row.lr for row in plan} == {
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
    return {row.name.removesuffix(".weight"): row.lr for row in plan_decay(module, Mask.layerwise(0.5))}


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
    resnet = nn.ModuleDict({f"layer{i}": nn.Sequential(*linears(1)["layers"]) for i in (1, 2)})
    assert layer_rates(nn.ModuleDict({"conv1": nn.RMSNorm(4), **resnet, "fc": nn.RMSNorm(4)})) == {
        "conv1": 0.125,
        "layer1.0": 0.25,
        "layer2.0": 0.5,
        "fc": 1.0,
    }
    vit = nn.ModuleDict({"conv_proj": nn.RMSNorm(4), "encoder": nn.ModuleDict({"ln0": nn.RMSNorm(4)})})
    vit["encoder"]["layers"] = nn.ModuleDict({f"encoder_layer_{i}": nn.RMSNorm(4) for i in range(2)})
    assert layer_rates(vit) == {
        "conv_proj": 0.25,
        "encoder.ln0": 0.25,
        "encoder.layers.encoder_layer_0": 0.5,
        "encoder.layers.encoder_layer_1": 1.0,
    }
    experts = nn.ModuleList(linears(2) for _ in range(2))
    moe = nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"experts": e}) for e in [experts])})
    moe["layers"].append(nn.RMSNorm(4))
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
    assert {row.name.removesuffix(".weight"): row.lr for row in plan} == {
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


def test_a_reason_is_only_text() -> None:
    plan = plan_decay(nn.Linear(4, 4), Mask([Rule(0, name="weight", reason="frozen")]))
    assert [(row.name, row.group, row.reason) for row in plan] == [
        ("weight", "no_decay", "frozen"),
        ("bias", "no_decay", "bias"),
    ]


def test_a_style_that_nothing_takes_is_refused() -> None:
    with pytest.raises(MaskError) as error:
        plan_decay(net(), {"rules": [{"name": "*.bias", "lr": 2, "style": "l2"}]}, "decoupled")
    assert str(error.value) == (
        "the style 'l2' of mask rule (name '*.bias') has no effect: nothing that it matches decays.\n"
        "  fix: give the rule a decay, or remove its style"
    )
    plan = plan_decay(net(), {"rules": [{"name": "module.*", "style": "l2"}]}, "decoupled")
    assert [(row.style, row.reason) for row in plan][1:3] == [
        ("l2", "weight; style l2 by rule name 'module.*'"),
        ("decoupled", "bias"),
    ]


def test_settings_of_marks_are_plain_data() -> None:
    module = nn.Linear(2, 2)
    module.weight._optim = {"betas": (torch.tensor(0.5), 0.9), "foreach": None, "fused": True, "maker": net}  # type: ignore[attr-defined]
    settings = json.loads(json.dumps(plan_decay(module).to_dict()))["parameters"][0]["settings"]
    assert settings == {"betas": [0.5, 0.9], "fused": True, "maker": repr(net)}


def test_diff_names_what_two_plans_treat_differently() -> None:
    module = net()
    one, other = (
        plan_decay(module),
        plan_decay(module, {"base": "no_embeddings", "rules": [{"name": "norm.*", "lr": 2, "reason": "mine"}]}),
    )
    assert [str(d) for d in one.diff(other)] == [
        "emb.weight: decay (embedding) / no_decay (embedding)",
        "norm.weight: no_decay (norm layer LayerNorm) / no_decay_lr_x2 (norm layer LayerNorm; lr x2 by mine)",
        "norm.bias: no_decay (bias) / no_decay_lr_x2 (bias; lr x2 by mine)",
    ]
    assert one.diff(plan_decay(module)) == ()
    small = plan_decay(nn.ModuleDict({"emb": nn.Embedding(6, 4), "new": nn.Linear(1, 1, bias=False)}))
    assert [str(d) for d in one.diff(small)][-1] == "new.weight: absent / decay (weight)"
    assert str(one.diff(small)[0]) == "module.weight: decay (weight) / absent"


def test_plain_data_and_the_table() -> None:
    from rich.console import Console

    plan = plan_decay(tied(), style="decoupled")
    assert json.loads(json.dumps(plan.to_dict())) == {
        "style": "decoupled",
        "totals": {"decay": {"tensors": 1, "numel": 24}},
        "parameters": [
            {
                "name": "wte.weight", "names": ["wte.weight", "head.weight"], "shape": [6, 4], "numel": 24,
                "decay": 1.0,
                "lr": 1.0, "style": "decoupled", "group": "decay", "reason": "embedding", "kind": "embedding",
            }
        ],
    }  # fmt: skip
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as shown:
        console.print(plan.table())
    assert "wte.weight = head.weight" in shown.get()
    assert "6 x 4" in shown.get()


LEAVES = st.sampled_from(
    [lambda: nn.Linear(2, 3), lambda: nn.Conv1d(2, 2, 1), lambda: nn.LayerNorm(3), lambda: nn.BatchNorm1d(2),
     lambda: nn.Embedding(3, 2), lambda: nn.LSTM(1, 2), lambda: nn.PReLU(), lambda: nn.ReLU(),
     lambda: nn.MultiheadAttention(2, 1), lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))]
)  # fmt: skip
NAMES = st.sampled_from(["module", "_orig_mod", "norm", "bias", "net", "head", "a_b", "0x"])
TREES = st.recursive(
    st.tuples(st.just("leaf"), LEAVES), lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=10
)


def build(tree: Any) -> nn.Module:
    return tree[1]() if isinstance(tree, tuple) else nn.ModuleDict({name: build(sub) for name, sub in tree.items()})  # type: ignore[no-any-return]


@settings(max_examples=60, deadline=None)
@given(tree=TREES, data=st.data())
def test_a_plan_is_a_partition_whatever_the_module(tree: Any, data: st.DataObject) -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"root": build(tree), "end": nn.Linear(2, 2)})
    linears = [m for m in module.modules() if type(m) is nn.Linear and m.weight.shape == (2, 2)]
    if len(linears) > 1 and data.draw(st.booleans(), label="tie"):
        linears[0].weight = linears[-1].weight
    for param in module.parameters():
        param.requires_grad_(data.draw(st.booleans()))
    plan = plan_decay(module)
    assert [row.name for row in plan] == [name for name, _ in module.named_parameters()]
    every = [name for row in plan for name in row.names]
    assert sorted(every) == sorted(name for name, _ in module.named_parameters(remove_duplicate=False))
    trainable = {id(p) for p in module.parameters() if p.requires_grad}
    if trainable:
        members = [id(param) for g in plan.groups(lr=1, weight_decay=1) for _, param in g["params"]]
        assert len(members) == len(set(members))
        assert set(members) == trainable
    before = {id(row.param): (row.name, row.decay, row.group, row.reason) for row in plan}
    for wrapped in (nn.DataParallel(module), checkpoint_wrapper(module), compiled(module), Extended(module)):
        after = {id(r.param): (r.name, r.decay, r.group, r.reason) for r in plan_decay(wrapped)}
        assert {key: after[key] for key in before} == before
        assert len(after) == len(list(wrapped.parameters()))
    renamed = plan_decay(nn.ModuleDict({"other": module}))
    assert {id(r.param): (r.name, r.decay, r.group, r.reason) for r in renamed} == {
        key: (f"other.{name}", *rest) for key, (name, *rest) in before.items()
    }
