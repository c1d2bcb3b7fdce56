"""Sweeps that can be killed: for real on the recipe, at toy size; and the parts of which they are made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers.recipe import ROOT, TRAIN, train, train_here
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from lightning_wd.errors import ConfigError
from lightning_wd.runs.heatmap import read_cells, write_heatmap
from lightning_wd.runs.sweep import SweepProgress, count_jobs, finished, leftovers, octaves, skip_finished

TOY = ["callbacks=none", "data.batch_size=256", "trainer.max_epochs=2", "trainer.enable_progress_bar=false"]
GRID = ["hparams_search=lr_wd_grid", "hparams_search.lr=[-9,-7]", "hparams_search.weight_decay=[-8,-6,2]", *TOY]


def cells_done(folder: Path) -> dict[str, float]:
    """Return when each finished cell's metrics were last written."""
    found = (path for path in folder.glob("*/metrics.csv") if finished(path.parent))
    return {path.parent.name: path.stat().st_mtime for path in found}


@pytest.mark.slow
def test_a_killed_sweep_runs_only_what_is_missing_and_draws_the_same_heatmap(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    broken = tmp_path / "multirun/lr_wd_grid"
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen([sys.executable, str(TRAIN), *GRID], cwd=tmp_path, env=env, stdout=out, stderr=out)
        deadline = time.monotonic() + 200
        while len(cells_done(broken)) < 2:
            assert process.poll() is None, (tmp_path / "out.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = cells_done(broken)
    assert 2 <= len(before) < 6
    # what a kill in the midst of a cell leaves: rows of training, no test
    torn = broken / "adamw_decoupled_lr0.0078125_wd0.015625_seed0"
    assert torn.name not in before
    torn.mkdir(exist_ok=True)
    (torn / "metrics.csv").write_text("epoch,step,train/loss\n0,4,9.5\n")

    done = train_here(*GRID, cwd=tmp_path)
    assert done.stdout.count("finished already:") == len(before)
    assert f"sweep: {len(before)} cells in multirun/lr_wd_grid are already finished" in done.stdout
    assert "sweep: 6 of 6 cells done, 0 left" in done.stdout
    after = cells_done(broken)
    assert len(after) == 6
    assert {name: after[name] for name in before} == before
    assert "9.5" not in (torn / "metrics.csv").read_text()

    train_here(*GRID, "hydra.sweep.dir=unbroken", cwd=tmp_path)
    for folder in (broken, tmp_path / "unbroken"):
        write_heatmap(folder)
    for name in ("heatmap.csv", "heatmap.png", "heatmap.svg", "separability.csv"):
        assert (broken / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes(), name


@pytest.mark.slow
def test_cells_in_parallel(tmp_path: Path) -> None:
    run = [*GRID, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hparams_search.lr=[-8,-8]"]
    train(*run, cwd=tmp_path)
    folder = tmp_path / "multirun/lr_wd_grid"
    assert len(cells_done(folder)) == 2
    cells, metric, unfinished = read_cells(folder)
    assert (len(cells), metric, unfinished) == (2, "test/acc", 0)


@pytest.mark.filterwarnings("ignore")  # of Optuna and of the plugin, which are no part of this
def test_optuna_searches_lr_and_decay(tmp_path: Path) -> None:
    done = train_here("hparams_search=lr_wd_optuna", "hydra.sweeper.n_trials=2", *TOY, cwd=tmp_path)
    assert "sweep: 2 of 2 cells done, 0 left" in done.stdout
    (result,) = tmp_path.glob("multirun/lr_wd_optuna/*/optimization_results.yaml")
    best = yaml.safe_load(result.read_text())["best_params"]
    assert set(best) == {"optimizer.lr", "optimizer.weight_decay"}
    assert len(read_cells(result.parent)[0]) == 2


# --- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponents", [[1], [1, 0], [0, 1, 0], ["a", 1], [0, 1, 2, 3], [True, 2]])
def test_what_is_no_range_of_octaves(exponents: list[object]) -> None:
    with pytest.raises(ConfigError, match=r"is not a range of exponents\.\n  valid: .*\n  fix: write"):
        octaves(exponents)  # type: ignore[arg-type]


def test_octaves_end_at_the_last_step_inside() -> None:
    assert octaves([-5, 0, 2]) == "0.03125,0.125,0.5"
    assert octaves([-1, 0, 0.5]) == "0.5,0.7071067811865476,1.0"


def test_a_cell_is_finished_when_its_test_row_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert finished(tmp_path) is None
    path.write_text("epoch,step,test/acc,val/loss\n0,9,,0.25\n")
    assert finished(tmp_path) is None
    path.write_text("epoch,step,test/acc,val/loss\n0,9,,0.25\n0,10,0.8")  # cut: it may have been 0.845
    assert finished(tmp_path) is None
    path.write_text("epoch,step,test/acc,val/loss\n0,9,,0.25\n0,10,0.845,\n")
    assert finished(tmp_path) == {"test/acc": 0.845, "val/loss": 0.25}


def test_a_finished_cell_is_skipped_only_for_the_same_config(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,test/acc\n0,10,0.5\n")
    config = {"optimizer": {"lr": 0.1, "name": "adamw"}, "seed": 0, "hparams_search": {"lr": [-4, -3]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert skip_finished(tmp_path, config) == {"test/acc": 0.5}
    assert skip_finished(tmp_path, {**config, "hparams_search": {"lr": [-9, -3]}}) == {"test/acc": 0.5}  # a wider grid
    with pytest.raises(
        ConfigError, match=r"found: optimizer\.lr was 0\.1 there and is 0\.2 now\n  fix: give this sweep"
    ):
        skip_finished(tmp_path, {"optimizer": {"lr": 0.2, "name": "adamw"}, "seed": 0})
    with pytest.raises(ConfigError, match="found: extra was None there and is 1 now"):
        skip_finished(tmp_path, {**config, "extra": 1})
    with pytest.raises(ConfigError, match=r"found: ckpt_path was None there and is 'a\.ckpt' now"):
        skip_finished(tmp_path, {**config, "ckpt_path": "a.ckpt"})
    assert skip_finished(tmp_path, {**config, "ckpt_path": "last"}, resumes=True) == {"test/acc": 0.5}
    assert (tmp_path / "metrics.csv").exists()


def test_a_broken_cell_keeps_its_rows_only_where_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss\n0,4,0.5\n")
    assert skip_finished(tmp_path, {}, resumes=True) is None
    assert path.exists()
    assert skip_finished(tmp_path, {}) is None
    assert not path.exists()


@pytest.mark.parametrize(
    ("params", "task", "target", "count"),
    [
        ({"optimizer.lr": "0.1,0.2,0.3", "seed": "0"}, ["data=digits"], "hydra._internal.x.BasicSweeper", 3),
        ({}, ["a=range(0,4)", "b=choice(1,2)", "c=[1,2]"], "BasicSweeper", 8),
        ({}, ["a=1,2"], "someone.elses.Sweeper", None),
    ],
)
def test_jobs_are_counted(params: dict[str, str], task: list[str], target: str, count: int | None) -> None:
    hydra = {"sweeper": {"_target_": target, "params": params}, "overrides": {"task": task}}
    assert count_jobs(OmegaConf.create({"hydra": hydra})) == count


def test_the_jobs_of_a_glob_are_counted() -> None:
    hydra = {"sweeper": {"_target_": "BasicSweeper"}, "overrides": {"task": ["model=glob(*,exclude=[g*])", "seed=1,2"]}}
    with initialize_config_dir(str(ROOT / "recipes/conf"), version_base="1.3"):
        assert count_jobs(OmegaConf.create({"hydra": hydra})) == 2 * len({"conv_net", "mlp", "resnet", "shake_shake"})


def _config(hydra: dict[str, object], cwd: Path, cell: str = "") -> DictConfig:
    return OmegaConf.create({"hydra": {**hydra, "runtime": {"cwd": str(cwd), "output_dir": str(cwd / cell)}}})


def test_only_rank_zero_counts_a_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeper = {"_target_": "BasicSweeper", "params": {"seed": "1,2"}}
    hydra = {"sweep": {"dir": str(tmp_path)}, "sweeper": sweeper, "overrides": {"task": []}}
    config = _config(hydra, tmp_path, "seed1")
    SweepProgress().on_multirun_start(config)
    (tmp_path / "seed1").mkdir()
    (tmp_path / "seed1/metrics.csv").write_text("epoch,step,test/acc\n0,10,0.5\n")
    for rank in (1, 0):
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        SweepProgress().on_job_end(config, None)
    assert capsys.readouterr().out.startswith("sweep: 1 of 2 cells done, 1 left")
    assert len((tmp_path / "sweep.jsonl").read_text().splitlines()) == 2


def test_finished_cells_of_another_sweep_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that the last sweep went over are its own, whether it ran or skipped them."""
    monkeypatch.chdir(tmp_path)
    for cells in (["lr1/seed1", "lr2/seed1", "lr3/seed1"], ["lr2/seed1"]):
        sweeper = {"_target_": "BasicSweeper", "params": {"lr": ",".join(cells)}}
        hydra = {"sweep": {"dir": "grid"}, "sweeper": sweeper, "overrides": {"task": []}}
        SweepProgress().on_multirun_start(_config(hydra, tmp_path))
        for cell in cells:
            folder = tmp_path / "grid" / cell
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.csv").write_text("epoch,step,test/acc\n0,10,0.5\n")
            SweepProgress().on_job_end(_config(hydra, tmp_path, f"grid/{cell}"), None)
        SweepProgress().on_multirun_end(_config(hydra, tmp_path))
    *_, before, line = capsys.readouterr().out.splitlines()
    assert before == "sweep: 1 of 1 cells done, 0 left"
    assert line == "sweep: grid has finished cells of other sweeps, too: lr1/seed1, lr3/seed1"
    assert leftovers("grid") == [Path("grid/lr1/seed1"), Path("grid/lr3/seed1")]


APP = """
import json
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig


@hydra.main(config_path=".", config_name="config", version_base="1.3")
def main(config):
    file = Path(HydraConfig.get().runtime.output_dir, config.where, "metrics.csv")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(config.head + "\\n0,10,0.5\\n")


for overrides in json.loads(sys.argv.pop()):
    sys.argv[1:] = ["-m", *overrides]
    print("---")
    main()
"""
CONFIG = """
lr: 1
where: csv/version_0
head: "epoch,step,test/acc"
hydra:
  job: {chdir: true}
  sweep: {dir: link, subdir: "lr=${lr}/seed=0"}
  callbacks: {progress: {_target_: lightning_wd.runs.sweep.SweepProgress}}
"""


def test_the_cells_of_an_app_of_the_users_are_its_own(tmp_path: Path) -> None:
    """Its jobs change to their own folders, the sweep's is a link, and metrics lie where the app wants them."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    sweeps = [["lr=1,2"], ["lr=3", "where=.", "head='a,b,c'"], ["lr=2", "where=."]]
    run = [sys.executable, "app.py", json.dumps(sweeps)]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Callback" not in done.stderr  # Hydra warns of one that raised
    found: list[list[str]] = []
    for line in done.stdout.splitlines():
        if line == "---":
            found.append([])
        if line.startswith("sweep: "):
            found[-1].append(line.partition(", about")[0])
    assert found == [
        ["sweep: 1 of 2 cells done, 1 left", "sweep: 2 of 2 cells done, 0 left"],
        [
            "sweep: 2 cells in link are already finished",
            "sweep: 1 of 1 cells done, 0 left",
            "sweep: link has finished cells of other sweeps, too: lr=1/seed=0/csv/version_0, lr=2/seed=0/csv/version_0",
        ],
        [
            "sweep: 2 cells in link are already finished",
            "sweep: 1 of 1 cells done, 0 left",
            "sweep: link has finished cells of other sweeps, too: lr=1/seed=0/csv/version_0, lr=2/seed=0/csv/version_0",
        ],
    ]


def test_a_job_that_logs_elsewhere_has_finished_where_it_did_not_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in an app of the user's, whose metrics lie under ``csv/version_0`` or at a server."""
    sweeper = {"_target_": "BasicSweeper", "params": {"seed": "1,2"}}
    hydra = {"sweep": {"dir": str(tmp_path)}, "sweeper": sweeper, "overrides": {"task": []}}
    config = _config(hydra, tmp_path, "seed1")
    SweepProgress().on_multirun_start(config)
    for status in (JobStatus.FAILED, JobStatus.COMPLETED):
        SweepProgress().on_job_end(config, JobReturn(status=status))
    assert [line[:34] for line in capsys.readouterr().out.splitlines()] == [
        "sweep: 0 of 2 cells done, 2 left",
        "sweep: 1 of 2 cells done, 1 left, ",
    ]


def test_a_job_that_failed_after_its_test_is_no_other_sweeps(tmp_path: Path) -> None:
    """Optuna goes on after it, by ``max_failure_rate``."""
    sweeper = {"_target_": "BasicSweeper", "params": {"seed": "1,2"}}
    hydra = {"sweep": {"dir": "."}, "sweeper": sweeper, "overrides": {"task": []}}
    SweepProgress().on_multirun_start(_config(hydra, tmp_path))
    for cell in ("seed1", "seed2"):
        (tmp_path / cell / "csv").mkdir(parents=True)
        (tmp_path / cell / "csv/metrics.csv").write_text("epoch,step,test/acc\n0,10,0.5\n")
    SweepProgress().on_job_end(_config(hydra, tmp_path, "seed1"), JobReturn(status=JobStatus.FAILED))
    assert leftovers(tmp_path) == [tmp_path / "seed2/csv"]


def test_the_grid_composes_with_any_optimizer_and_style() -> None:
    with initialize_config_dir(str(ROOT / "recipes/conf"), version_base="1.3"):
        overrides = ["hparams_search=lr_wd_grid", "optimizer=sgdw", "optimizer/decay=independent"]
        cfg = compose("train", overrides, return_hydra_config=True)
    assert cfg.hydra.sweeper.params["optimizer.lr"] == ",".join(str(2.0**k) for k in range(-11, -5))
    assert cfg.hydra.sweep.subdir == "sgdw_independent_lr0.05_wd0.0025_seed0"
    assert cfg.skip_finished is True
