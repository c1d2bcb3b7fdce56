"""LightningCLI (lightning#20743) and Fabric, as the examples use them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import lightning as L
import pytest
import torch
from helpers.examples import EXAMPLES, QUIET, example, fit_commands
from torch import nn

import lightning_wd as wd


def groups(optimizer: torch.optim.Optimizer) -> dict[str, tuple[str, float, float, list[str]]]:
    return {g["name"]: (g["style"], g["weight_decay"], g["base_lr"], g["param_names"]) for g in optimizer.param_groups}


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse[signatures]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning_cli.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls what jsonargparse 4.5 renamed
    return example("lightning_cli")


def test_lightning_cli_from_a_file(cli: ModuleType) -> None:
    done = cli.main(["fit", "--config", str(EXAMPLES / "lightning_cli.yaml"), *QUIET])
    assert groups(done.trainer.optimizers[0]) == {
        "no_decay": ("decoupled", 0.0, 1e-2, ["layer.bias"]),
        "decay_lr_x0.5": ("decoupled", 0.1, 5e-3, ["layer.weight"]),
    }
    assert done.trainer.global_step == 4


def test_lightning_cli_from_the_command_line(cli: ModuleType) -> None:
    """The command in the example's docstring."""
    done = cli.main(["fit", *fit_commands(cli)[1], *QUIET])
    assert groups(done.trainer.optimizers[0]) == {
        "decay": ("independent", 2.5e-4, 0.05, ["layer.weight", "layer.bias"])
    }


def test_lightning_cli_refuses_a_misspelt_key(cli: ModuleType) -> None:
    override = ["--trainer.callbacks+=lightning_wd.OptimizerOverride"]
    with pytest.raises(ValueError, match=r"(?s)optimizer adamw has no key 'weight_decy'.*nearest: 'weight_decay'"):
        cli.main(["fit", *override, "--trainer.callbacks.optimizer={name: adamw, weight_decy: 1}", *QUIET])


def test_the_fabric_example_runs_and_learns(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("fabric").main() < 0.1
    assert "1.weight: no_decay (norm layer LayerNorm)\n" in capsys.readouterr().out


def test_fabric_saves_and_loads_what_fits_and_refuses_the_rest(tmp_path: Path) -> None:
    fabric = L.Fabric(accelerator="cpu", devices=1)

    def setup(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        return fabric.setup(net, wd.configure_optimizers(net, {"name": name, "weight_decay": 0.1})["optimizer"])

    model, optimizer = setup("adamw")
    fabric.backward(model(torch.ones(2, 4)).sum())
    optimizer.step()
    fabric.save(tmp_path / "c.ckpt", {"model": model, "optimizer": optimizer})
    again, its_optimizer = setup("adamw")
    fabric.load(tmp_path / "c.ckpt", {"model": again, "optimizer": its_optimizer})
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    other, l2 = setup("adam_l2")
    with pytest.raises(wd.CheckpointMismatchError, match="trained with another decay style"):
        fabric.load(tmp_path / "c.ckpt", {"model": other, "optimizer": l2})
