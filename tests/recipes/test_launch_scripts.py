"""The launch recipes, each as a user types it: torchrun on one and on two nodes, sbatch and submitit on real SLURM."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import slurm
from helpers.ddp import APP, assert_ranks_agree, one_tree, records, run
from helpers.recipe import ROOT
from lightning.fabric.plugins.environments.lightning import find_free_network_port

RECIPES = ROOT / "recipes"
SHORT = ["trainer=ddp_cpu", "trainer.enable_progress_bar=false", "callbacks=none"]
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def steps_logged(folder: Path) -> list[int]:
    """The optimizer steps that have a training loss in ``metrics.csv``, in the order of the file."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_torchrun_on_one_node(tmp_path):
    command = [str(RECIPES / "launch" / "torchrun.sh"), *SHORT, "trainer.max_steps=5", "trainer.log_every_n_steps=1"]
    output = run(tmp_path, [*command, "trainer.devices=3"], NPROC="2", RUN="one", PATH=PATH)  # torchrun's number holds
    assert output.count("MEMBER:") == 2
    ranks = re.findall(r"rank (\d) of 2 on \S+: config (\w+)$", (tmp_path / "outputs/one/train.log").read_text(), re.M)
    assert sorted(rank for rank, _ in ranks) == ["0", "1"]
    assert len({config for _, config in ranks}) == 1
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["one"]
    assert steps_logged(tmp_path / "outputs" / "one") == [0, 1, 2, 3, 4]
    assert (tmp_path / "outputs" / "one" / "checkpoints" / "last.ckpt").is_file()


def test_torchrun_on_two_nodes(tmp_path):
    rendezvous = {"NNODES": "2", "RENDEZVOUS": f"127.0.0.1:{find_free_network_port()}", "RUN": "two", "NPROC": "1"}
    environment = {**os.environ, **rendezvous, "PATH": PATH, "OMP_NUM_THREADS": "1"}
    command = [str(RECIPES / "launch" / "torchrun.sh"), *SHORT, "trainer.max_steps=5", "trainer.log_every_n_steps=1"]
    nodes = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    outputs = [node.communicate(timeout=500)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    assert "torchrun has started 1 process(es) on each of 2 node(s)" in "".join(outputs)
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["two"]
    assert steps_logged(tmp_path / "outputs" / "two") == [0, 1, 2, 3, 4]


def test_several_nodes_need_a_name_and_a_rendezvous(tmp_path):
    output = run(tmp_path, [str(RECIPES / "launch" / "torchrun.sh")], expected=1, NNODES="2", PATH=PATH)
    assert "several nodes: give all the same name, RUN=..." in output


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if reason := slurm.missing():
        pytest.skip(f"no SLURM here; {reason}")
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield {**environment, "PATH": PATH, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def wait_until(done: Callable[[], bool], what: str, log: Callable[[], str], seconds: float = 150.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what}: not in {seconds} s\n{log()}"
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_sbatch_saves_requeues_and_goes_on(tmp_path, cluster):
    (tmp_path / "recipes").symlink_to(RECIPES)

    def shell(*command: str) -> str:
        return subprocess.run(
            command, cwd=tmp_path, env=cluster, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ).stdout

    limits = ["trainer.max_steps=400", "trainer.max_epochs=1000", "trainer.log_every_n_steps=1"]
    job = shell("sbatch", "--parsable", "recipes/launch/slurm.sbatch", *SHORT, *limits).strip()
    folder = tmp_path / "outputs" / f"slurm-{job}"
    checkpoint = folder / "checkpoints" / "last.ckpt"

    def log() -> str:
        return (tmp_path / f"slurm-{job}.out").read_text()

    wait_until(checkpoint.is_file, "the first epoch's checkpoint", log)
    shell("scancel", "--batch", "--signal=USR1", job)  # what SLURM does 90 s before the time is over
    wait_until(lambda: "JobState=COMPLETED" in shell("scontrol", "show", "job", job), "the job's end", log)
    assert "Restarts=1" in shell("scontrol", "show", "job", job)
    assert log().count(f"resuming from {checkpoint}") == 1
    assert "`max_steps=400` reached" in log()
    steps = steps_logged(folder)
    assert steps == sorted(set(steps))  # none repeated
    assert (
        len(set(range(400)) - set(steps)) <= 1
    )  # the step of the signal was taken, but Lightning logs after its hooks


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_submitit_runs_a_sweep_of_distributed_jobs(tmp_path, cluster):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
    sweep = ["-m", "hydra/launcher=slurm_ddp", "foo=shuffle(range(1,3))", "+trainer={num_nodes:1,devices:2}"]
    limits = ["hydra.launcher.mem_gb=null", "hydra.launcher.cpus_per_task=1"]
    command = [sys.executable, str(APP), *sweep, *limits]
    done = subprocess.run(
        command, cwd=tmp_path, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
    assert assert_ranks_agree(records(one_tree(tmp_path))) == [1, 2]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_submitit_saves_requeues_and_goes_on(tmp_path, cluster):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
    limits = ["trainer.max_steps=300", "trainer.max_epochs=1000", "trainer.log_every_n_steps=1"]
    launcher = ["-m", "hydra/launcher=slurm_ddp", "hydra.launcher.mem_gb=null", "hydra.launcher.cpus_per_task=1"]
    command = [sys.executable, str(RECIPES / "train.py"), *launcher, *SHORT, *limits]

    def printed() -> str:
        return "".join(path.read_text() for path in [tmp_path / "out.txt", *tmp_path.rglob("*_log.*")])

    with (tmp_path / "out.txt").open("w") as out:
        sweep = subprocess.Popen(command, cwd=tmp_path, env=cluster, stdout=out, stderr=out)
        wait_until(lambda: any(tmp_path.glob("multirun/*/*/0/checkpoints/last.ckpt")), "a checkpoint", printed)
        subprocess.run(["scancel", "--signal=USR2", "--user=root"], env=cluster, check=True)
        assert sweep.wait(timeout=250) == 0, printed()
    assert printed().count("resuming from ") == 1
    assert "`max_steps=300` reached" in printed()
    steps = steps_logged(one_tree(tmp_path) / "0")
    assert steps == sorted(set(steps))  # none repeated
    assert len(set(range(300)) - set(steps)) <= 1


def test_a_task_that_fails_ends_the_job_of_sbatch(tmp_path):
    """The others would wait for it: what srun is started with says so."""
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$@" > arguments\n')
    (tmp_path / "srun").chmod(0o755)
    command = ["bash", str(RECIPES / "launch/slurm.sbatch")]
    job = {"SLURM_JOB_ID": "1", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "PATH": f"{tmp_path}:{PATH}"}
    run(tmp_path, command, 0, **job)
    assert (tmp_path / "arguments").read_text().startswith("--kill-on-bad-exit=1 python recipes/train.py ")
