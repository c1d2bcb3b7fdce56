"""Running recipes/train.py from tests: as a user does, in a process of its own and a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

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


def job(*overrides: str, folder: Path) -> float | None:
    """Run one job of the recipe in this process, as Hydra would, and return what it returns to a sweeper."""
    import train as recipe

    state = HydraConfig.instance().cfg
    try:
        return recipe.main(job_config(*overrides, folder=folder))
    finally:
        HydraConfig.instance().cfg = state


def job_config(*overrides: str, folder: Path | str) -> DictConfig:
    """Return the config of a job in this folder, and let Hydra be in that job."""
    with initialize_config_dir(str(ROOT / "recipes/conf"), version_base="1.3"):
        cfg = compose("train", [*overrides, f"hydra.runtime.output_dir={folder}"], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def run_folder(done: subprocess.CompletedProcess[str]) -> Path:
    """Return the folder that a run named in its last line."""
    found = re.findall(r"^run folder: (.+)$", done.stdout, re.M)
    assert found, done.stdout + done.stderr
    return Path(found[-1])
