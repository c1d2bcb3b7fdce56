"""trainer=fsdp2 for the GPT recipe: sharded, equal to DDP, and resumed from a checkpoint that fits any trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.real_data import REAL, needs_real_data
from helpers.recipe import train

GPT = [
    *("data=shakespeare", f"data.root={REAL}/tinyshakespeare", "data.batch_size=2", "data.block_size=8"),
    *("model=gpt", "model.preset=tiny", "model.block_size=8", "callbacks=none", "lr_scheduler=constant"),
    *("optimizer=sgdw", "optimizer.lr=0.05", "trainer.limit_val_batches=1", "+trainer.limit_test_batches=1"),
    "trainer.enable_progress_bar=false",
]


@needs_real_data
@pytest.mark.slow
def test_fsdp2_resumed_equals_ddp_and_its_checkpoint_fits_one_process(tmp_path: Path) -> None:
    def run(folder: str, trainer: str, steps: int, *more: str) -> dict[str, torch.Tensor]:
        here = tmp_path / folder
        train(*GPT, f"trainer={trainer}", f"trainer.max_steps={steps}", f"hydra.run.dir={here}", *more, cwd=tmp_path)
        saved = torch.load(here / "checkpoints/last.ckpt", weights_only=True)
        assert saved["global_step"] == steps
        return dict(saved["state_dict"])

    run("sharded", "fsdp2_cpu", 3)
    sharded = run("sharded", "fsdp2_cpu", 6, "ckpt_path=last")
    replicated = run("replicated", "ddp_cpu", 6)
    assert sharded.keys() == replicated.keys()
    for name, value in replicated.items():
        torch.testing.assert_close(sharded[name], value, rtol=1e-4, atol=1e-6, msg=name)
    alone = run("alone", "cpu", 7, f"ckpt_path={tmp_path / 'sharded/checkpoints/last.ckpt'}")
    assert not torch.equal(alone["tokens.weight"], sharded["tokens.weight"])


@needs_real_data
@pytest.mark.slow
def test_fsdp2_evaluates_where_a_share_is_a_batch_longer(tmp_path: Path) -> None:
    """217 windows by batches of 4: 28 on one process, 27 on the other, which would wait for the former's last."""
    odd = ["data.block_size=512", "model.block_size=512", "data.batch_size=4", "trainer.max_steps=1"]
    less = [override for override in GPT if "limit" not in override and "block_size" not in override]
    done = train(*less, *odd, "trainer=fsdp2_cpu", cwd=tmp_path, timeout=200)
    assert "test/loss" in done.stdout
