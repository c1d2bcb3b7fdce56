"""Lightning's two packages: which classes are found, and that neither is loaded without need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lightning.pytorch.callbacks
import pytest

from lightning_wd._lightning import both, either

PRINT = "print(*sorted({'lightning', 'pytorch_lightning'} & sys.modules.keys()))"


def run(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


def test_either_package_has_the_class() -> None:
    pl = pytest.importorskip("pytorch_lightning")
    fabric = pytest.importorskip("lightning_fabric")
    assert either("lightning.pytorch.callbacks.Timer") == (lightning.pytorch.callbacks.Timer, pl.callbacks.Timer)
    path = "lightning.fabric.plugins.environments.TorchElasticEnvironment"
    assert either(path)[1] is fabric.plugins.environments.TorchElasticEnvironment
    assert either("lightning.pytorch.callbacks.Gone") == ()
    assert both("lightning.pytorch.Trainer") == (lightning.pytorch.Trainer, pl.Trainer)


def test_neither_is_loaded_to_ask(tmp_path: Path) -> None:
    code = "import sys\nfrom lightning_wd._lightning import either\n"
    code += "assert either('lightning.pytorch.Trainer') == ()\n"
    assert run(code + PRINT, tmp_path) == ""
    one = "import pytorch_lightning as pl\nassert either('lightning.pytorch.Trainer') == (pl.Trainer,)\n"
    assert run(code + one + PRINT, tmp_path) == "pytorch_lightning"


def test_a_package_that_cannot_be_imported_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "pytorch_lightning.py").write_text("raise RuntimeError('too old for this torch')")
    code = "import sys, lightning as L, lightning_wd as wd\nassert isinstance(wd.DecayMonitor(), L.Callback)\n"
    assert run(code + PRINT, tmp_path) == "lightning"
