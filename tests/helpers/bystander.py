"""tests/bystander, an app that never asks for us: what it composes, lists and loads is its own alone."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from helpers.hydra_app import jobs, run_app

APP = Path(__file__).parents[1] / "bystander"


def assert_left_alone(folder: Path, python: str | Path = sys.executable) -> None:
    """Run the app in a new folder with this Python, over all options it knows, and for its help."""
    app = shutil.copytree(APP, folder, ignore=shutil.ignore_patterns("__pycache__", "outputs", "multirun"))
    elsewhere = {
        "trainer": {"own": "searchpath"},
        "logger": {"own": "config-dir"},
        "callbacks": {"own": "dataclass"},
    }
    found = jobs(app, "--config-dir", "extra", "--multirun", "optimizer=glob(*)", python=python)
    assert found == [
        [{"optimizer": {"own": "config_path"}, **elsewhere}, False],
        [{"optimizer": {"own": "dict"}, **elsewhere}, False],
    ]
    groups = run_app(app, "--config-dir", "extra", "--help", python=python).partition("== Config ==")[0].splitlines()
    listed = [line for line in groups if ": " in line]
    assert listed == ["callbacks: default", "logger: wandb", "optimizer: adamw, sgdw"]
