"""The pages that users read, README.md and docs/: their code blocks, commands and tables."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from helpers.recipe import ROOT, run_folder, train, train_here

PREFIX = ".venv/bin/python recipes/train.py"


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the language and the text of each fenced block."""
    return re.findall(r"```(\w+)\n(.*?)```", text, re.S)


def commands(text: str) -> list[str]:
    """Return the lines of the bash blocks, and the recipe's commands between backticks."""
    lines = [line for language, block in blocks(text) if language == "bash" for line in block.splitlines()]
    shell = [re.sub(r"\s+#.*", "", line).strip() for line in lines if line.strip() and not line.startswith("#")]
    return [*shell, *re.findall(rf"`({re.escape(PREFIX)}[^`]*)`", text)]


def train_as_written(command: str, cwd: Path) -> None:
    """Run a command of the recipe, but for one epoch; ``ckpt_path=last`` resumes a default run made for it."""
    overrides = shlex.split(command.removeprefix(PREFIX))
    if not any(word.startswith(("trainer.max", "ckpt_path")) for word in overrides):
        overrides.append("trainer.max_epochs=1")
    if "ckpt_path=last" in overrides:
        overrides.append("trainer.max_epochs=2")
        train_here("trainer.max_epochs=1", cwd=cwd)
    # Here where it can be, as starting a process takes seconds; not where it starts others.
    alone = not any(word.startswith("trainer.devices") for word in overrides)
    done = (train_here if alone else train)(*overrides, cwd=cwd)
    assert (run_folder(done) / "metrics.csv").is_file()
    assert "Test metric" in done.stdout


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere; a link to a heading is a question to mkdocs."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.S)
    local = [target for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if not target.startswith("http")]
    return [target for target in local if not (page.parent / target).exists()]


def table(page: str, head: str) -> list[list[str]]:
    """Return the rows below a table's head on a page of docs/, each cell's code without its backticks."""
    _, found, rest = (ROOT / "docs" / page).read_text().partition(f"| {head} |\n")
    assert found, f"docs/{page} has no table '{head}'"
    rows = [line.strip("| ").split(" | ") for line in rest.partition("\n\n")[0].splitlines()[1:]]
    return [[cell.strip("`") for cell in row] for row in rows]
