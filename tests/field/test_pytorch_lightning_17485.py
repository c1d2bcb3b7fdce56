"""Callbacks of ``lightning`` in a Trainer of ``pytorch_lightning``: "Expected a parent", or silence.

https://github.com/Lightning-AI/pytorch-lightning/issues/17485 (pytorch-lightning#17485)

There: the two packages are the same code with classes of their own, and below 2.6 a Trainer of one refuses callbacks of
the other. From 2.6 on it takes them, but ``isinstance`` on one package's classes is then false without a word.
Here: every callback belongs to both, and what it asks of a Trainer, a logger or a strategy holds for both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.recipe import ROOT

import lightning_wd as wd

pl = pytest.importorskip("pytorch_lightning")
from pytorch_lightning.callbacks import Checkpoint, Timer, WeightAveraging  # noqa: E402
from pytorch_lightning.demos.boring_classes import BoringDataModule, BoringModel  # noqa: E402
from pytorch_lightning.loggers import WandbLogger  # noqa: E402
from pytorch_lightning.utilities.model_helpers import is_overridden  # noqa: E402

from lightning_wd.callbacks import RestartSnapshot  # noqa: E402
from lightning_wd.distributed import HydraDDPStrategy  # noqa: E402

CALLBACKS = [
    wd.OptimizerOverride({"name": "adamw"}),
    wd.DecayMonitor(),
    wd.DecayPlanSummary(),
    wd.DecaySchedule("cosine"),
    wd.MaskedFinetuning(["layer.bias"]),
    RestartSnapshot(),
]
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
QUIET |= {"limit_val_batches": 0, "enable_checkpointing": False, "logger": False}


@pytest.mark.parametrize("callback", CALLBACKS, ids=lambda callback: type(callback).__name__)
def test_a_callback_belongs_to_both_packages(callback: Any) -> None:
    # below 2.6 its Trainer asks this, and "Expected a parent" was the answer
    assert is_overridden("state_dict", callback) is ("state_dict" in vars(type(callback)))
    saves = isinstance(callback, RestartSnapshot)
    assert isinstance(callback, Checkpoint) is saves  # the Trainer runs these last
    trainer = pl.Trainer(callbacks=callback, **{**QUIET, "enable_checkpointing": saves})  # one callback, not a list
    assert trainer.callbacks == [callback]


def test_a_fit_is_the_same_as_under_lightning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def groups(package: Any, module: Any) -> list[Any]:
        override = wd.OptimizerOverride({"name": "sgdw", "weight_decay": 0.1}, "warmup_cosine")
        callbacks = [override, wd.DecaySchedule("linear"), wd.DecayPlanSummary(), wd.DecayMonitor(1)]
        trainer = package.Trainer(callbacks=callbacks, max_steps=3, default_root_dir=tmp_path, **QUIET)
        trainer.fit(module)
        shown.append((tmp_path / "decay_plan.json").read_text())
        return [(g["name"], g["lr"], g["weight_decay"], g["param_names"]) for g in trainer.optimizers[0].param_groups]

    import lightning as L
    from lightning.pytorch.demos.boring_classes import BoringModel as Other

    shown: list[str] = []
    assert groups(pl, BoringModel()) == groups(L, Other())
    assert shown[0] == shown[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb", "ignore::DeprecationWarning:pydantic")
def test_the_tables_go_to_its_wandb_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    callbacks = [wd.OptimizerOverride({"name": "adamw"}), wd.DecayPlanSummary(), wd.DecayMonitor(every_n_steps=1)]
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    settings = {**QUIET, "logger": logger, "default_root_dir": tmp_path}
    pl.Trainer(max_steps=2, callbacks=callbacks, **settings).fit(BoringModel())
    wandb.finish()
    wandb.teardown()
    sent = [path.name for path in sorted(tmp_path.glob("wandb/offline-run-*/files/media/*/*"))]
    kinds = ("wd_monitor", "decay_groups", "decay_plan")
    assert [name.startswith(kind) for name, kind in zip(sent, kinds, strict=True)] == [True, True, True]


def test_a_run_bounded_by_its_timer_is_told_so() -> None:
    override = wd.OptimizerOverride({"name": "adamw"}, "warmup_cosine")
    trainer = pl.Trainer(callbacks=[override, Timer("00:01:00:00")], max_epochs=-1, **QUIET)
    with pytest.raises(wd.ConfigError, match="found: the run is bounded by max_time"):
        trainer.fit(BoringModel())


def test_its_averaged_weights_are_named_in_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("lightning_wd.callbacks.decay_monitor.draw_monitor", lambda *args: drawn.append(args[-1]))
    callbacks = [WeightAveraging(), wd.DecayMonitor(1)]
    pl.Trainer(callbacks=callbacks, max_steps=2, default_root_dir=tmp_path, **QUIET).fit(BoringModel())
    assert drawn == ["SGD: weights in training, not their average"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_its_lightning_cli_takes_the_callbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse[signatures]")
    from pytorch_lightning.cli import LightningCLI

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["app.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    quiet = [f"--trainer.{key}={str(value).lower()}" for key, value in QUIET.items()]
    override = ["--trainer.callbacks+=lightning_wd.OptimizerOverride", "--trainer.callbacks.optimizer.name=sgdw"]
    arguments: Any = ["fit", "--trainer.max_steps=1", *quiet, *override]
    cli = LightningCLI(
        BoringModel, BoringDataModule, save_config_callback=None, seed_everything_default=0, args=arguments
    )
    assert type(cli.trainer.optimizers[0]).__name__ == "SGDW"


def test_its_trainer_refuses_the_strategy_of_lightning() -> None:
    with pytest.raises(
        ValueError, match=r"HydraDDPStrategy.* an instance of `pytorch_lightning\.strategies\.Strategy`"
    ):
        pl.Trainer(strategy=HydraDDPStrategy(), devices=2, **QUIET)


DDP = """
import torch, pytorch_lightning as pl, lightning_wd as wd
from lightning_wd.distributed.pytorch_lightning import HydraDDPStrategy
from torch import nn

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.head(self.body(batch[0] + 3 * self.global_rank)).pow(2).mean()

    def configure_optimizers(self):
        return wd.configure_optimizers(self, {"name": "adamw", "lr": 1e-2})

    def on_train_end(self):
        both = self.all_gather(self.body.weight.detach())
        launcher = type(self.trainer.strategy.launcher).__name__
        print(f"{'equal' if torch.equal(*both) else 'apart'} {launcher}\\n", end="", flush=True)

data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(16, 4)), 2)
pl.Trainer(max_epochs=3, callbacks=[wd.MaskedFinetuning(["body.*"], {1: ["body.*"]})], accelerator="cpu", devices=2,
           strategy=HydraDDPStrategy(), logger=False, enable_checkpointing=False, enable_progress_bar=False,
           enable_model_summary=False).fit(Net(), data)
"""


@pytest.mark.slow
def test_the_ranks_stay_equal_after_an_unfreezing(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(DDP)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal JobLauncher") == 2, done.stdout
