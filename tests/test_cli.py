"""The command line as a whole: help, version and examples."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lightning_wd
from lightning_wd.cli import main


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; from lightning_wd import cli; sys.modules['torch'] = None\nsys.exit(cli.main(['audit', '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--fail-on" in done.stdout
    broken = code.replace("'audit', '--help'", "'audit', 'audited:Model'")  # the proof can fail
    failed = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, check=False)
    assert "import of torch halted" in failed.stderr


def test_the_version_and_the_examples_of_each_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"lightning-wd {lightning_wd.__version__}\n"
    for name in ("audit", "convert", "identify", "heatmap", "curves"):
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        shown = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
        assert len(shown) >= 2
        assert all(line.startswith(f"  lightning-wd {name} ") for line in shown)
