"""Running recipes/train.py from tests: as a user does, in a process of its own, or faster in this one."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "recipes/train.py"


def train(*overrides: str, cwd: Path, ok: bool = True, timeout: int = 560) -> subprocess.CompletedProcess[str]:
    """Run the recipe in ``cwd``, in a process of its own; unless ``ok`` is False it must succeed."""
    shell = {"PWD": str(cwd)}  # where a user's shell would stand
    env = {**os.environ, **shell, "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(TRAIN), *overrides], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )
    if ok:
        assert done.returncode == 0, f"{overrides}\n{done.stdout}\n{done.stderr}"
    return done


def train_here(*overrides: str, cwd: Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """As :func:`train`, from the command line to the exit status, but in this process: its imports take seconds."""
    import train as recipe

    argv = [str(TRAIN), "--config-path", str(ROOT / "recipes/conf"), *overrides]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with job_of_its_own(), mock.patch.object(sys, "argv", argv), mock.patch.dict(os.environ, {"PWD": str(cwd)}):
        before = Path.cwd()
        os.chdir(cwd)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                recipe.main()
        except SystemExit as stop:  # a message goes to stderr, as the interpreter does it
            code = stop.code if isinstance(stop.code, int) else 1
            err.write("" if isinstance(stop.code, int) else f"{stop.code}\n")
        finally:
            os.chdir(before)
    if ok:
        assert code == 0, f"{overrides}\n{out.getvalue()}\n{err.getvalue()}"
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def job(*overrides: str, folder: Path) -> float | None:
    """Run one job of the recipe in this process, as Hydra would, and return what it returns to a sweeper."""
    import train as recipe

    with job_of_its_own():
        return recipe.main(job_config(*overrides, folder=folder))


def trained(*overrides: str, folder: Path) -> dict[str, Any]:
    """Run one job of the recipe in this process and return its metrics and objects."""
    import train as recipe

    with job_of_its_own():
        return recipe.train(job_config(*overrides, folder=folder))


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


@contextlib.contextmanager
def job_of_its_own() -> Iterator[None]:
    """Put back what a job of Hydra changes in the process: its config, and the handlers of the root logger."""
    state, root = HydraConfig.instance().cfg, logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        HydraConfig.instance().cfg = state
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
