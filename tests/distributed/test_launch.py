"""The other ranks of a Hydra job, in real two-process gloo runs: each writes what it ran with, and tests read that."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.ddp import DDP_APP, app, assert_ranks_agree, one_tree, records, run
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus
from hydra.types import RunMode
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port

from lightning_wd.distributed import launch
from lightning_wd.distributed.launch import JobLauncher, _JobEnd, _outlives_the_sweep, _program, _quoted
from lightning_wd.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:The `srun` command is available")


sweeps = pytest.mark.xdist_group("launch")  # one worker sweeps, not each


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of shuffled values, where jobs of two processes and of one take turns."""
    folder = tmp_path_factory.mktemp("shuffled")
    arguments = ["foo=shuffle(1,2,3,1)", "processes=2,1", "resolve=3", "+number=${hydra:job.num}"]
    port = str(find_free_network_port())
    app(folder, "-m", *arguments, "+sweep=${hydra:sweep.dir}", PL_GLOBAL_SEED="11", MASTER_PORT=port)
    return one_tree(folder)


@sweeps
def test_a_shuffled_sweep_trains_the_same_config_on_every_rank(shuffled):
    distributed = {job: ranks for job, ranks in records(shuffled).items() if int(job) % 2 == 0}
    assert assert_ranks_agree(distributed) == [1, 1, 2, 3]
    assert assert_ranks_agree(distributed, "number") == [0, 2, 4, 6]
    assert sorted(path.name for path in (shuffled / "0").iterdir()) == [".hydra", "app.log", "rank0.json", "rank1.json"]


@sweeps
def test_each_job_starts_clean_after_a_distributed_one(shuffled):
    jobs = records(shuffled)
    assert {job: sorted(ranks) for job, ranks in jobs.items()} == {str(n): [[0, 1], [0]][n % 2] for n in range(8)}
    weights = defaultdict(list)
    for job in jobs.values():
        assert job[0]["initialized"] is False
        assert job[0]["before"] == ["MASTER_PORT", "PL_GLOBAL_SEED"]  # the user's own, and nothing of Lightning's
        weights[job[0]["config"]["foo"], job[0]["world_size"]].append(job[0]["weights"])
    assert {of: len(found) for of, found in weights.items() if of[0] == 1} == {(1, 1): 2, (1, 2): 2}
    assert all(found == found[:1] * len(found) for found in weights.values())


@sweeps
def test_an_app_that_resolves_its_config_in_place_raises_no_false_alarm(shuffled):
    resolved = [record for job in records(shuffled).values() for record in job.values() if record["resolved"]]
    assert sorted(record["world_size"] for record in resolved) == [1, 2, 2]
    assert {record["config"]["sweep"] for record in resolved} == {str(shuffled.relative_to(shuffled.parents[2]))}


FAIL = ["late", "rank1", "rank0", "caught", "none"]


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep of jobs that each fail in another way, and of one that does not; its folder and what it printed."""
    folder = tmp_path_factory.mktemp("failing")
    end = "+hydra.callbacks.end._target_=app.Ended"
    output = app(folder, "-m", f"fail={','.join(FAIL)}", end, expected=1)
    return one_tree(folder), output


def end_of(tree: Path, fail: str) -> tuple[str, str]:
    """How this job ended on rank 0: its status, and what it returned or raised."""
    end = json.loads((tree / str(FAIL.index(fail)) / "end0.json").read_text())
    return end["status"], end["value"]


def assert_the_next_job_followed(tree: Path, fail: str) -> None:
    number = FAIL.index(fail)
    raised, next_job = tree / str(number) / "raised", tree / str(number + 1) / ".hydra" / "config.yaml"
    assert 0 <= next_job.stat().st_mtime - raised.stat().st_mtime < 30


@sweeps
def test_a_failing_rank_ends_its_job_with_its_own_error_and_the_sweep_goes_on(failing):
    tree, output = failing
    assert "RuntimeError: boom on rank 1" in output
    log = (tree / str(FAIL.index("rank1")) / "app.log").read_text()
    assert "- local rank 1 ended with exit code 1; see its error above." in log
    assert "RuntimeError: boom on rank 0" not in output  # Hydra shows the first failing job's error only
    assert end_of(tree, "rank1")[0] == "FAILED"
    assert end_of(tree, "rank0") == ("FAILED", "RuntimeError('boom on rank 0')")
    assert end_of(tree, "none") == ("COMPLETED", "0.0")
    assert {job: sorted(ranks) for job, ranks in records(tree).items()} == {"0": [0], "4": [0, 1]}
    for fail in ("rank1", "rank0"):
        assert_the_next_job_followed(tree, fail)


@sweeps
def test_a_job_that_catches_rank_zeros_error_does_not_wait_for_the_others(failing):
    """They wait for it in a collective, for gloo's half hour."""
    tree, _ = failing
    assert end_of(tree, "caught") == ("COMPLETED", "inf")
    assert_the_next_job_followed(tree, "caught")


@sweeps
def test_a_rank_that_fails_after_training_fails_the_job(failing):
    tree, output = failing
    assert "RuntimeError: late boom" in output
    error = "local rank 1 ended with exit code 1; see its error above."
    assert f"RuntimeError: {error}" in output
    assert end_of(tree, "late") == ("FAILED", f"RuntimeError('{error}')")


def test_a_rank_does_not_wait_for_a_rank_zero_that_is_gone(tmp_path):
    rank = "import os, sys; from lightning_wd.distributed.launch import _end_with; _end_with(int(sys.argv[1]), 0.0)"
    start = f"import os, subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {rank!r}, str(os.getpid())])"
    # rank 0 ends by an error after three seconds; the pipe of their output stays open as long as any of both lives
    assert "TimeoutExpired" in run(tmp_path, [sys.executable, "-c", f"{start}; p.wait(3)"], expected=1)


def test_a_rank_that_fails_before_it_joins_ends_the_job_with_its_own_error(tmp_path):
    """Rank 0 waits for it in a call that no exception reaches."""
    output = app(tmp_path, "fail=early", "hydra.run.dir=out", expected=-signal.SIGKILL)
    assert time.time() - (tmp_path / "out" / "raised").stat().st_mtime < 30
    assert "RuntimeError: early boom" in output
    assert "a rank has failed and rank 0 still waits for it: killing this job; see the error above." in output


@pytest.mark.parametrize("code", [1, 0])  # with 0 it left before it joined
def test_rank_zero_is_killed_only_where_it_waits_for_the_others(monkeypatch, code):
    """Not while it sends a run to a server, or draws, after a rank that failed late."""
    monkeypatch.setattr(launch, "_TICK", 0.02)
    monkeypatch.setattr(launch, "_NOTICE", 0.1)
    failed: Any = SimpleNamespace(poll=lambda: code, kill=lambda: None)
    ending = _JobEnd([], [failed])
    killed: list[tuple[int, ...]] = []

    def kill(*arguments: int) -> None:
        killed.append(arguments)
        ending._ended.set()

    monkeypatch.setattr(os, "kill", kill)
    watch = threading.Thread(target=ending.watch, daemon=True)
    watch.start()
    watch.join(0.5)
    assert killed == []

    def wait() -> int:
        watch.join(5)
        return 3

    launcher = JobLauncher(SimpleNamespace(creates_processes_externally=True, validate_settings=lambda **_: None), 2, 1)
    assert launcher.launch(wait) == 3
    assert killed == [(os.getpid(), signal.SIGKILL)]


def test_a_group_that_cannot_be_left_does_not_keep_the_next_job_from_a_clean_start(monkeypatch):
    monkeypatch.setattr(launch, "_JOIN", 0.1)
    monkeypatch.setattr(launch.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(launch.dist, "destroy_process_group", lambda: time.sleep(20))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    ending, begun = _JobEnd([], []), time.monotonic()
    monkeypatch.setenv("LOCAL_RANK", "0")
    ending.on_job_end(None, SimpleNamespace(status=JobStatus.FAILED))
    assert "LOCAL_RANK" not in os.environ
    assert time.monotonic() - begun < 10


def test_a_trainer_in_a_thread_of_a_sweeps_job_does_not_run_the_sweep_again(monkeypatch):
    launcher = JobLauncher(LightningEnvironment(), 2, 1)
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    for mode in (RunMode.RUN, RunMode.MULTIRUN):
        monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda mode=mode: SimpleNamespace(mode=mode)))
        if mode is RunMode.RUN:
            assert launcher._job() is None  # Lightning's own launch is right there
        else:
            with pytest.raises(ConfigError, match=r"each run the whole sweep\.\n  found: a Trainer in a thread"):
                launcher._job()


def test_the_flags_of_the_command_line_reach_every_rank(tmp_path):
    extra = DDP_APP / "extra"
    flags = ["--config-dir", str(extra), "--config-name", "named", "+group=option", "hydra.job.chdir=true"]
    app(tmp_path, *flags, r"hydra.run.dir='out it\'s/a=b,c'")
    folder = tmp_path / "out it's" / "a=b,c"
    jobs = records(folder)
    assert assert_ranks_agree(jobs) == [7]
    assert assert_ranks_agree(jobs, "group") == [{"bar": 8}]
    assert [record["cwd"] for record in jobs["."].values()] == [str(folder)] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out it's"]


@pytest.mark.parametrize(
    ("override", "outlives"),
    [
        ("hydra.mode=MULTIRUN", False),
        ("hydra.run.dir=x", False),
        ("hydra.output_subdir=null", False),
        ("hydra.sweep.dir=x", False),
        ("++hydra.sweep.subdir=x", False),
        ("hydra/sweeper=optuna", False),
        ("hydra.sweeper.n_trials=5", False),
        ("hydra/launcher=joblib", False),
        ("+hydra.launcher.n_jobs=2", False),
        ("~hydra.launcher.n_jobs", False),
        ("hydra.job.chdir=true", True),
        ("hydra.job.name=other", True),
        ("hydra/job_logging=colorlog", True),
        ("hydra.searchpath=[file:///x]", True),
        ("+hydra.verbose=true", True),
    ],
)
def test_which_hydra_overrides_reach_the_other_ranks(override, outlives):
    assert _outlives_the_sweep(override) is outlives


@pytest.mark.parametrize(
    ("package", "file", "arguments"),
    [
        (None, "/apps/app.py", ["/apps/app.py"]),
        ("", "/apps/app.py", ["-m", "app"]),
        ("pkg.sub", "/apps/pkg/sub/app.py", ["-m", "pkg.sub.app"]),
        ("pkg", "/apps/pkg/__main__.py", ["-m", "pkg"]),
    ],
)
def test_a_worker_starts_the_app_from_which_its_function_was_pickled(package, file, arguments):
    app = {"__name__": "__main__", "__package__": package, "__file__": file}
    exec(compile("def main(cfg): ...", "<dynamic-code>", "exec"), app)  # as cloudpickle >= 3.1.2 leaves it
    assert _program(app["main"]) == arguments


@pytest.mark.parametrize("value", ["plain", "a b", "a=b,c", "it's", 'say "x"', "{[(:)]}"])
def test_a_quoted_value_is_read_back_by_hydra(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (parsed,) = OverridesParser.create().parse_overrides([f"key={_quoted(value)}"])
    read = parsed.value()
    assert str(getattr(read, "text", read)) == value
