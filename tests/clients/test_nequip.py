"""nequip: equivariant interatomic potentials (https://github.com/mir-group/nequip)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.clients import check, names

pytest.importorskip(
    "nequip", reason="nequip is not installed: make test-clients runs these in an environment of its own"
)


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    """Take back the default dtype that nequip sets."""
    import torch

    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def build() -> tuple[Any, dict[str, Any]]:
    import torch
    from nequip.data import AtomicDataDict
    from nequip.data.dataset import EMTTestDataset
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.train import NequIPLightningModule
    from nequip.utils.global_state import set_global_state

    set_global_state()
    transforms = [ChemicalSpeciesToAtomTypeMapper(["Cu"]), NeighborListTransform(r_max=4.0, type_names=["Cu"])]
    frames: Any = EMTTestDataset(transforms, supercell=(1, 1, 1), num_frames=8)
    loader = torch.utils.data.DataLoader(frames, batch_size=2, collate_fn=AtomicDataDict.batched_from_list)
    module = NequIPLightningModule(
        model={
            "_target_": "nequip.model.NequIPGNNModel", "seed": 0, "model_dtype": "float32", "r_max": 4.0,
            "type_names": ["Cu"], "num_layers": 2, "l_max": 1, "num_features": 4, "radial_mlp_width": 8,
            "avg_num_neighbors": 12.0,
            "bessel_trainable": True, "per_type_energy_scales": 1.0, "per_type_energy_shifts": 0.0,
            "per_type_energy_scales_trainable": True, "per_type_energy_shifts_trainable": True,
        },
        num_datasets={"train": 1, "val": 0, "test": 0, "predict": 0},
        optimizer={"_target_": "torch.optim.Adam", "lr": 0.01},
        loss={"_target_": "nequip.train.EnergyForceLoss"},
    )  # fmt: skip
    return module, {"train_dataloaders": loader}


def test_nequip(tmp_path: Path) -> None:
    no_decay = names(
        "model.sole_model.model.func.bessel_encode.bessel_weights",  # frequencies of the basis
        "model.sole_model.model.func.per_type_energy_scale_shift.{scales,shifts}",
    )
    check(build, tmp_path, no_decay)
