"""What lies beside the weights in a checkpoint: plain, or named before training."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from omegaconf import OmegaConf
from torch import nn

import lightning_wd as wd
from lightning_wd.configure.checkpoint_content import plain

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended")
REFUSED = "checkpoints of this run cannot be resumed by default"


class Lit(BoringModel):
    def __init__(self, cfg: Any = None, **more: Any) -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, "adamw")


def is_bias(name: str, param: Any, module: Any) -> bool:
    """A predicate that pickles; Lightning drops, with a warning, what does not."""
    return name.endswith("bias")


def fit(module: Any, path: Path, *callbacks: L.Callback, **settings: Any) -> list[str]:
    """Train, save and resume; return the warnings of this package, and fail if the checkpoint is not plain."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "limit_train_batches": 1, "limit_val_batches": 0, "callbacks": list(callbacks),
    }  # fmt: skip
    trainer = L.Trainer(max_epochs=1, **quiet)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, **settings)
    trainer.save_checkpoint(path)
    return [str(w.message) for w in caught if str(w.message).startswith("checkpoints of this run")]


def loaded(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True))


def test_containers_anywhere_are_plain_in_the_checkpoint_and_the_module_keeps_its_own(tmp_path: Path) -> None:
    class Keeps(L.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"seen": OmegaConf.create([1, 2])}

    class Saves(Lit):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = (OmegaConf.create({"a": 1}), [OmegaConf.create({"b": [2]})])

    cfg = OmegaConf.create({"model": {"size": 8, "half": "${.size}"}, "lr": "${oc.env:NO_SUCH_VARIABLE}"})
    module = Saves(cfg, nested={"deep": [cfg.model]}, sizes=OmegaConf.create([1, 2]), attributes=AttributeDict(a=1))
    (message,) = fit(module, tmp_path / "x.ckpt", Keeps())
    assert message == (
        "checkpoints of this run hold plain dicts in place of OmegaConf containers, which torch.load refuses.\n"
        "  found: hparams.cfg, hparams.nested.deep[0]\n"
        "  fix: where load_from_checkpoint builds the module again, read the argument with OmegaConf.create(...), "
        "which takes both; or pass OmegaConf.to_container(cfg, resolve=True) to the module"
    )
    saved = loaded(tmp_path / "x.ckpt")
    model = {"size": 8, "half": "${.size}"}
    assert saved["hyper_parameters"] == {
        "cfg": {"model": model, "lr": "${oc.env:NO_SUCH_VARIABLE}"},
        "nested": {"deep": [model]},
        "sizes": [1, 2],
        "attributes": {"a": 1},
    }
    assert saved["mine"] == ({"a": 1}, [{"b": [2]}])
    assert [state["seen"] for state in saved["callbacks"].values()] == [[1, 2]]
    assert module.hparams["cfg"] is cfg  # what the module reads in training is what it was given
    assert OmegaConf.create(saved["hyper_parameters"]["cfg"]) == cfg


def test_a_container_as_all_hyperparameters_and_a_datamodules_own(tmp_path: Path) -> None:
    class Whole(BoringModel):
        def __init__(self, cfg: Any) -> None:
            super().__init__()
            self.save_hyperparameters(cfg)

        configure_optimizers = Lit.configure_optimizers

    class Data(BoringDataModule):
        def __init__(self, sizes: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    messages = fit(Whole(OmegaConf.create({"lr": 1})), tmp_path / "x.ckpt", datamodule=Data(OmegaConf.create({"a": 1})))
    assert ["hparams" in m and "datamodule.hparams.sizes" in m for m in messages] == [True]
    saved = loaded(tmp_path / "x.ckpt")
    assert (saved["hyper_parameters"], saved["datamodule_hyper_parameters"]) == ({"lr": 1}, {"sizes": {"a": 1}})
    assert Whole.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True).hparams == {"lr": 1}


def test_what_refers_out_of_a_container_is_resolved_and_what_refers_to_nothing_stays_text() -> None:
    root = OmegaConf.create({"size": 8, "model": {"width": "${size}"}, "lost": {"a": "${nowhere}"}})
    assert plain(root.model) == {"width": 8}
    assert plain(root.lost) == {"a": "${nowhere}"}


def test_masks_are_plain_unless_they_hold_code(tmp_path: Path) -> None:
    by_class, by_code = wd.Rule(module_types=(nn.Linear,), wd_mult=0.5), wd.Rule(predicate=is_bias, wd_mult=0)
    module = Lit({"mask": wd.Mask([by_class]), "rules": [by_class]})
    assert fit(module, tmp_path / "x.ckpt") == []
    rule = {"module_types": ["torch.nn.modules.linear.Linear"], "wd_mult": 0.5}
    hparams = loaded(tmp_path / "x.ckpt")["hyper_parameters"]
    assert hparams["cfg"] == {"mask": {"base": "standard", "rules": [rule]}, "rules": [rule]}
    assert wd.plan_decay(nn.Sequential(nn.Linear(2, 2)), hparams["cfg"]["mask"])["0.weight"].wd_mult == 0.5
    (message,) = fit(Lit({"mask": wd.Mask([by_code])}, rule=by_code), tmp_path / "y.ckpt")
    assert message.startswith(REFUSED)
    assert "found: hparams.cfg.mask (Mask), hparams.rule (Rule)" in message
    with pytest.raises(pickle.UnpicklingError):
        loaded(tmp_path / "y.ckpt")


class Stranger:
    """No class that torch knows."""


def test_everything_else_that_torch_refuses_is_named_and_nothing_that_it_takes(tmp_path: Path) -> None:
    takes = {"a": 1, "b": [None, True, 1j, b"x"], "c": (torch.ones(1), torch.float32), "d": {"e": {1, 2}}}
    assert fit(Lit(takes), tmp_path / "x.ckpt") == []
    assert set(loaded(tmp_path / "x.ckpt")["hyper_parameters"]["cfg"]) == {"a", "b", "c", "d"}
    path = OmegaConf.create({"path": tmp_path})
    (message,) = (m for m in fit(Lit({"s": [Stranger()]}, p=path), tmp_path / "y.ckpt") if m.startswith(REFUSED))
    assert "hparams.cfg.s[0] (Stranger)" in message
    assert "hparams.p.path (PosixPath)" in message
    assert "fix: write self.save_hyperparameters(ignore=[...]) with these names" in message
    with pytest.raises(pickle.UnpicklingError):
        loaded(tmp_path / "y.ckpt")
    with torch.serialization.safe_globals([Stranger]):
        assert fit(Lit({"s": [Stranger()]}), tmp_path / "z.ckpt") == []
        assert isinstance(loaded(tmp_path / "z.ckpt")["hyper_parameters"]["cfg"]["s"][0], Stranger)


def test_the_module_can_still_be_copied_pickled_and_fitted_again(tmp_path: Path) -> None:
    module = Lit(OmegaConf.create({"a": 1}))
    fit(module, tmp_path / "x.ckpt")
    hook = vars(module)["on_save_checkpoint"]
    fit(module, tmp_path / "x.ckpt")
    assert vars(module)["on_save_checkpoint"] is hook
    twin = copy.deepcopy(module)
    assert vars(twin)["on_save_checkpoint"].module is twin
    assert twin.state_dict().keys() == module.state_dict().keys()
    assert pickle.loads(pickle.dumps(module)).hparams.cfg == {"a": 1}
