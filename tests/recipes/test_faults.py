"""Real faults: killed ranks and runs, a full disk, a folder that becomes read-only, a damaged checkpoint."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from checkpoints import BestCheckpoint, LastCheckpoint, find_checkpoint
from helpers.recipe import TRAIN, job_config, train, train_here
from helpers.recipe_run import QUIET as NO_OUTPUT
from helpers.recipe_run import Eventful, fit, rows, steps_saved
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from lightning.pytorch.demos.boring_classes import BoringModel
from train import main

from lightning_wd.errors import ConfigError
from lightning_wd.optimizers.weights_file import damage
from lightning_wd.runs.folder import save_config

DDP = ["trainer=ddp_cpu", "callbacks=none", "lr_scheduler=constant", "model.dropout=0.1", "data.batch_size=128"]
QUIET = ["trainer.enable_progress_bar=false", "trainer.max_epochs=100000"]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def kill_at_random(folder: Path, which: slice, *overrides: str) -> str:
    """Start a run of two ranks, kill some of them a random time after its first checkpoint; return what it printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(TRAIN), *DDP, *QUIET, f"hydra.run.dir={folder}", *overrides]
    last, begun, printed = folder / "checkpoints/last.ckpt", time.time(), folder.parent / "printed.txt"
    with printed.open("w") as out:
        process = subprocess.Popen(command, cwd=folder.parent, env=env, stdout=out, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 200
        while not (last.is_file() and last.stat().st_mtime > begun):
            assert process.poll() is None, printed.read_text()
            assert time.monotonic() < deadline, printed.read_text()
            time.sleep(0.02)
        time.sleep(random.Random(str(which)).uniform(0.0, 1.5))
        ranks = [process.pid, *children(process.pid)]
        assert len(ranks) == 2, ranks
        for pid in ranks[which]:
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        code = process.wait(timeout=180)
        while any(map(alive, ranks)):  # whichever was killed, the other rank ends too
            assert time.monotonic() - killed < 90
            time.sleep(0.1)
        seconds = time.monotonic() - killed
    assert code != 0
    assert seconds < 60, f"{seconds} s\n{printed.read_text()}"
    return printed.read_text()


def plain(node: Any) -> Any:
    """Return a part of a checkpoint with lists for its tensors, so that == compares it."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [plain(value) for value in node]
    return node.tolist() if isinstance(node, torch.Tensor) else node


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="finds the other rank in /proc")
def test_a_rank_and_then_the_run_are_killed_and_the_resumed_run_equals_the_unbroken_one(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    output = kill_at_random(broken, slice(1, 2))
    assert "local rank 1 ended with exit code -9" in output
    kill_at_random(broken, slice(0, 1), "ckpt_path=last")
    kill_at_random(broken, slice(0, 2), "ckpt_path=last")
    last = broken / "checkpoints/last.ckpt"
    assert damage(last) is None
    steps = torch.load(last, weights_only=True)["global_step"] + 9
    end = [*DDP, *QUIET, f"trainer.max_steps={steps}"]
    train(*end, f"hydra.run.dir={broken}", "ckpt_path=last", cwd=tmp_path)
    train(*end, f"hydra.run.dir={tmp_path / 'whole'}", cwd=tmp_path)
    one, two = (torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (tmp_path / "whole", broken))
    assert one["global_step"] == two["global_step"] == steps
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert plain(one[key]) == plain(two[key]), key
    # Lightning logs an epoch's mean after the hook that saves: a kill between them costs that row
    logged = [[row for row in rows(f) if not row["train/acc"]] for f in (tmp_path / "whole", broken)]
    assert logged[0] == logged[1]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def test_a_full_disk_ends_the_run_in_words_and_the_last_checkpoint_stays(
    disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        fit(Eventful(at_batch=6, event=lambda: fill(disk)), disk / "checkpoints")
    assert steps_saved(disk / "checkpoints") == 4
    assert damage(disk / "checkpoints/last.ckpt") is None
    assert "last.ckpt stays at step 4: [Errno 28] No space left on device" in capsys.readouterr().out


class Improving(BoringModel):
    """Its metric improves a little with each epoch."""

    def on_train_epoch_end(self) -> None:
        self.log("best", 1.0 / (1 + self.current_epoch))


def test_a_disk_that_fills_up_leaves_the_best_checkpoint_whole(disk: Path) -> None:
    """Lightning writes a file on another disk and copies it over the old one, which is lost meanwhile."""
    best = BestCheckpoint(disk, filename="best", monitor="best", enable_version_counter=False)
    full, stop = threading.Event(), threading.Event()

    def keep_full() -> None:
        with (disk / "ballast").open("wb", buffering=0) as file:
            while not stop.is_set():
                try:
                    file.write(bytes(512))
                except OSError:
                    full.set()

    class Filler(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 2:
                threading.Thread(target=keep_full, daemon=True).start()
                full.wait()

    trainer = L.Trainer(max_epochs=4, limit_train_batches=2, callbacks=[Filler(), best], **NO_OUTPUT)
    try:
        with pytest.raises(OSError, match="No space left on device") as caught:
            trainer.fit(Improving())
    finally:
        stop.set()
    assert caught.value.filename2 == str(disk / "best.ckpt.new")
    assert damage(disk / "best.ckpt") is None
    assert torch.load(disk / "best.ckpt", weights_only=True)["global_step"] == 4


def test_the_recipe_says_that_the_disk_is_full(disk: Path) -> None:
    """Even the first checkpoint is larger than the disk."""
    wide = ["model.hidden=[512, 512]", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"]
    done = train_here(f"hydra.run.dir={disk}", "callbacks=none", *wide, cwd=disk.parent, ok=False)
    assert done.returncode == 1
    words = f"OSError: {disk}/checkpoints/last.ckpt.new can no longer be written.\n  found: No space left on device\n"
    assert f"{words}  fix: free some space, or give" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (disk / "checkpoints/last.ckpt").exists()


def test_a_folder_that_becomes_read_only_ends_the_run_and_the_last_checkpoint_stays(disk: Path) -> None:
    def remount() -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

    with pytest.raises(OSError, match="Read-only file system"):
        fit(Eventful(at_batch=6, event=remount), disk / "checkpoints")
    assert steps_saved(disk / "checkpoints") == 4


def test_a_run_cannot_begin_in_a_read_only_folder(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    folder = disk / "run"
    done = train_here(f"hydra.run.dir={folder}", cwd=disk.parent, ok=False)
    assert done.returncode != 0
    assert f"hydra.run.dir={folder} cannot be written.\n  found: Read-only file system: {folder}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_checkpoint_before_the_last_is_kept_and_taken_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs/day/run"
    last, previous = run / "checkpoints/last.ckpt", run / "checkpoints/previous.ckpt"
    fit(Eventful(), run / "checkpoints")
    assert [torch.load(path, weights_only=True)["global_step"] for path in (previous, last)] == [4, 8]
    assert find_checkpoint("last", run) == str(last)

    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])  # as a crash of the machine may leave it
    with pytest.raises(ConfigError, match=r"last\.ckpt is damaged\.\n  found: \d+ bytes.*\n  fix: ckpt_path=previous "):
        find_checkpoint("last", run)
    with pytest.raises(ConfigError, match=r"fix: ckpt_path=\S+/previous\.ckpt resumes from the one before it"):
        find_checkpoint(str(last), tmp_path)
    for here in (run, tmp_path / "outputs/day/another"):
        assert find_checkpoint("previous", here) in (str(previous), str(previous.relative_to(tmp_path)))

    last.write_bytes(whole)
    weight = torch.load(last, weights_only=True)["state_dict"]["layer.weight"].numpy().tobytes()
    at = whole.index(weight) + 3
    last.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])  # one bit of a weight: torch would load it
    with pytest.raises(ConfigError, match=r"last\.ckpt is damaged"):
        find_checkpoint("last", run)

    previous.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"previous\.ckpt is damaged\.\n  found: 0 bytes.*\n  fix: give the path of"):
        find_checkpoint("previous", run)


def test_the_previous_checkpoint_is_of_the_same_run_as_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(Eventful(), Path("outputs/older/checkpoints"))
    new = Path("outputs/newer/checkpoints")
    fit(Eventful(), new)
    (new / "previous.ckpt").unlink()  # as after one epoch
    for folder in (new.parent, Path("outputs/another")):
        assert find_checkpoint("last", folder) == str(new / "last.ckpt")
        with pytest.raises(ConfigError, match=rf"found: no file {new}/previous\.ckpt\n"):
            find_checkpoint("previous", folder)
    assert find_checkpoint("previous", Path("outputs/older")) == "outputs/older/checkpoints/previous.ckpt"


def job(folder: str, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Any:
    """Return the config of a job in this folder, for main to run in this process."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    return job_config("logger=none", "callbacks=none", *overrides, folder=folder)


@pytest.mark.parametrize("requeued", [False, True])
def test_the_ranks_compare_which_checkpoint_last_is(
    requeued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each looks for itself: while another run writes, the newest may be another one a second later.

    A job that SLURM has requeued has its first overrides, and resumes from its own checkpoint.
    """
    monkeypatch.chdir(tmp_path)
    cfg = job("outputs/run", monkeypatch)
    cfg.ckpt_path = None if requeued else "last"
    if requeued:
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        fit(Eventful(), tmp_path / "outputs/run/checkpoints")
    fit(Eventful(), tmp_path / "outputs/other/checkpoints")
    path = f"outputs/{'run' if requeued else 'other'}/checkpoints/last.ckpt"
    with pytest.raises(CompactHydraException, match=f"ckpt_path={path} holds another model"):
        main(cfg)
    assert cfg.ckpt_path == path


def test_a_finished_cell_of_a_requeued_sweep_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    cfg = job(str(tmp_path), monkeypatch, "+skip_finished=true")
    save_config(cfg, tmp_path)
    fit(Eventful(), tmp_path / "checkpoints")
    logged = "epoch,step,val/loss,test/acc\n0,8,0.5,\n0,8,,0.75\n"
    (tmp_path / "metrics.csv").write_text(logged)
    assert main(cfg) == 0.5
    assert (tmp_path / "metrics.csv").read_text() == logged


def test_a_cell_resumes_from_its_own_checkpoint_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(Eventful(), tmp_path / "outputs/other/checkpoints")  # the newest run, of another model
    brief = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "logger=csv", "lr_scheduler=constant"]
    overrides = ["+skip_finished=true", "ckpt_path=last", *brief]
    for max_steps in (2, 4):
        cell = job("multirun/cell", monkeypatch, *overrides, f"trainer.max_steps={max_steps}")
        (tmp_path / "multirun/cell").mkdir(parents=True, exist_ok=True)
        main(cell)
        path = tmp_path / "multirun/cell/metrics.csv"
        if max_steps == 2:  # interrupted before its test
            path.write_text("epoch,step,train/loss,val/loss\n0,1,0.5,\n")
    assert [row["step"] for row in rows(path.parent) if row["train/loss"] == "0.5"] == ["1"]


@pytest.mark.parametrize("links", [True, False])
def test_there_is_always_a_last_checkpoint(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill may come before any move."""
    replace, seen = Path.replace, []

    def watched(path: Path, to: Path) -> Path:
        seen.append((to.name, (tmp_path / "last.ckpt").is_file()))
        return replace(path, to)

    def no_links(*paths: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(Path, "replace", watched)
    fit(Eventful(), tmp_path)
    assert seen == [("last.ckpt", False), ("last.ckpt", True)]
    saved = [steps_saved(tmp_path, name) for name in ("previous", "last")]
    assert saved == [4, 8]


def test_a_damaged_last_checkpoint_does_not_replace_the_previous_one(tmp_path: Path) -> None:
    fit(Eventful(), tmp_path)
    (tmp_path / "last.ckpt").write_bytes(b"damaged")
    trainer = L.Trainer(
        max_epochs=3,
        limit_train_batches=4,
        limit_val_batches=0,
        callbacks=[LastCheckpoint(tmp_path)],
        **NO_OUTPUT,
    )
    trainer.fit(Eventful(), ckpt_path=tmp_path / "previous.ckpt")
    saved = [steps_saved(tmp_path, name) for name in ("previous", "last")]
    assert saved == [8, 12]
