"""Running somebody's Hydra app in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

APP = """
import json
import hydra
from omegaconf import OmegaConf


@hydra.main(version_base="1.3", config_path="conf", config_name="app")
def main(cfg):
    print("JOB " + json.dumps(OmegaConf.to_container(cfg, resolve=True)))


if __name__ == "__main__":
    main()
"""


def write_app(folder: Path, files: dict[str, str]) -> Path:
    """Write ``app.py``, whose jobs print their config, and the app's files."""
    for name, text in {"app.py": APP, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def run_app(folder: Path, *args: str, python: str | Path = sys.executable) -> str:
    """Run ``app.py`` in its folder and return what it printed; unless the arguments start with ``-m``, as a script."""
    program = [] if args[:1] == ("-m",) else ["app.py"]
    env = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(python), *program, *args], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def jobs(folder: Path, *args: str, python: str | Path = sys.executable) -> list[Any]:
    """Run ``app.py`` and return what each of its jobs printed."""
    lines = run_app(folder, *args, python=python).splitlines()
    return [json.loads(line.removeprefix("JOB ")) for line in lines if line.startswith("JOB ")]
