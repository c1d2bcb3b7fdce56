"""The line at a run's end: norms, and the amount in the words of its style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from decay_effect import DecayEffect
from helpers.small_run import Net, fit


class Still(Net):
    """Its gradients are 0, so only decay moves it."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return 0.0 * super().training_step(batch, batch_idx)


def norm(module: torch.nn.Module) -> float:
    return sum(p.double().square().sum().item() for p in module.parameters() if p.ndim > 1) ** 0.5


@pytest.mark.parametrize(
    ("optimizer", "shrink", "words"),
    [
        ({"name": "adamw", "lr": 0.1, "weight_decay": 0.5}, 0.95**10, "timescale 20 steps, 2 of the run"),
        ({"name": "adamw", "lr": 1e-3, "weight_decay": 0.5}, 0.9995**10, "timescale 2,000 steps, 200 times the run"),
        ({"name": "adamw", "lr": 0.1, "decay": {"style": "none"}}, 1.0, "no decay"),
        ({"name": "adamw", "lr": 0.1, "decay": {"style": "hyperball"}}, 1.0, "held by hyperball"),
        ({"name": "sgd_l2", "lr": 0.1, "weight_decay": 0.5, "momentum": 0.0}, 0.95**10, "L2 0.5 in the gradient"),
    ],
)
def test_the_line_has_the_norms_and_the_amount(
    optimizer: dict[str, Any], shrink: float, words: str, tmp_path: Path
) -> None:
    module, effect = Still(optimizer), DecayEffect()
    before = norm(module)
    fit(module, tmp_path, effect, max_epochs=2)
    assert str(effect).startswith(f"decay: weight norm {before:.3g} -> {before * shrink:.3g}, {words}")


def test_a_resumed_run_keeps_the_norm_of_its_start(tmp_path: Path) -> None:
    config = {"name": "adamw", "lr": 0.1, "weight_decay": 0.5}

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    whole, resumed = DecayEffect(), DecayEffect()
    fit(Still(config), tmp_path, whole, Save(), max_epochs=2)
    fit(Still(config), tmp_path, resumed, max_epochs=2, ckpt_path=tmp_path / "middle.ckpt")
    assert str(resumed) == str(whole)
