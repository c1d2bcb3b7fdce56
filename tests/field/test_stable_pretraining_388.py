"""A list from Hydra in the state of a schedule or a callback, and the run cannot be resumed.

https://github.com/galilai-group/stable-pretraining/issues/388 (stable-pretraining#388)

There: whatever Hydra builds keeps its lists as ``ListConfig``; they go into the checkpoint, which ``torch.load``
refuses since torch 2.6.
Here: the checkpoint of a run with an optimizer of the pack is plain, wherever the list lay.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.demos.boring_classes import BoringModel
from omegaconf import ListConfig, OmegaConf

import lightning_wd as wd


class Lit(BoringModel):
    def __init__(self, lr_scheduler: Any, sizes: Any) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["lr_scheduler"])
        self.lr_scheduler = lr_scheduler

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, {"name": "adamw", "lr": 1e-2}, self.lr_scheduler)


class Warmup(torch.optim.lr_scheduler.ConstantLR):
    """A schedule that keeps an argument as it got it; torch saves all that a schedule keeps."""

    def __init__(self, optimizer: Any, peak_step: Any) -> None:
        self.peak_step = peak_step
        super().__init__(optimizer, 0.5)


class Seen(L.Callback):
    """A callback that saves an argument as it got it."""

    def __init__(self, layers: Any) -> None:
        self.layers = layers

    def state_dict(self) -> dict[str, Any]:
        return {"layers": self.layers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded = state_dict["layers"]


def fit(epochs: int, callback: Seen, ckpt: Path | None = None) -> L.Trainer:
    warmup = functools.partial(Warmup, peak_step=OmegaConf.create([2, 3]))
    module = instantiate({"_target_": f"{__name__}.Lit", "sizes": [8, 8]}, lr_scheduler=warmup)
    assert isinstance(module.hparams.sizes, ListConfig)
    trainer = L.Trainer(
        max_epochs=epochs, limit_train_batches=4, limit_val_batches=0, callbacks=[callback], accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, ckpt_path=ckpt)
    return trainer


def test_lists_of_hydra_in_hyperparameters_and_states_resume(tmp_path: Path) -> None:
    fit(1, Seen(OmegaConf.create(["a", "b"]))).save_checkpoint(path := tmp_path / "last.ckpt")
    saved = torch.load(path, weights_only=True)
    assert saved["hyper_parameters"] == {"sizes": [8, 8]}
    assert saved["lr_schedulers"][0]["peak_step"] == [2, 3]
    second = fit(2, callback := Seen(OmegaConf.create(["a", "b"])), path)
    assert (second.global_step, callback.loaded) == (8, ["a", "b"])
