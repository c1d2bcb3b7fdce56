"""FSDP1 with original parameters, on two processes: each holds pieces, and the plan is of the whole tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ddp_app.fsdp1 import EPOCHS, MASK, OPTIMIZERS, Net, train
from helpers.ddp import DDP_APP, TORCHRUN, run
from lightning.pytorch.strategies import SingleDeviceStrategy

import lightning_wd as wd

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("fsdp1")]  # one worker makes the results, not each

GROUPS = [
    ("decay", ["net.mix", "net.blocks.0.linear.weight", "net.head.weight"]),
    (
        "no_decay",
        ["net.pos_embed", "net.scale", "net.blocks.0.norm.weight", "net.blocks.0.norm.bias",
         "net.blocks.0.linear.bias", "net.head.bias"],
    ),
    ("no_decay_lr_x0.5", ["net.blocks.1.norm.weight", "net.blocks.1.norm.bias", "net.blocks.1.linear.bias"]),
    ("decay_lr_x0.5", ["net.blocks.1.linear.weight"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp1")
    script = [str(DDP_APP / "fsdp1.py"), str(folder)]
    run(folder, [*TORCHRUN, "--standalone", "--nproc_per_node=2", *script], PYTHONWARNINGS="ignore")
    return folder


def load(results: Path, name: str, rank: int) -> dict[str, Any]:
    return torch.load(results / f"{name}-{rank}.pt", weights_only=True)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_rank_has_the_groups_of_the_whole_tensors_whatever_its_pieces(results: Path, optimizer: str) -> None:
    expected = wd.plan_decay(Net(), MASK).to_dict()
    for rank in (0, 1):
        made = load(results, optimizer, rank)
        assert [(group["name"], group["param_names"]) for group in made["groups"]] == GROUPS
        keys = ("shape", "numel", "kind", "wd_mult", "lr_mult", "reason", "group")
        rows = [[row[key] for key in keys] for row in made["plan"]["parameters"]]
        assert rows == [[row[key] for key in keys] for row in expected["parameters"]]
        assert made["pieces"]["net.mix"] in ([11], [25])  # the case is real: a matrix of 6 x 6, in pieces of one axis
    assert {len(load(results, optimizer, rank)["pieces"]["net.head.bias"]) for rank in (0, 1)} == {1}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_trains_as_one_process_does_and_resumes_exactly(results: Path, optimizer: str) -> None:
    one = train(optimizer, SingleDeviceStrategy(), EPOCHS)
    weights = dict(one.lightning_module.named_parameters())
    for rank in (0, 1):
        whole, resumed = (load(results, name, rank)["weights"] for name in (optimizer, f"{optimizer}-resumed"))
        assert whole.keys() == resumed.keys() == weights.keys()
        for name, weight in weights.items():
            assert torch.equal(resumed[name], whole[name]), name
            torch.testing.assert_close(whole[name], weight.detach(), rtol=1e-5, atol=1e-6, msg=name)


def test_in_a_loop_of_torch_it_is_planned_before_or_after_wrapping(results: Path) -> None:
    for rank in (0, 1):
        made = load(results, "by_hand", rank)
        before, after = made["before"], made["after"]
        assert before["plan"] == after["plan"]
        assert before["states"] == after["states"] > 0
        assert all(map(torch.equal, before["pieces"], after["pieces"]))


def test_what_has_lost_its_shapes_is_refused_with_the_way_to_keep_them(results: Path) -> None:
    problem = "FSDP1 has flattened parameters, so biases, norms and matrices can no longer be told apart.\n  found: "
    fix = (
        "\n  fix: wrap with use_orig_params=True (Lightning's default) and plan the outermost module that is wrapped, "
        "or use FSDP2 (fully_shard; Lightning's ModelParallelStrategy)"
    )
    for rank in (0, 1):
        refused = load(results, "by_hand", rank)["refused"]
        assert refused["flat"] == f"{problem}_flat_param{fix}"
        assert refused["within"].startswith(f"{problem}pos_embed, scale, mix, ")
        assert refused["within"].endswith(fix)
