"""Names survive every wrapper, and each tensor is found under all its names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.masks import NET, Extended, compiled, net, placed
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lightning_wd import MaskError, plan_decay


def test_no_module_is_refused() -> None:
    with pytest.raises(MaskError, match="fix: pass the module itself, not its parameters"):
        plan_decay(list(net().parameters()))  # type: ignore[arg-type]


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


def inside(module: nn.Module) -> nn.Module:
    module["module"] = compiled(checkpoint_wrapper(module["module"]))  # type: ignore[index, operator]
    return module


@pytest.mark.parametrize(
    "wrap", [compiled, checkpoint_wrapper, inside, nn.DataParallel, torch.optim.swa_utils.AveragedModel]
)
def test_names_survive_wrapping(wrap: Any) -> None:
    assert placed(wrap(net())) == NET
    assert placed(wrap(net()), {"rules": [{"name": "module.*", "lr_mult": 2}]})[1] == ("module.weight", "decay_lr_x2")


def test_what_a_wrapper_adds_is_planned() -> None:
    module = Extended(net())
    assert placed(module) == [*NET, ("head.weight", "decay"), ("head.bias", "no_decay")]
    assert plan_decay(module)["module.weight"].names == ("module.weight",)
    module.add_module("norm", nn.LayerNorm(4))
    with pytest.raises(MaskError) as error:
        plan_decay(module)
    assert str(error.value) == (
        "two tensors are called 'norm.weight': one of Extended's own, and one of the module that it wraps.\n"
        "  fix: rename the one of Extended, or hold the wrapped module under a name of your own"
    )


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
        "FSDP1 has flattened parameters, so biases, norms and matrices can no longer be told apart.\n"
        "  found: _flat_param\n"
        "  fix: wrap with use_orig_params=True (Lightning's default) and plan the outermost module that is wrapped, "
        "or use FSDP2 (fully_shard; Lightning's ModelParallelStrategy)"
    )


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
