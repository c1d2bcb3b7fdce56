"""Every command and code block of the README runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.pages import PREFIX, blocks, broken_links, commands, train_as_written
from helpers.recipe import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = blocks(README)

# What no test can run here, and why.
NOT_RUN = {
    "make train": ".ci/run runs it in a clean checkout",
    "make test": "that is this test run",
    "pip install .": "tests/test_package.py installs the wheel",
    "python3 -m venv .venv": "make runs it",
    '.venv/bin/pip install -c constraints.txt -e ".[test]"': "make runs it, with the tools of `make check` added",
    ".venv/bin/python -m pytest": "that is this test run",
}


RUN = (PREFIX, ".venv/bin/torchrun ", ".venv/bin/lightning-wd ")
RECIPES = sorted({c for c in commands(README) if c.startswith(RUN)}, key=lambda c: ("ckpt_path" in c, c))


def test_every_command_is_run_or_has_a_reason() -> None:
    assert sorted({command for command in commands(README) if command not in RECIPES}) == sorted(NOT_RUN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.xdist_group("readme")
@pytest.mark.parametrize("command", [c for c in RECIPES if not c.startswith(PREFIX)])
def test_other_command(command: str, folder: Path) -> None:
    if not (folder / "recipes").exists():
        (folder / "recipes").symlink_to(ROOT / "recipes")
    program, *arguments = shlex.split(command)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    tool = [str(Path(sys.executable).parent / Path(program).name), *arguments]
    done = subprocess.run(tool, cwd=folder, env=env, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr


RESUMES = pytest.mark.filterwarnings("ignore")  # Lightning warns of a resume in another folder


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[RESUMES] * ("ckpt_path" in c)) for c in RECIPES if c.startswith(PREFIX)]
)
def test_command(command: str, tmp_path: Path) -> None:
    train_as_written(command, tmp_path)


def test_the_module_of_the_readme_trains_from_the_groups_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python and YAML blocks together, as the text says: an app with the groups, and a replaced optimizer."""
    import hydra
    import torch

    class_block, model_line, override_line = (block for language, block in BLOCKS if language == "python")
    app, model_yaml = (block for language, block in BLOCKS if language == "yaml")
    (tmp_path / "model").mkdir()
    (tmp_path / "app.yaml").write_text(app)
    (tmp_path / "hydra").mkdir()
    asks = app.partition("hydra:")  # as lightning-hydra-template has it: Hydra's own settings in a group of the app
    (tmp_path / "nested.yaml").write_text(
        f"defaults: [_self_, {{model: mine}}, {{hydra: default}}]\n{''.join(asks[1:])}"
    )
    (tmp_path / "hydra/default.yaml").write_text("run: {dir: logs}\n")
    (tmp_path / "model/mine.yaml").write_text(model_yaml)
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = hydra.compose("app", ["optimizer=sgdw"])
        nested = hydra.compose("nested", ["optimizer@model.optimizer=sgdw"]).model.optimizer
    assert (cfg.optimizer.name, cfg.lr_scheduler.name, nested.name) == ("sgdw", "warmup_cosine", "sgdw")

    names: dict[str, Any] = {"hydra": hydra, "cfg": cfg}
    exec(class_block, names)
    exec(model_line, names)
    exec(override_line, names)
    model, trainer = names["model"], names["trainer"]
    model.net = torch.nn.Linear(2, 1)
    model.training_step = lambda batch, batch_idx: model.net(batch).sum()
    monkeypatch.chdir(tmp_path)
    trainer.fit_loop.max_epochs = 1
    data: Any = torch.ones(4, 2)  # a tensor is a data set, though torch's types do not say so
    trainer.fit(model, torch.utils.data.DataLoader(data))
    assert type(trainer.optimizers[0]).__name__ == "AdamW"  # by OptimizerOverride; the module's own was SGDW
    assert type(model.configure_optimizers()["optimizer"]).__name__ == "SGDW"


def test_names_in_the_text_exist() -> None:
    import lightning_wd as wd

    used = set(re.findall(r"\bwd\.(\w+)", README))
    assert used - set(wd.__all__) == set()


def test_links_are_not_broken() -> None:
    assert broken_links(ROOT / "README.md") == []
