"""The programs of docs/examples, as modules."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from types import ModuleType

from helpers.recipe import ROOT

EXAMPLES = ROOT / "docs/examples"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.logger=false"]
QUIET += ["--trainer.enable_checkpointing=false", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where jsonargparse resolves annotations
    spec.loader.exec_module(module)
    return module


def fit_commands(module: ModuleType) -> list[list[str]]:
    """Return the arguments after ``fit`` of each command in an example's docstring."""
    lines = str(module.__doc__).replace("\\\n", " ").splitlines()
    return [shlex.split(line.partition(" fit ")[2]) for line in lines if " fit " in line]
