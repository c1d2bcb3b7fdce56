"""Every command and code block of the README runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.pages import PREFIX, blocks, broken_links, commands, train_as_written
from helpers.recipe import ROOT

README = (ROOT / "README.md").read_text()
HYDRA_PAGE = (ROOT / "docs/hydra.md").read_text()  # it has the YAML of a model, for the app of the README
BLOCKS = blocks(README)

# What no test can run here, and why.
NOT_RUN = {"make train": ".ci/run runs it in a clean checkout"}
RECIPES = sorted({command for command in commands(README) if command.startswith(PREFIX)})


def test_every_command_is_run_or_has_a_reason() -> None:
    assert sorted({command for command in commands(README) if command not in RECIPES}) == sorted(NOT_RUN)


@pytest.mark.parametrize("command", RECIPES)
def test_command(command: str, tmp_path: Path) -> None:
    train_as_written(command, tmp_path)


def test_the_module_of_the_readme_trains_from_the_groups_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python and YAML blocks together, as the text says: an app with the groups, and a replaced optimizer."""
    import hydra
    import torch

    class_block, model_line, override_line = (block for language, block in BLOCKS if language == "python")
    (app,) = (block for language, block in BLOCKS if language == "yaml")
    _, model_yaml, callback_yaml = (block for language, block in blocks(HYDRA_PAGE) if language == "yaml")
    (tmp_path / "model").mkdir()
    (tmp_path / "app.yaml").write_text(app)
    (tmp_path / "hydra").mkdir()
    asks = app.partition("hydra:")  # as lightning-hydra-template has it: Hydra's own settings in a group of the app
    (tmp_path / "nested.yaml").write_text(
        f"defaults: [_self_, {{model: mine}}, {{hydra: default}}]\n{''.join(asks[1:])}"
    )
    (tmp_path / "hydra/default.yaml").write_text("run: {dir: logs}\n")
    (tmp_path / "model/mine.yaml").write_text(model_yaml)
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks/default.yaml").touch()
    (tmp_path / "callbacks/override.yaml").write_text(callback_yaml)
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = hydra.compose("app", ["optimizer=sgdw"])
        nested = hydra.compose("nested", ["optimizer@model.optimizer=sgdw"]).model
        outside = hydra.compose("app", ["+callbacks=override", "optimizer@callbacks.override.optimizer=sgdw"]).callbacks
    for each in (cfg, nested, hydra.utils.instantiate(outside.override)):
        schedule = each.scheduler if each is nested else each.lr_scheduler
        assert (each.optimizer["name"], schedule["name"]) == ("sgdw", "warmup_cosine")

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


@pytest.mark.parametrize("page", ["README.md", "docs/how_it_works.md"])
def test_the_speed_is_that_of_the_benchmark(page: str) -> None:
    results = (ROOT / "benchmarks/results/optimizers.md").read_text()
    rows = results.partition("## adamw, gpt2")[2].partition("\n## ")[0]
    ratio = {name: float(value) for name, value in re.findall(r"^\| (.+?) \| [\d.]+ \| ([\d.]+) \|", rows, re.M)}
    ours = [ratio[name] for name in ratio if name.startswith(("ours decoupled", "ours independent"))]
    text = " ".join((ROOT / page).read_text().split())
    assert f"{min(ours):.2f} to {max(ours):.2f} times" in text
    assert f"differ by {100 * abs(ratio['null: torch fused again'] - 1):.0f} %" in text


def test_names_in_the_text_exist() -> None:
    import lightning_wd as wd

    used = set(re.findall(r"\bwd\.(\w+)", README))
    assert used - set(wd.__all__) == set()


def test_links_are_not_broken() -> None:
    assert broken_links(ROOT / "README.md") == []
