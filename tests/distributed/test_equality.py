"""One process, DDP, DDP with accumulation and FSDP2 at the same global batch: same plan, coefficients and weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ddp_app.equality import EPOCHS, GLOBAL_BATCH, OPTIMIZERS, ROWS, reload_shards, train, train_matrices
from helpers.ddp import DDP_APP, SHARDS_ON_CPU, TORCHRUN, run

EQUALITY = str(DDP_APP / "equality.py")
STEPS_PER_EPOCH = ROWS // GLOBAL_BATCH
WAYS = ["ddp", "ddp_accumulated", *["fsdp2"] * SHARDS_ON_CPU]

pytestmark = pytest.mark.xdist_group("equality")  # one worker makes the results, not each


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("equality")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # for the monitor's picture
        for optimizer in OPTIMIZERS:
            torch.save(train(optimizer, "single"), folder / f"{optimizer}-single-0.pt")
    run(folder, [*TORCHRUN, "--standalone", "--nproc_per_node=2", EQUALITY, str(folder), *WAYS])
    return folder


def load(results: Path, optimizer: str, way: str, rank: int = 0) -> dict[str, Any]:
    return torch.load(results / f"{optimizer}-{way}-{rank}.pt", weights_only=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_processes_equal_one(results, optimizer, way):
    one = load(results, optimizer, "single")
    for rank in (0, 1):
        two = load(results, optimizer, way, rank)
        assert two["steps"] == one["steps"] == EPOCHS * STEPS_PER_EPOCH
        assert two["groups"] == one["groups"]
        assert two["plan"] == one["plan"]
        for name, weight in one["weights"].items():
            torch.testing.assert_close(two["weights"][name], weight, rtol=1e-10, atol=1e-12, msg=f"{name}, rank {rank}")


@pytest.mark.parametrize("way", ["single", *WAYS])
def test_what_was_tuned_is_carried_over_to_the_batch_of_all_processes(results, way):
    """B = 16 where B0 = 4, T = 12 where T0 = 48: lr = 0.01 * sqrt(4), lam = 0.5 * (0.01 * 48) / (0.02 * 12)."""
    group, _ = load(results, "cautious", way)["groups"]
    assert (group["lr"], group["weight_decay"]) == pytest.approx((0.02, 1.0), rel=1e-14)


def test_amounts_count_the_optimizer_steps_of_all_processes(results):
    decays = {name: load(results, name, "ddp")["groups"][0]["weight_decay"] for name in OPTIMIZERS}
    assert decays["adamw"] == pytest.approx(0.3 / math.sqrt(EPOCHS * STEPS_PER_EPOCH), rel=1e-12)
    assert decays["sgdw"] == pytest.approx(1 / (0.1 * 5.0 * STEPS_PER_EPOCH), rel=1e-12)
    assert (decays["adam_l2"], decays["cautious"], decays["toward"]) == (0.1, pytest.approx(1.0), 1.0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_monitor_gives_every_rank_the_same_metrics(results, optimizer):
    """An EarlyStopping that watches one of them must stop all ranks at the same step."""
    first, second = (load(results, optimizer, "ddp", rank)["metrics"] for rank in (0, 1))
    assert "wd/decay/weight_norm" in first
    assert first == second


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_monitor_sees_the_whole_of_what_is_divided(results, optimizer, way):
    """Sharded weights give the norms of one process; fractions and quantiles are of a rank's own part."""
    one, two = (load(results, optimizer, which)["metrics"] for which in ("single", way))
    assert one.keys() == two.keys()
    of_a_part = ("cautious_fraction", "lost_decay", "rounded_away")
    whole = [key for key in one if way != "fsdp2" or not key.split("/")[2].startswith(of_a_part)]
    assert {"weight_norm", "grad_norm", "relative_update", "angular_update"} <= {key.split("/")[2] for key in whole}
    assert {key: two[key] for key in whole} == pytest.approx({key: one[key] for key in whole}, rel=1e-5, abs=1e-9)


def test_what_no_rank_uses_does_not_decay_and_what_one_rank_uses_does_on_all(results):
    first, second = (torch.load(results / f"parts-{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, weight in first["after"].items():
        assert torch.equal(weight, second["after"][name]), name
        assert torch.equal(weight, first["before"][name]) == name.startswith("parts.none."), name


def test_muon_orthogonalises_whole_matrices_and_keeps_its_shard(results):
    one = train_matrices(None)
    for rank, held in ((0, [3, 6, 2]), (1, [2, 6, 2])):
        two = torch.load(results / f"matrices-{rank}.pt", weights_only=True)
        assert two["held"] == held
        assert all(map(torch.equal, two["weights"], one["weights"]))


def test_several_optimizers_over_shards_go_on_from_a_distributed_checkpoint(results):
    one = reload_shards(None)
    for rank in (0, 1):
        two = torch.load(results / f"reloaded-{rank}.pt", weights_only=True)
        for weight, whole in zip(two, one, strict=True):
            torch.testing.assert_close(weight, whole, rtol=1e-12, atol=1e-14)
