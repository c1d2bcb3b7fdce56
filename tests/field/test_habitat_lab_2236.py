"""A checkpoint that holds an OmegaConf container does not load.

https://github.com/facebookresearch/habitat-lab/issues/2236 (habitat-lab#2236)

There: the config goes into the checkpoint as it is, and ``torch.load`` refuses it since torch 2.6.
Here: checkpoints hold containers as plain data, wherever they are, and a run with its whole config among the
hyperparameters resumes. While configuring, a warning says what ``load_from_checkpoint`` will find.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from omegaconf import DictConfig, OmegaConf

import lightning_wd as wd


class Lit(BoringModel):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.cfg = OmegaConf.create(cfg)

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, self.hparams["cfg"].optimizer)


def trainer(epochs: int, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs, limit_train_batches=4, limit_val_batches=0, callbacks=list(callbacks), accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


@pytest.mark.parametrize("override", [False, True], ids=["configure_optimizers", "OptimizerOverride"])
def test_a_run_with_its_whole_config_among_the_hyperparameters_resumes(override: bool, tmp_path: Path) -> None:
    cfg = OmegaConf.create({"lr": 1e-2, "optimizer": {"name": "adamw", "lr": "${lr}"}})
    callbacks = [wd.OptimizerOverride({"name": "sgdw"})] if override else []
    first = trainer(1, *callbacks)
    with pytest.warns(UserWarning, match=r"hold plain dicts in place of OmegaConf containers.*\n  found: hparams.cfg"):
        first.fit(Lit(cfg))
    first.save_checkpoint(path := tmp_path / "last.ckpt")
    assert torch.load(path, weights_only=True)["hyper_parameters"] == {"cfg": OmegaConf.to_container(cfg)}
    module, second = Lit(cfg), trainer(2, *callbacks)
    with pytest.warns(UserWarning, match="hold plain dicts"):
        second.fit(module, ckpt_path=path)
    assert second.global_step == 8
    assert isinstance(module.hparams["cfg"], DictConfig)
    assert Lit.load_from_checkpoint(path).cfg.optimizer.lr == 1e-2
