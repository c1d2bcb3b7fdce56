"""Fine-tuning: a run starts from the weights of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.recipe import trained

from lightning_wd.errors import ConfigError

SMALL = ("callbacks=none", "model.hidden=[8]", "trainer.enable_progress_bar=false", "trainer.limit_val_batches=0")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run of three steps."""
    folder = tmp_path_factory.mktemp("first")
    trained(*SMALL, "trainer.max_steps=3", folder=folder)
    return folder / "checkpoints/last.ckpt"


@pytest.mark.parametrize(("toward", "stays"), [("${init_from}", True), ("zero", False)])
def test_at_lr_zero_the_weights_stay_where_they_decay_towards(
    toward: str, stays: bool, first: Path, tmp_path: Path
) -> None:
    """Constant decay is not multiplied by the learning rate, so towards zero they shrink."""
    decay = ["optimizer/decay=constant", "optimizer.weight_decay=0.1", f"optimizer.decay.toward={toward}"]
    run = trained(*SMALL, *decay, "trainer.max_steps=3", "optimizer.lr=0", f"init_from={first}", folder=tmp_path)
    before = torch.load(first, weights_only=True)["state_dict"]
    assert run["trainer"].global_step == 3
    for name, weight in run["model"].state_dict().items():
        decays = name in ("net.0.weight", "net.4.weight")
        assert torch.equal(weight, before[name]) == (stays or not decays), name


def test_weights_of_another_model_are_refused(first: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        trained(*SMALL, "model.hidden=[16]", f"init_from={first}", folder=tmp_path)
    message = str(error.value)
    assert message.startswith(
        f"the weights of init_from={first} are not of this model.\n  found: size mismatch for net.0"
    )
    assert message.endswith(
        "  fix: give a checkpoint of the same model, or write model=... and model.* as in its run's config.yaml"
    )


def test_a_missing_file_is_named_as_typed(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^init_from='nowhere\.ckpt' cannot be read as weights\.\n  found: .*No such file"
    ):
        trained(*SMALL, "init_from=nowhere.ckpt", folder=tmp_path)


def test_a_run_that_resumes_has_weights_of_its_own(first: Path, tmp_path: Path) -> None:
    """The file that it once started from may be gone."""
    resumed = [f"ckpt_path={first}", "init_from=gone.ckpt", "trainer.max_steps=3"]
    assert trained(*SMALL, *resumed, folder=tmp_path)["trainer"].global_step == 3
