"""A seeded soak: a sweep of distributed jobs killed 20 times and started again has each cell once at its end.

python tests/soak.py                # what `make soak` runs; a failure prints the seed
python tests/soak.py 2 7 FOLDER     # two kills, seed 7, in this folder
"""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

from helpers.recipe import TRAIN

from lightning_wd.runs.sweep import finished

OPTIMIZERS, SEEDS = ("adamw", "sgdw", "adam_l2"), (1, 2, 3)
COMMAND = [
    *(sys.executable, str(TRAIN), "hparams_search=resumable", f"optimizer={','.join(OPTIMIZERS)}"),
    *(f"seed={','.join(map(str, SEEDS))}", "hydra.sweep.subdir=${optimizer.name}_${seed}", "trainer=ddp_cpu"),
    *("callbacks=none", "data.batch_size=256", "trainer.max_epochs=30", "trainer.enable_progress_bar=false"),
    "ckpt_path=last",  # a cell that was killed goes on from its own checkpoint, the others start
]
START_UP, TRAINING = 8.0, 6.0  # seconds that these take, or less: a kill comes at a random time of them
LONGEST = 1200.0  # seconds for any wait: nothing may hang
CELLS = sorted(f"{optimizer}_{seed}" for optimizer in OPTIMIZERS for seed in SEEDS)


def cells_done(folder: Path) -> dict[str, float]:
    """Return when each finished cell's metrics were last written."""
    found = (path for path in (folder / "multirun/resumable").glob("*/metrics.csv") if finished(path.parent))
    return {path.parent.name: path.stat().st_mtime for path in found}


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the sweep in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / "printed.txt").open("ab") as out:
        return subprocess.Popen(COMMAND, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True)


def check(folder: Path, before: dict[str, float]) -> dict[str, float]:
    """What was finished once stays as it was, and every checkpoint is whole; return what is finished now."""
    now = cells_done(folder)
    for path in (folder / "multirun/resumable").glob("*/checkpoints/*.ckpt"):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None, f"{path} is damaged"
    assert {name: now.get(name) for name in before} == before, "a finished cell was run again"
    return now


def soak(kills: int, seed: int, folder: Path) -> None:
    """Kill the sweep at random times, the whole group or rank 0 alone, and let it end after the last kill."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, done = random.Random(seed), cells_done(folder)
    for kill in range(kills):
        left = len(CELLS) - len(done)
        moments = ["start-up"] + ["training"] * (2 if left else 0) + ["after a cell"] * (left > 1)
        moment = draw.choice(moments)
        process, begun = start(folder), time.time()
        while not _has_come(moment, folder, done, begun):
            assert process.poll() is None, (folder / "printed.txt").read_text()[-5000:]
            assert time.time() - begun < LONGEST, (folder / "printed.txt").read_text()[-5000:]
            time.sleep(0.02)
        time.sleep(draw.uniform(0.0, TRAINING if moment == "training" else START_UP))
        alone = draw.random() < 0.5
        if process.poll() is None:
            (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
        process.wait()
        _end_the_others(process.pid, seconds=60.0)
        done = check(folder, done)
        what = f"kill {kill + 1}, {moment}, of {'rank 0' if alone else 'all ranks'}"
        print(f"{what}: {len(done)} of {len(CELLS)} cells done", flush=True)
    assert start(folder).wait(LONGEST) == 0, (folder / "printed.txt").read_text()[-5000:]
    done = check(folder, done)
    assert sorted(done) == CELLS, sorted(done)
    for name in CELLS:
        with (folder / "multirun/resumable" / name / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        tests = [row for row in rows if row.get("test/loss")]
        steps = Counter(row["step"] for row in rows if row.get("train/loss"))
        assert len(tests) == 1, f"{name} has {len(tests)} rows of the test"
        assert not any(count > 1 for count in steps.values()), f"{name} logged a step twice: {steps}"
    print(f"{len(CELLS)} cells, each once, after {kills} kills, seed {seed}", flush=True)


def _has_come(moment: str, folder: Path, done: dict[str, float], begun: float) -> bool:
    if moment == "after a cell":
        return len(cells_done(folder)) > len(done)
    saved = (folder / "multirun/resumable").glob("*/checkpoints/last.ckpt")
    return moment == "start-up" or any(path.stat().st_mtime > begun for path in saved)


def _end_the_others(group: int, seconds: float) -> None:
    """Wait for the other ranks of a killed sweep, which must end by themselves once rank 0 is gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    raise AssertionError(f"a rank outlived rank 0 by {seconds} s")


if __name__ == "__main__":
    given = sys.argv[1:]
    with tempfile.TemporaryDirectory() as fresh:
        number = int(given[1]) if len(given) > 1 else int(time.time())
        print(f"seed {number}", flush=True)
        soak(int(given[0]) if given else 20, number, Path(given[2] if len(given) > 2 else fresh))
