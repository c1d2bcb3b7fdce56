"""LightningCLI's ``--optimizer`` puts every parameter into one group, biases and norm layers included.

https://github.com/Lightning-AI/pytorch-lightning/issues/20743 (pytorch-lightning#20743)

There: weight decay for some parameters only cannot be asked for on the command line.
Here: a module that takes ``wd.OptimizerConfig`` has an option for each of its keys, and ``OptimizerOverride`` does the
same for a module that takes none. Short names such as ``--optimizer=AdamW`` mean torch's classes, as without us.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.examples import EXAMPLES, QUIET, example, fit_commands
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

import lightning_wd as wd
from lightning_wd.optimizers.by_name import OPTIMIZERS, hyperparameters_of

jsonargparse = pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse[signatures]")
from lightning.pytorch.cli import LightningCLI  # noqa: E402


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["app.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls what jsonargparse 4.5 renamed


def groups(optimizer: torch.optim.Optimizer) -> dict[str, tuple[str, float, float, list[str]]]:
    return {g["name"]: (g["style"], g["weight_decay"], g["base_lr"], g["param_names"]) for g in optimizer.param_groups}


def fit(module: ModuleType, *arguments: str) -> Any:
    return module.main(["fit", *arguments, *QUIET]).trainer


@pytest.fixture(scope="module")
def model() -> ModuleType:
    return example("lightning_cli_model")


def test_the_module_from_a_file(model: ModuleType) -> None:
    trainer = fit(model, "--config", str(EXAMPLES / "lightning_cli_model.yaml"))
    assert groups(trainer.optimizers[0]) == {
        "no_decay": ("decoupled", 0.0, 1e-2, ["layer.bias"]),
        "decay_lr_x0.5": ("decoupled", 0.1, 5e-3, ["layer.weight"]),
    }
    assert trainer.optimizers[0].param_groups[0]["betas"] == (0.9, 0.95)
    assert trainer.lr_scheduler_configs[0].scheduler.shape == "warmup_cosine"


def test_the_module_from_the_command_line(model: ModuleType) -> None:
    trainer = fit(model, *fit_commands(model)[1])
    assert groups(trainer.optimizers[0]) == {
        "decay": ("independent", 2.5e-4, 0.05, ["layer.weight", "layer.bias"]),
    }
    settings = {"warmup_steps": 0, "total_steps": 4, "min_lr_factor": 0}
    assert trainer.lr_scheduler_configs[0].scheduler.settings == settings


def test_nothing_given_is_the_default(model: ModuleType) -> None:
    given, bare = fit(model, "--trainer.max_steps=1", "--model.optimizer.name=adamw"), wd.OptimizerConfig()
    assert given.optimizers[0].decay_config == bare


def test_help_has_every_key(model: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        model.main(["fit", "--model.optimizer.help"])
    shown = capsys.readouterr().out
    own = {"name", "lr", "weight_decay", "decay", "mask", "on_resume"}
    for family in OPTIMIZERS.values():
        own |= hyperparameters_of(family.cls).keys()
    assert [key for key in own if f"--model.optimizer.{key} " not in shown] == []


def test_any_class_by_its_path(model: ModuleType) -> None:
    keywords = ["--model.optimizer.momentum_decay=0.01", "--model.optimizer.betas=[0.8,0.9]"]
    made = fit(model, "--trainer.max_steps=1", "--model.optimizer.name=torch.optim.NAdam", *keywords).optimizers[0]
    group = made.param_groups[0]
    assert (type(made).__name__, group["momentum_decay"], group["betas"]) == ("NAdamW", 0.01, (0.8, 0.9))


def test_an_unknown_key_is_refused(model: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit(model, "--model.optimizer.weight_decy=1")
    assert "Option 'weight_decy' is not accepted" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'amsgrad' belongs to adamw, adam_l2: remove it"):
        fit(model, "--model.optimizer.name=sgdw", "--model.optimizer.amsgrad=true")


def test_the_override_from_the_command_line() -> None:
    module = example("lightning_cli")
    trainer = fit(module, *fit_commands(module)[2])
    assert groups(trainer.optimizers[0]) == {
        "no_decay": ("independent", 0.0, 0.05, ["layer.bias"]),
        "decay": ("independent", 2.5e-4, 0.05, ["layer.weight"]),
    }
    assert trainer.lr_scheduler_configs[0].scheduler.shape == "constant"


@pytest.mark.filterwarnings("ignore:`BoringModel.configure_optimizers` will be overridden")
def test_the_clis_own_adamw_is_torchs() -> None:
    assert issubclass(wd.AdamW, torch.optim.AdamW)  # imported: what made the name ambiguous
    arguments: Any = ["fit", "--trainer.max_steps=1", "--optimizer=AdamW", "--optimizer.lr=0.1", *QUIET]
    cli = LightningCLI(
        BoringModel, BoringDataModule, seed_everything_default=0, save_config_callback=None, args=arguments
    )
    assert type(cli.trainer.optimizers[0]) is torch.optim.AdamW


def test_no_short_name_is_ambiguous() -> None:
    """All of our package and every class that ``decoupled`` makes are loaded: jsonargparse finds torch's alone."""
    for found in pkgutil.walk_packages(wd.__path__, "lightning_wd."):
        if not found.name.endswith("_hydra_shim"):
            importlib.import_module(found.name)
    kinds = {torch.optim: torch.optim.Optimizer, torch.optim.lr_scheduler: torch.optim.lr_scheduler.LRScheduler}
    made = [wd.decoupled(cls) for cls in (torch.optim.Adam, torch.optim.Adagrad)]
    assert [cls.__name__ for cls in made] == ["AdamW", "AdagradW"]
    for home, base in kinds.items():
        public = {key: cls for key, cls in vars(home).items() if inspect.isclass(cls) and issubclass(cls, base)}
        assert len(public) > 10
        for key, cls in public.items():
            if cls is not base and key not in ("_LRScheduler", "ReduceLROnPlateau"):  # Lightning has one of its own
                parser = jsonargparse.ArgumentParser(exit_on_error=False)
                parser.add_subclass_arguments(base, "chosen", skip={"params", "optimizer"}, fail_untyped=False)
                try:
                    path = parser.parse_args([f"--chosen={key}"]).chosen.class_path
                except jsonargparse.ArgumentError as error:
                    assert "Multiple subclasses" not in str(error), str(error)  # noqa: PT017
                    continue  # it has required arguments
                module, _, name = path.rpartition(".")
                assert getattr(importlib.import_module(module), name) is cls


def test_ours_is_still_pickled_by_name() -> None:
    assert pickle.loads(pickle.dumps(wd.AdamW)) is wd.AdamW
    assert wd.AdamW.__name__ == "AdamW"
