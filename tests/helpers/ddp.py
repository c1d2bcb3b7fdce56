"""Running apps in several processes: the ranks of tests/ddp_app write what they ran with, and tests read it back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.recipe import ROOT

DDP_APP = ROOT / "tests" / "ddp_app"
APP = DDP_APP / "app.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SHARDS_ON_CPU = hasattr(torch.cpu.Stream, "record_event")
needs_shards_on_cpu = pytest.mark.skipif(not SHARDS_ON_CPU, reason="torch 2.6 runs no FSDP2 on CPU")
LAUNCH_VARIABLES = ["LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]


def run(folder: Path, command: list[str], expected: int = 0, **environment: str) -> str:
    """Run a command in a folder and return its output; fail with that output unless it exits as expected."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = {k: v for k, v in os.environ.items() if k not in (*LAUNCH_VARIABLES, "PL_GLOBAL_SEED")}
    variables |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PWD": str(folder), **environment}
    done = subprocess.run(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=560
    )
    assert done.returncode == expected, done.stdout
    return done.stdout


def app(folder: Path, *arguments: str, expected: int = 0, **environment: str) -> str:
    return run(folder, [sys.executable, str(APP), *arguments], expected, **environment)


def records(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """What each rank wrote: job folder -> rank -> record."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for path in sorted(folder.rglob("rank*.json")):
        found[str(path.parent.relative_to(folder))][int(path.stem[4:])] = json.loads(path.read_text())
    return dict(found)


def assert_ranks_agree(jobs: dict[str, dict[int, dict[str, Any]]], key: str = "foo", world_size: int = 2) -> list[Any]:
    """Every job has each rank once, with one config and one set of weights; return the values of a key, sorted."""
    for job, ranks in jobs.items():
        assert sorted(ranks) == list(range(world_size)), job
        for record in ranks.values():
            assert record["world_size"] == world_size
            assert record["weights"] == ranks[0]["weights"], job
            assert record["tested"] == ranks[0]["tested"], job
            own = {"clock": None, "mode": None}
            assert {**record["config"], **own} == {**ranks[0]["config"], **own}, job
    return sorted(ranks[0]["config"][key] for ranks in jobs.values())


def one_tree(folder: Path) -> Path:
    """The only sweep folder below ``multirun``."""
    (tree,) = (folder / "multirun").glob("*/*")
    assert not (folder / "outputs").exists()
    return tree
