"""HydraDDPStrategy in real two-process gloo runs: each rank writes what it ran with, and the tests read that."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus
from hydra.types import RunMode
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from omegaconf import OmegaConf

from lightning_wd import distributed
from lightning_wd.distributed import (
    HydraDDPStrategy,
    HydraFSDP2Strategy,
    _differences,
    _JobEnd,
    _JobLauncher,
    _outlives_the_sweep,
    _program,
    _quoted,
    _Settings,
)
from lightning_wd.errors import ConfigError

TESTS = Path(__file__).parent
APP = TESTS / "ddp_app" / "app.py"
RECIPE = TESTS.parent / "recipes" / "train.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
LAUNCH_VARIABLES = ["LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]

pytestmark = pytest.mark.filterwarnings("ignore:The `srun` command is available")


def run(folder: Path, command: list[str], expected: int = 0, **environment: str) -> str:
    """Run a command in a folder and return its output; fail with that output unless it exits as expected."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = {k: v for k, v in os.environ.items() if k not in (*LAUNCH_VARIABLES, "PL_GLOBAL_SEED")}
    variables |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent), "PWD": str(folder), **environment}
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
            own = {"clock": None, "mode": None}
            assert {**record["config"], **own} == {**ranks[0]["config"], **own}, job
    return sorted(ranks[0]["config"][key] for ranks in jobs.values())


def one_tree(folder: Path) -> Path:
    """The only sweep folder below ``multirun``."""
    (tree,) = (folder / "multirun").glob("*/*")
    assert not (folder / "outputs").exists()
    return tree


def test_a_shuffled_sweep_trains_the_same_config_on_every_rank(tmp_path):
    app(tmp_path, "-m", "foo=shuffle(range(1,5))", "+number=${hydra:job.num}", "+sweep=${hydra:sweep.dir}")
    tree = one_tree(tmp_path)
    jobs = records(tree)
    assert sorted(jobs) == ["0", "1", "2", "3"]
    assert assert_ranks_agree(jobs) == [1, 2, 3, 4]
    assert assert_ranks_agree(jobs, "number") == [0, 1, 2, 3]
    assert sorted(path.name for path in (tree / "0").iterdir()) == [".hydra", "app.log", "rank0.json", "rank1.json"]


@pytest.mark.parametrize(
    ("jobs", "sweep"),
    [
        (3, ["seed=shuffle(range(1,4))", "trainer.max_steps=2"]),
        (2, ["seed=shuffle(range(1,3))", "trainer.max_steps=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        (2, ["seed=range(1,1000)", "trainer.max_epochs=1", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2"]),
    ],
    ids=["shuffled", "joblib", "optuna"],
)
def test_a_sweep_of_the_recipe_is_one_run_a_job_by_what_each_rank_logs(jobs, sweep, tmp_path):
    for plugin in ("joblib_launcher", "optuna_sweeper"):
        pytest.importorskip(f"hydra_plugins.hydra_{plugin}", reason=f"hydra's {plugin} is not installed")
    quick = ["trainer=ddp_cpu", "trainer.enable_progress_bar=false", "callbacks=none"]
    run(tmp_path, [sys.executable, str(RECIPE), "-m", *sweep, *quick])
    tree = one_tree(tmp_path)
    names = [str(job) for job in range(jobs)]
    assert sorted(path.name for path in tree.iterdir() if path.is_dir()) == names
    configs, seeds = [], []
    for job in names:
        seeds.append(OmegaConf.load(tree / job / "config.yaml").seed)
        log = (tree / job / "train.log").read_text()
        ranks = re.findall(r"rank (\d) of 2 on \S+: config ([0-9a-f]{12})$", log, re.M)
        assert sorted(rank for rank, _ in ranks) == ["0", "1"], log
        configs.append({config for _, config in ranks})
    assert len(set(seeds)) == jobs
    assert [len(config) for config in configs] == [1] * jobs
    assert len(set.union(*configs)) == jobs


def test_each_job_starts_clean_after_a_distributed_one(tmp_path):
    app(tmp_path, "-m", "processes=2,1,2", "foo=5", PL_GLOBAL_SEED="11", MASTER_PORT=str(find_free_network_port()))
    jobs = records(one_tree(tmp_path))
    assert {job: sorted(ranks) for job, ranks in jobs.items()} == {"0": [0, 1], "1": [0], "2": [0, 1]}
    for job in jobs.values():
        assert job[0]["initialized"] is False
        assert job[0]["before"] == ["MASTER_PORT", "PL_GLOBAL_SEED"]  # the user's own, and nothing of Lightning's
    assert jobs["0"][0]["weights"] == jobs["2"][0]["weights"]


def test_an_optuna_sweep_trains_the_same_config_on_every_rank(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")
    app(tmp_path, "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "foo=interval(1.0,10.0)")
    tree = one_tree(tmp_path)
    values = assert_ranks_agree(records(tree))
    assert len(set(values)) == 2
    best = OmegaConf.load(tree / "optimization_results.yaml")
    assert best.best_value == values[0]  # the sweeper saw what rank 0 returned


def test_a_joblib_sweep_runs_two_distributed_jobs_side_by_side(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    app(tmp_path, "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "foo=shuffle(range(1,3))")
    assert assert_ranks_agree(records(one_tree(tmp_path))) == [1, 2]


def test_a_failing_rank_ends_its_job_with_its_own_error_and_the_sweep_goes_on(tmp_path):
    output = app(tmp_path, "-m", "fail=rank1,rank0,late,none", expected=1)
    assert "RuntimeError: boom on rank 1" in output
    assert "local rank 1 ended with exit code 1; its own error stands above." in output
    assert "RuntimeError: boom on rank 0" not in output  # Hydra shows the first failing job's error only
    tree = one_tree(tmp_path)
    assert {job: sorted(ranks) for job, ranks in records(tree).items()} == {"2": [0], "3": [0, 1]}
    for job in (0, 1):
        raised, next_job = tree / str(job) / "raised", tree / str(job + 1) / ".hydra" / "config.yaml"
        assert 0 <= next_job.stat().st_mtime - raised.stat().st_mtime < 30


def test_a_job_that_catches_rank_zeros_error_does_not_wait_for_the_others(tmp_path):
    """They wait for it in a collective, for gloo's half hour."""
    app(tmp_path, "-m", "fail=rank0,none", "+catch=true")
    tree = one_tree(tmp_path)
    assert {job: sorted(ranks) for job, ranks in records(tree).items()} == {"1": [0, 1]}
    raised, next_job = tree / "0" / "raised", tree / "1" / ".hydra" / "config.yaml"
    assert 0 <= next_job.stat().st_mtime - raised.stat().st_mtime < 30


def test_a_rank_does_not_wait_for_a_rank_zero_that_is_gone(tmp_path):
    rank = "import os, sys; from lightning_wd.distributed import _end_with; _end_with(int(sys.argv[1]), 0.0)"
    start = f"import os, subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {rank!r}, str(os.getpid())])"
    # rank 0 ends by an error after three seconds; the pipe of their output stays open as long as any of both lives
    assert "TimeoutExpired" in run(tmp_path, [sys.executable, "-c", f"{start}; p.wait(3)"], expected=1)


def test_a_rank_that_fails_after_training_fails_the_job(tmp_path):
    output = app(tmp_path, "fail=late", expected=1)
    assert "RuntimeError: late boom" in output
    assert "RuntimeError: local rank 1 ended with exit code 1; its own error stands above." in output


def test_a_rank_that_fails_before_it_joins_ends_the_job_with_its_own_error(tmp_path):
    """Rank 0 waits for it in a call that no exception reaches."""
    output = app(tmp_path, "fail=early", "hydra.run.dir=out", expected=-signal.SIGKILL)
    assert time.time() - (tmp_path / "out" / "raised").stat().st_mtime < 30
    assert "RuntimeError: early boom" in output
    assert "a rank has failed and rank 0 still waits for it: killing this job; the error stands above." in output


@pytest.mark.parametrize("code", [1, 0])  # with 0 it left before it joined
def test_rank_zero_is_killed_only_where_it_waits_for_the_others(monkeypatch, code):
    """Not while it sends a run to a server, or draws, after a rank that failed late."""
    monkeypatch.setattr(distributed, "_TICK", 0.02)
    monkeypatch.setattr(distributed, "_NOTICE", 0.1)
    failed = SimpleNamespace(poll=lambda: code, kill=lambda: None)
    ending, killed = _JobEnd([], [failed]), []

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

    launcher = _JobLauncher(
        SimpleNamespace(creates_processes_externally=True, validate_settings=lambda **_: None), 2, 1
    )
    assert launcher.launch(wait) == 3
    assert killed == [(os.getpid(), signal.SIGKILL)]


def test_a_group_that_cannot_be_left_does_not_keep_the_next_job_from_a_clean_start(monkeypatch):
    monkeypatch.setattr(distributed, "_JOIN", 0.1)
    monkeypatch.setattr(distributed, "_leave_group", lambda: time.sleep(20))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    ending, begun = _JobEnd([], []), time.monotonic()
    monkeypatch.setenv("LOCAL_RANK", "0")
    ending.on_job_end(None, SimpleNamespace(status=JobStatus.FAILED))
    assert "LOCAL_RANK" not in os.environ
    assert time.monotonic() - begun < 10


def test_a_trainer_in_a_thread_of_a_sweeps_job_does_not_run_the_sweep_again(monkeypatch):
    launcher = _JobLauncher(LightningEnvironment(), 2, 1)
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    for mode in (RunMode.RUN, RunMode.MULTIRUN):
        monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda mode=mode: SimpleNamespace(mode=mode)))
        if mode is RunMode.RUN:
            assert launcher._job() is None  # Lightning's own launch is right there
        else:
            with pytest.raises(ConfigError, match=r"each run the whole sweep\.\n  found: a Trainer in a thread"):
                launcher._job()


def test_the_flags_of_the_command_line_reach_every_rank(tmp_path):
    extra = TESTS / "ddp_app" / "extra"
    flags = ["--config-dir", str(extra), "--config-name", "named", "+group=option", "hydra.job.chdir=true"]
    app(tmp_path, *flags, r"hydra.run.dir='out it\'s/a=b,c'")
    folder = tmp_path / "out it's" / "a=b,c"
    jobs = records(folder)
    assert assert_ranks_agree(jobs) == [7]
    assert assert_ranks_agree(jobs, "group") == [{"bar": 8}]
    assert [record["cwd"] for record in jobs["."].values()] == [str(folder)] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out it's"]


def test_under_torchrun_the_number_of_processes_is_torchruns(tmp_path):
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=3", str(APP), "foo=2", f"hydra.run.dir={tmp_path / 'out'}"]
    run(tmp_path, command)
    assert assert_ranks_agree(records(tmp_path / "out"), world_size=3) == [2]


def test_ranks_with_different_configs_stop_with_the_difference_shown(tmp_path):
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", str(APP), "differ=true", "foo=4"]
    output = run(tmp_path, command, expected=1)
    for line in (
        "ConfigError: the 2 ranks of this job have different configs.",
        "  found: foo is 4 on rank 0, 5 on rank 1",
        "  fix: give every rank the same overrides and environment; "
        "start a sweep once and let trainer=ddp start the other ranks",
    ):
        assert output.count(line) >= 2, output  # each rank says so
    assert records(tmp_path) == {}


def test_torchrun_runs_the_recipe(tmp_path):
    overrides = ["trainer=ddp_cpu", "trainer.max_steps=4", "trainer.enable_progress_bar=false", "callbacks=none"]
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", str(RECIPE), *overrides]
    output = run(tmp_path, [*command, f"hydra.run.dir={tmp_path / 'run'}"])
    assert "`max_steps=4` reached" in output
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_ddp_on_every_gpu_of_the_machine(tmp_path):
    count = torch.cuda.device_count()
    overrides = ["trainer=ddp", f"trainer.devices={count}", "trainer.max_steps=4", "trainer.enable_progress_bar=false"]
    output = run(tmp_path, [sys.executable, str(RECIPE), *overrides, "callbacks=none", "hydra.run.dir=run"])
    assert "distributed_backend=nccl" in output
    assert output.count("MEMBER:") == count
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_without_hydra_it_is_lightnings_strategy(tmp_path):
    script = tmp_path / "plain.py"  # it writes its line at once: two processes share the pipe
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(APP.parent)!r})\n"
        "import torch, lightning as L\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "from app import HydraDDPStrategy, Linear\n"
        "L.seed_everything(3)\n"
        "trainer = L.Trainer(accelerator='cpu', devices=2, strategy=HydraDDPStrategy(), max_steps=2, logger=False,\n"
        "    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)\n"
        "trainer.fit(Linear(1, 'none'), DataLoader(TensorDataset(torch.ones(8, 2))))\n"
        "sys.stdout.write(f'\\nrank {trainer.global_rank} of {trainer.world_size}\\n')\n"
    )
    output = run(tmp_path, [sys.executable, str(script)])
    assert "rank 0 of 2" in output
    assert "rank 1 of 2" in output


def test_torchrun_decides_on_gpus_too_where_there_are_enough(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    gpus = [torch.device("cuda", index) for index in range(4)]
    strategy = HydraDDPStrategy(parallel_devices=gpus)
    strategy._follow_torchrun()
    assert (strategy.parallel_devices, strategy.num_nodes) == (gpus[:2], 3)
    strategy = HydraDDPStrategy(parallel_devices=gpus[:1])
    strategy._follow_torchrun()  # too few: left for Lightning to refuse
    assert (strategy.parallel_devices, strategy.num_nodes) == (gpus[:1], 1)


@pytest.mark.parametrize(
    "hook", "training_step optimizer_step backward pre_backward post_backward reduce barrier batch_to_device".split()
)
def test_nothing_is_added_to_a_step(hook):
    assert getattr(HydraDDPStrategy, hook) is getattr(DDPStrategy, hook)


@pytest.mark.parametrize("name", ["default", "cpu", "ddp", "ddp_cpu", "fsdp2", "fsdp2_cpu"])
def test_each_trainer_config_instantiates_on_its_own(name):
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    with initialize_config_dir(str(TESTS.parent / "conf"), version_base="1.3"):
        node = compose(overrides=[f"+trainer={name}"]).trainer
    assert {"max_steps", "max_epochs", "devices"} <= set(node)
    trainer = instantiate(node, logger=False)
    assert isinstance(trainer, Trainer)
    strategies = {"ddp": HydraDDPStrategy, "fsdp": HydraFSDP2Strategy}
    assert isinstance(trainer.strategy, strategies.get(name[:4].rstrip("_"), SingleDeviceStrategy))
    everywhere = max(1, torch.cuda.device_count() * (name in ("ddp", "fsdp2")))
    assert trainer.world_size == (2 if name.endswith("_cpu") else everywhere)


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
    assert str(parsed.value().text if hasattr(parsed.value(), "text") else parsed.value()) == value


def settings(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, folder: str = "/runs/1") -> _Settings:
    """The settings of a config in a job whose output folder is ``folder``."""
    job = SimpleNamespace(runtime=SimpleNamespace(output_dir=folder), mode=RunMode.RUN)
    monkeypatch.setattr("hydra.core.hydra_config.HydraConfig.get", staticmethod(lambda: job))
    return _Settings(OmegaConf.create(config))


def test_the_folder_the_clock_paths_of_the_environment_and_secrets_do_not_count(monkeypatch):
    monkeypatch.setenv("SCRATCH_FOLDER", "/scratch/one")
    monkeypatch.setenv("NODE_NAME", "one")
    monkeypatch.setenv("HUB_TOKEN", "canary-one")
    config = {
        "lr": 0.1,
        "out": "/runs/1/log",
        "root": "${oc.env:SCRATCH_FOLDER}",
        "data": "${root}/mnist",
        "run": "on ${oc.env:NODE_NAME}",
        "hub": "${oc.env:HUB_TOKEN}",
        "url": "https:user:${hub}@hub",
        "api_key": "abcdef",
        "auth": {"user": ["me"]},
    }
    first = settings(config, monkeypatch)
    monkeypatch.setenv("SCRATCH_FOLDER", "/scratch/two")
    monkeypatch.setenv("NODE_NAME", "two")
    monkeypatch.setenv("HUB_TOKEN", "canary-two")
    changed = {"out": "/runs/2/log", "api_key": "ghijkl", "auth": {"user": ["you"]}}
    second = settings({**config, **changed}, monkeypatch, "/runs/2")
    assert first.without(first.changing) == second.without(second.changing)
    assert "abcdef" not in repr([first.compared, first.shown])
    assert "canary" not in repr([first.shown, first.without(first.changing)])
    third = settings({**config, "lr": 0.2}, monkeypatch)
    assert first.without(first.changing) != third.without(third.changing)


def test_numbers_and_words_from_the_environment_count(monkeypatch):
    """A variable that only one machine has changes what its ranks train; a path does not."""
    config = {
        "groups": [{"lr": "${oc.decode:${oc.env:MY_RATE}}"}],
        "style": "${oc.env:MY_STYLE}",
        "token": "${oc.decode:${oc.env:MY_NUMBER}}",
        "schedule": "constant",
    }
    monkeypatch.setenv("MY_NUMBER", "1234567890")
    monkeypatch.setenv("MY_RATE", "0.1")
    monkeypatch.setenv("MY_STYLE", "decoupled")
    first = settings(config, monkeypatch)
    style = "'${oc.env:MY_STYLE} (sha256 {:.8})'"
    assert first.compared == {
        "groups[0].lr": "0.1",
        "style": style.replace("{:.8}", hashlib.sha256(b"decoupled").hexdigest()[:8]),
        "token": "'<redacted>'",
        "schedule": "'constant'",
    }
    monkeypatch.setenv("MY_STYLE", "constant")  # which `redact` replaces elsewhere too
    second = settings(config, monkeypatch)
    differences = _differences([first.compared, second.compared], [first.shown, second.shown])
    assert differences == [f"style is {first.compared['style']} on rank 0, {second.compared['style']} on rank 1"]
    monkeypatch.setenv("MY_RATE", "0.01")
    assert settings(config, monkeypatch).compared["groups[0].lr"] == "0.01"


def test_torchrun_does_not_start_a_sweep_on_every_rank(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    for mode in (RunMode.RUN, RunMode.MULTIRUN):
        monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda mode=mode: SimpleNamespace(mode=mode)))
        with pytest.raises(ConfigError) if mode is RunMode.MULTIRUN else contextlib.nullcontext() as caught:
            distributed._refuse_sweep()
    assert str(caught.value) == (
        "under torchrun each rank runs the whole sweep by itself, with values and folders of its own.\n"
        "  found: --multirun on 2 processes of torchrun\n"
        "  fix: start the sweep once, without torchrun: python train.py --multirun ... trainer=ddp"
    )


def test_one_ranks_clock_may_stand_as_text_on_another(monkeypatch):
    first = settings({"sweep": "multirun/02-38-36"}, monkeypatch)
    second = settings({"sweep": "multirun/02-38-36"}, monkeypatch)
    first.changing.add("02-38-36")
    assert first.without(first.changing) != second.without(second.changing)
    both = first.changing | second.changing
    assert first.without(both) == second.without(both) == {"sweep": "'multirun/<run>'"}


def test_every_difference_is_named_with_its_ranks():
    ranks = [{"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1", "b": "2", "c": "'x'"}]
    shown = [*ranks[:2], {**ranks[2], "c": "'<redacted>'"}]
    assert _differences(ranks, shown) == [
        "b is 2 on rank 0 2, 3 on rank 1",
        "c is absent on rank 0 1, '<redacted>' on rank 2",
    ]
    assert _differences([ranks[0], ranks[0]], shown[:2]) == []
