"""A run without training batches.

https://github.com/Lightning-AI/pytorch-lightning/issues/5029 (pytorch-lightning#5029)
https://github.com/Lightning-AI/pytorch-lightning/issues/5703 (the same by ``limit_train_batches=0``)

There: the length of the loader was 0, and what was computed from it failed.
Here: as in plain Lightning nothing trains and nothing fails; no error says that the data is endless.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.lit import Lit, fit

EPOCHS = {"name": "adamw", "decay": {"timescale_epochs": 5}}


@pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero")
@pytest.mark.parametrize("optimizer", ["adamw", EPOCHS])
@pytest.mark.parametrize("case", ["drop_last", "limit_train_batches", "max_steps"])
def test_nothing_trains_and_nothing_fails(case: str, optimizer: Any, tmp_path: Path) -> None:
    module = Lit(optimizer, "warmup_cosine")
    before = [p.detach().clone() for p in module.parameters()]
    keywords: dict[str, Any] = {}
    if case == "drop_last":
        rows: Any = torch.zeros(3, 4)
        module.train_dataloader = lambda: torch.utils.data.DataLoader(rows, 4, drop_last=True)  # type: ignore[method-assign]
    else:
        keywords[case] = 0
    trainer = fit(module, tmp_path, **keywords)
    assert trainer.global_step == 0
    assert all(map(torch.equal, before, module.parameters()))
