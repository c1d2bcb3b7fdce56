"""A newcomer's mistakes, from the command line to the exit status: each ends in one screen, with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checks import check_devices, check_numbers
from helpers.recipe import train_here
from lightning.pytorch.accelerators import CUDAAccelerator
from omegaconf import OmegaConf

from lightning_wd.errors import ConfigError

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so asking for one is no mistake")
RULE = "optimizer.mask.rules=[{nmae: net.8.weight, wd_mult: 0.1}]"


@pytest.mark.parametrize(
    ("overrides", "fix"),
    [
        (["optimizer=adamm"], "fix: write optimizer=adamw"),
        (["optimizer.weight_decy=1"], "fix: write optimizer.weight_decay=1"),
        (["data=shakespeare", "model=gpt", "data.root=nowhere"], "give that folder: data.root=FOLDER (now "),
        (["trainer.devices=4"], "fix: write trainer=ddp (GPUs) or trainer=ddp_cpu"),
        (["logger=wandb"], "fix: run `wandb login` or set WANDB_API_KEY, or write logger=wandb_offline"),
        pytest.param(["trainer=gpu"], "fix: write trainer=default, which takes a GPU if there is one", marks=no_gpu),
        (["ckpt_path=nowhere.ckpt"], "fix: give the path of a .ckpt file, or ckpt_path=null"),
        ([RULE], "fix: write name, or remove nmae"),
        (["optimizer.lr=abc"], "fix: write optimizer.lr=<a finite number >= 0>"),
        (["optimizer.decay.normalized=0.05"], "fix: keep one and set the others to null"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_screen(
    overrides: list[str], fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if "logger=wandb" in overrides:
        wandb = pytest.importorskip("wandb", reason="wandb is not installed")
        request.addfinalizer(wandb.teardown)  # what it read of the environment would hold for later tests
        wandb.teardown()
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("HOME", str(tmp_path))  # no key of W&B there
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)  # an offline WandbLogger leaves one behind
    done = train_here(*overrides, "trainer.enable_progress_bar=false", cwd=tmp_path, ok=False)
    assert done.returncode == 1
    assert fix in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 40


def test_an_amount_in_the_unit_of_another_style_is_said(tmp_path: Path) -> None:
    quick = ["trainer.max_epochs=1", "trainer.enable_progress_bar=false"]
    done = train_here("optimizer/decay=independent", "optimizer.weight_decay=0.1", *quick, cwd=tmp_path)
    assert "0.1 is a number for style 'decoupled', which multiplies it by lr: that is 0.0001 here" in done.stdout


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CUDAAccelerator, "auto_device_count", staticmethod(lambda: 2))
    check_devices(OmegaConf.create({"accelerator": "auto", "devices": 2}))
    check_devices(OmegaConf.create({"accelerator": "cpu", "devices": 3}))
    with pytest.raises(ConfigError) as caught:
        check_devices(OmegaConf.create({"accelerator": "auto", "devices": 3}))
    assert str(caught.value).splitlines() == [
        "trainer.devices=3 is more than there are.",
        "  found: 2 GPUs",
        "  fix: write trainer.devices=2, or trainer=ddp_cpu for processes on the CPU",
    ]


@pytest.mark.parametrize("key", ["data.block_size", "data.train_size", "model.block_size"])
def test_parts_of_a_text_are_whole_numbers(key: str) -> None:
    cfg = OmegaConf.create({"seed": 0, "data": {"train_size": None}})
    check_numbers(cfg)
    for value in ("all", 7.5, 0):
        OmegaConf.update(cfg, key, value)
        with pytest.raises(ConfigError, match=rf"^{key} must be a whole number >= 1 but got {value!r}\."):
            check_numbers(cfg)
    OmegaConf.update(cfg, key, 1e4)
    check_numbers(cfg)
    assert type(OmegaConf.select(cfg, key)) is int
