"""The package itself: what an import loads, and what the wheel brings to a stranger's app."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from helpers.bystander import assert_left_alone

ROOT = Path(__file__).parents[1]
STRANGER = ROOT / "tests/stranger"


def run(python: str | Path, *args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), *args], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)


PACKAGES = {"torch", "lightning", "pytorch_lightning", "wandb", "matplotlib"}
HEAVY = f"sorted({PACKAGES} & {{name.partition('.')[0] for name in sys.modules}})"


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import lightning_wd", []),
        ("import lightning_wd.conf", []),
        ("import lightning_wd as wd; wd.Decay; wd.convert; wd.ConfigError", []),
        ("import lightning_wd as wd; wd.configure_optimizers", ["torch"]),
        ("import lightning_wd as wd; wd.AdamW; wd.plan_decay", ["torch"]),  # the proof can fail
    ],
)
def test_what_an_import_loads(statement: str, loaded: list[str], tmp_path: Path) -> None:
    done = run(sys.executable, "-c", f"import sys; {statement}; print({HEAVY})", cwd=tmp_path)
    assert (done.stderr, done.stdout.strip()) == ("", repr(loaded))


def test_every_public_name_is_importable() -> None:
    import lightning_wd as wd

    assert [name for name in wd.__all__ if getattr(wd, name, None) is None] == []
    with pytest.raises(AttributeError, match="has no attribute 'AdamWW'") as caught:
        wd.AdamWW  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("AdamWW", wd)  # for Python's "Did you mean: 'AdamW'?"


@pytest.fixture(scope="session")
def clean_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with nothing but the wheel and its tested dependencies."""
    folder = tmp_path_factory.mktemp("clean")
    built = run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT), cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv")
    python = folder / "venv/bin/python"
    install = [*"install -q --no-compile -c".split(), str(ROOT / "constraints.txt"), str(wheel)]
    done = run(sys.executable, "-m", "pip", "--python", str(python), *install, cwd=folder)
    assert done.returncode == 0, done.stderr
    return python


def stranger(python: str | Path, app: Path, *overrides: str) -> list[dict[str, Any]]:
    """Run the stranger's app and return what each of its jobs printed."""
    # what one run compiles the next one finds, as the new environment comes without bytecode
    done = run(python, "app.py", *overrides, cwd=app, PYTHONPATH="", PYTHONDONTWRITEBYTECODE="")
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout + done.stderr
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(900)  # it installs torch into a new environment
@pytest.mark.parametrize("install", ["wheel", "editable"])
def test_a_strangers_app(install: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    wheel = install == "wheel"
    python = request.getfixturevalue("clean_python") if wheel else sys.executable
    app = shutil.copytree(
        STRANGER, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__")
    )  # not in the repository
    own = app / "conf/optimizer"
    own.mkdir()
    (own / "adam_l2.yaml").write_text("defaults: [adamw, _self_]\nlr: 0.5\n")

    if wheel:  # tests/field/test_hydra_1880.py does it for the editable install
        assert_left_alone(tmp_path / "bystander", python)
    plain, shadowed = stranger(python, app, "-m", "optimizer=sgdw,adam_l2")
    assert (plain["class"], plain["name"], plain["style"], plain["base"]) == ("SGDW", "decay", "decoupled", "standard")
    assert Path(plain["file"]).is_relative_to(ROOT / "lightning_wd") is not wheel
    assert (shadowed["class"], shadowed["lr"]) == ("AdamW", 0.5)
    assert plain["folder"]  # by the pack's resolver

    (nested,) = stranger(
        python,
        app,
        "--config-name=nested",
        "optimizer@model.optimizer=sgdw",
        "optimizer/decay@model.optimizer.decay=independent",
        "model.optimizer.lr=0.125",
    )
    assert (nested["class"], nested["style"], nested["lr"]) == ("SGDW", "independent", 0.125)


def test_the_wheel_holds_the_pack_whichever_way_it_is_built(tmp_path: Path) -> None:
    """Built from the repository or from the sdist, which leaves out the links of lightning_wd/conf."""
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").glob("**/*.yaml")}
    direct = ["-m", "build", "--no-isolation", "--wheel", "--outdir", "direct", str(ROOT)]
    by_sdist = ["-m", "build", "--no-isolation", "--outdir", "by_sdist", str(ROOT)]
    for arguments in (direct, by_sdist):
        done = run(sys.executable, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    for wheel in tmp_path.glob("*/*.whl"):
        names = zipfile.ZipFile(wheel).namelist()
        assert {name.removeprefix("lightning_wd/") for name in names if name.endswith(".yaml")} == files
        assert "lightning_wd/conf/__init__.py" in names
        assert [name for name in names if not name.startswith("lightning_wd")] == []
