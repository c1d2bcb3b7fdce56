"""A checkpoint must not run code, neither through pickle nor through the names among its hyperparameters."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from checkpoints import LastCheckpoint
from helpers.recipe import job
from helpers.recipe_run import QUIET, fit
from hydra.errors import CompactHydraException
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning_utilities.core.imports import RequirementCache


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return open, (str(self.canary), "w")


@pytest.fixture
def checkpoint(tmp_path: Path) -> dict[str, Any]:
    fit(BoringModel(), tmp_path / "good")
    return dict(torch.load(tmp_path / "good/last.ckpt", weights_only=True))


def resume(path: Path, folder: Path) -> None:
    trainer = L.Trainer(max_epochs=3, limit_train_batches=1, callbacks=[LastCheckpoint(folder)], **QUIET)
    trainer.fit(BoringModel(), ckpt_path=path)


def test_a_pickle_in_a_checkpoint_does_not_run(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.ckpt"
    checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] = Evil(canary)
    torch.save(checkpoint, path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        resume(path, tmp_path / "new")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        BoringModel.load_from_checkpoint(path)
    assert not canary.exists()
    torch.load(path, weights_only=False)["optimizer_states"][0]["param_groups"][0]["lr"].close()
    assert canary.exists()  # the proof can fail


@pytest.mark.parametrize("forced", [False, True])
def test_nor_does_it_in_the_recipe_whatever_the_environment_says(
    forced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users of other libraries set the variable; then torch runs code unless an argument forbids it."""
    quick = ["callbacks=none", "logger=none", "trainer.enable_progress_bar=false", "lr_scheduler=constant"]
    job(*quick, "trainer.max_steps=2", folder=tmp_path / "good")
    good = tmp_path / "good/checkpoints/last.ckpt"
    canary, evil = tmp_path / "canary", tmp_path / "evil.ckpt"
    torch.save({**torch.load(good, weights_only=True), "note": Evil(canary)}, evil)
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CompactHydraException) as caught:
        job(*quick, "trainer.max_steps=3", f"ckpt_path={evil}", folder=tmp_path / "new")
    assert str(caught.value) == (
        f"ConfigError: no run can resume from {evil}.\n"
        "  found: more than plain data; loading it could run code\n"
        "  fix: give a .ckpt file that a run has written, or ckpt_path=null to start from scratch"
    )
    monkeypatch.setattr("checkpoints.foreign", lambda path: None)  # what Lightning is given
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        job(*quick, "trainer.max_steps=3", f"ckpt_path={evil}", folder=tmp_path / "new")
    assert not canary.exists()
    job(*quick, "trainer.max_steps=3", f"ckpt_path={good}", folder=tmp_path / "new")


def test_a_class_named_by_a_checkpoint_is_not_imported(
    checkpoint: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.ckpt"
    (tmp_path / "evil_module.py").write_text(f"open({str(canary)!r}, 'w').close()\ndef build(*a, **k): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint |= {
        "hyper_parameters": {"_instantiator": "evil_module.build", "optimizer": {"_target_": "evil_module.build"}},
        "hparams_name": "kwargs",
    }
    torch.save(checkpoint, path)
    if RequirementCache("lightning>=2.6.6"):  # older ones import it: SECURITY.md
        with pytest.raises(
            ValueError, match=r"The instantiator .evil_module\.build. from the checkpoint is not in the allowlist"
        ):
            BoringModel.load_from_checkpoint(path)
    resume(path, tmp_path / "new")  # it needs no hyperparameters
    assert not canary.exists()
    __import__("evil_module")
    assert canary.exists()  # the proof can fail
