"""trainer=fsdp2 for the GPT recipe: sharded, equal to DDP, and resumed from a checkpoint that fits any trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.ddp import needs_shards_on_cpu
from helpers.real_data import REAL, needs_real_data
from helpers.recipe import train, train_here

GPT = [
    *("data=shakespeare", f"data.root={REAL}/tinyshakespeare", "data.batch_size=4", "data.block_size=512"),
    *("model=gpt", "model.preset=tiny", "model.block_size=512", "callbacks=none", "lr_scheduler=constant"),
    *("optimizer=sgdw", "optimizer.lr=0.05", "optimizer.weight_decay=0.5", "optimizer.decay.toward=init"),
    "trainer.enable_progress_bar=false",
]
BRIEF = ["trainer.limit_val_batches=1", "+trainer.limit_test_batches=1"]


@needs_real_data
@needs_shards_on_cpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the checkpoint was saved within an epoch whose batches had another size")
def test_fsdp2_resumed_equals_ddp_and_its_checkpoint_fits_one_process(tmp_path: Path) -> None:
    def run(folder: str, trainer: str, steps: int, *more: str) -> tuple[dict[str, torch.Tensor], str]:
        here = tmp_path / folder
        start = train_here if trainer == "cpu" else train  # what starts other processes needs one of its own
        overrides = [f"trainer={trainer}", f"trainer.max_steps={steps}", f"hydra.run.dir={here}", *more]
        done = start(*GPT, *overrides, cwd=tmp_path)
        saved = torch.load(here / "checkpoints/last.ckpt", weights_only=True)
        assert saved["global_step"] == steps
        return dict(saved["state_dict"]), done.stdout

    # The whole evaluation has 217 windows, by batches of 4: 28 on one process, 27 on the other, which would wait for
    # the former's last.
    _, printed = run("sharded", "fsdp2_cpu", 3)
    assert "test/loss" in printed
    sharded, _ = run("sharded", "fsdp2_cpu", 6, "ckpt_path=last", *BRIEF)
    replicated, _ = run("replicated", "ddp_cpu", 6, *BRIEF)
    assert sharded.keys() == replicated.keys()
    for name, value in replicated.items():
        torch.testing.assert_close(sharded[name], value, rtol=1e-4, atol=1e-6, msg=name)
    alone, _ = run("alone", "cpu", 7, f"ckpt_path={tmp_path / 'sharded/checkpoints/last.ckpt'}", *BRIEF)
    assert not torch.equal(alone["tokens.weight"], sharded["tokens.weight"])
