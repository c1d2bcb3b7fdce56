"""chemprop: message passing over molecules (https://github.com/chemprop/chemprop)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.clients import check, names

pytest.importorskip(
    "chemprop", reason="chemprop is not installed: make test-clients runs these in an environment of its own"
)


def build() -> tuple[Any, dict[str, Any]]:
    from chemprop import data, models, nn

    molecules = ["C" * n + end for n in range(1, 9) for end in ("O", "N", "=O", "Cl")]
    points = [data.MoleculeDatapoint.from_smi(smi, [float(len(smi))]) for smi in molecules]
    loader = data.build_dataloader(data.MoleculeDataset(points), batch_size=8, shuffle=False, num_workers=0)
    module = models.MPNN(
        nn.BondMessagePassing(d_h=16),
        nn.MeanAggregation(),
        nn.RegressionFFN(input_dim=16, hidden_dim=16),
        batch_norm=True,
    )
    return module, {"train_dataloaders": loader}


def test_mpnn(tmp_path: Path) -> None:
    no_decay = names("message_passing.W_o.bias", "bn.{weight,bias}", "predictor.ffn.{0.0,1.2}.bias")
    check(build, tmp_path, no_decay)
