"""Running recipes/train.py from tests: as a user does, in a process of its own and a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / "recipes/train.py"


def train(*overrides: str, cwd: Path, ok: bool = True, timeout: int = 560) -> subprocess.CompletedProcess[str]:
    """Run the recipe in ``cwd`` and return what it printed; unless ``ok`` is False it must succeed."""
    shell = {"PWD": str(cwd)}  # where a user's shell would stand
    env = {**os.environ, **shell, "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(TRAIN), *overrides], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )
    if ok:
        assert done.returncode == 0, f"{overrides}\n{done.stdout}\n{done.stderr}"
    return done


def run_folder(done: subprocess.CompletedProcess[str]) -> Path:
    """Return the folder that a run named in its last line."""
    found = re.findall(r"^run folder: (.+)$", done.stdout, re.M)
    assert found, done.stdout + done.stderr
    return Path(found[-1])
