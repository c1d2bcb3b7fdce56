"""The pages of docs/: each Python block and command runs, links lead somewhere, and mkdocs.yml has every page."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from helpers.examples import EXAMPLES, example
from helpers.pages import PREFIX, blocks, broken_links, commands, table, train_as_written
from helpers.recipe import ROOT, job_config, job_of_its_own

import lightning_wd as wd
from lightning_wd import cli

DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.glob("**/*.md"))}
NOTEBOOK = DOCS / "notebooks/l2_is_not_weight_decay.ipynb"
TOOL = ".venv/bin/lightning-wd "
APP = "python docs/examples/hydra_app.py "
TORCHRUN = ".venv/bin/torchrun "

# How a command begins that no test runs here, and why.
NOT_RUN = {
    ".venv/bin/python recipes/studies/run.py": "takes hours: make studies-smoke runs each study at toy size",
    "OMP_NUM_THREADS=1 python recipes/train.py hparams_search=": "a sweep of hours",
    "lightning-wd curves multirun/": "needs the sweep above it",
    "lightning-wd heatmap multirun/": "needs the sweep above it",
    "pip install .": "tests/test_package.py installs the wheel",
    "make studies-smoke": ".ci/run runs it",
    "python recipes/train.py hparams_search=": "a sweep of hours",
    "python train.py optimizer=custom ": "needs timm, or a module of the reader's; tests/test_pack.py composes them",
}
COMMANDS = sorted({command for text in PAGES.values() for command in commands(text)})
OF_README = commands((ROOT / "README.md").read_text())  # run by tests/test_readme.py


def test_every_command_is_run_or_has_a_reason() -> None:
    left = [c for c in COMMANDS if c not in OF_README and not c.startswith((PREFIX, TOOL, APP, TORCHRUN))]
    assert [command for command in left if not command.startswith(tuple(NOT_RUN))] == []
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in left)] == []


RESUMES = pytest.mark.filterwarnings("ignore")  # Lightning warns of a resume in another folder


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[RESUMES] * ("ckpt_path" in command))
        for command in COMMANDS
        if command.startswith((PREFIX, TOOL)) and command not in OF_README
    ],
)
def test_command(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if command.startswith(TOOL):
        assert cli.main(shlex.split(command.removeprefix(TOOL))) == 0
    else:
        train_as_written(command, tmp_path)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(TORCHRUN)])
def test_command_of_torchrun(command: str, tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    program = str(Path(sys.executable).parent / "torchrun")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = [program, *shlex.split(command.removeprefix(TORCHRUN))]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(APP)])
def test_command_of_the_hydra_app(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = shlex.split(command.removeprefix(APP))
    monkeypatch.setattr(sys, "argv", ["hydra_app.py", "--config-path", str(EXAMPLES), *overrides])
    with job_of_its_own():
        example("hydra_app").main()
    named = next(word for word in overrides if word.startswith("optimizer=")).removeprefix("optimizer=")
    shown = re.findall(r"^(\w+) decay (\w+) ", capsys.readouterr().out, re.M)
    classes = {"adamw": "AdamW", "sgdw": "SGDW", "adam_l2": "AdamL2"}
    assert [cls for cls, _ in shown] == [classes[name] for name in named.split(",")]


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```python" in text])
def test_python_blocks(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks of a page one after the other, in one namespace; a text block after one is what it prints."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "docs"}
    before = ""
    for language, text in blocks(PAGES[page]):
        if language == "python":
            capsys.readouterr()
            exec(compile(text, page, "exec"), names)
        elif (before, language) == ("python", "text"):
            assert capsys.readouterr().out == text
        before = language


OVERRIDES = sorted(
    {
        found
        for text in PAGES.values()
        for found in re.findall(r"`('?\+?(?:optimizer|lr_scheduler)[\w./@]*=[^`<]+)`", text)
        if found != "optimizer=custom"  # it wants a name
    }
)


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_overrides_in_the_text_compose(overrides: str, tmp_path: Path) -> None:
    words = [word for word in shlex.split(overrides) if "ckpt_path" not in word]
    with job_of_its_own():
        cfg = job_config(*words, folder=tmp_path)
        hydra.utils.instantiate(cfg.optimizer)
        hydra.utils.instantiate(cfg.lr_scheduler)


def test_yaml_blocks_can_be_read() -> None:
    found = [text for page in PAGES.values() for language, text in blocks(page) if language == "yaml"]
    assert found
    assert all(isinstance(yaml.safe_load(text), dict) for text in found)


def test_links_are_not_broken() -> None:
    assert {page: broken for page in PAGES if (broken := broken_links(DOCS / page))} == {}
    linked = {(page, target) for page, text in PAGES.items() for target in re.findall(r"\]\((\.\.[^)#]*)", text)}
    assert [
        link for link in linked if not (DOCS / link[0]).parent.joinpath(link[1]).resolve().is_relative_to(DOCS)
    ] == []


def test_names_in_the_text_exist() -> None:
    used = {name for text in PAGES.values() for name in re.findall(r"\bwd\.(\w+)", text)}
    assert used - set(wd.__all__) == set()


def entries(nav: Any) -> Iterator[str]:
    """Yield the files that a ``nav`` of mkdocs names."""
    if isinstance(nav, str):
        yield nav
    else:
        for each in nav.values() if isinstance(nav, dict) else nav:
            yield from entries(each)


def test_the_site_has_every_page() -> None:
    """A new page needs a line in mkdocs.yml."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(entries(site["nav"])) == sorted([*PAGES, NOTEBOOK.relative_to(DOCS).as_posix()])


def test_versions_are_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == wd.__version__
    bounds, tested = (ROOT / "pyproject.toml").read_text(), (ROOT / "constraints.txt").read_text()
    rows = {name: versions for name, *versions in table("../CONTRIBUTING.md", "package | oldest | tested | newest")}
    assert f'requires-python = ">={rows.pop("Python")[0]}"' in bounds
    for name, (oldest, pinned, _) in rows.items():
        package = name.partition(",")[0]
        bound = re.search(rf'"{package}>=([\d.]+)"', bounds)
        assert bound, package
        assert oldest in (bound[1], f"{bound[1]}.0")
        assert f"\n{package}=={pinned}\n" in tested


def test_the_reference_has_every_public_name() -> None:
    described = re.findall(r"^::: lightning_wd\.(\w+)$", PAGES["reference.md"], re.M)
    assert sorted(described) == sorted(set(wd.__all__) - {"__version__"})


def test_the_notebook_shows_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    names["plt"].close("all")
    large, small = names["left"]["Adam with L2"]
    assert (round(large, 1), round(small, 1)) == (1.0, 0.4)
    assert names["left"]["AdamW"] == pytest.approx([0.61, 0.61], abs=0.02)  # (1 - lr * lam) ** 1000
    assert names["spread"] > 100
    assert names["l2_accuracy"] == pytest.approx(names["adamw_accuracy"], abs=0.02)
