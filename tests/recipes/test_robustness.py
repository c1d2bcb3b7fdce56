"""Robustness by search: Hypothesis spoils configs, optimizer states and the bytes of a checkpoint."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.recipe import job
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

import lightning_wd as wd
from lightning_wd.errors import CheckpointMismatchError, ConfigError, MaskError
from lightning_wd.optimizers.weights_file import damage

CONF = Path(__file__).parents[2] / "conf"
OURS = (ConfigError, MaskError, CheckpointMismatchError)
SEARCH = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def steps(module: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any = None, count: int = 2) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        module(torch.ones(5, 3)).square().mean().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


VALUES = st.one_of(
    st.sampled_from(["null", "true", "abc", "[]", "[0.9]", "[0.9,0.99]", "{a: 1}", "nan", "inf", "-1", "0", "1", "2"]),
    st.floats(1e-6, 0.5).map(repr),
)
KEYS = st.sampled_from(
    "optimizer.lr optimizer.weight_decay optimizer.betas optimizer.eps optimizer.momentum optimizer.nesterov "
    "optimizer.amsgrad optimizer.fused optimizer.foreach optimizer.kahan optimizer.name optimizer.on_resume "
    "optimizer.decay.style optimizer.decay.normalized optimizer.decay.timescale_epochs optimizer.decay.cautious "
    "optimizer.mask.base optimizer.mask.rules optimizer.typo lr_scheduler.name lr_scheduler.warmup lr_scheduler.typo "
    "lr_scheduler.warmup_steps lr_scheduler.min_lr lr_scheduler.interval lr_scheduler.frequency".split()
)
OVERRIDES = st.tuples(st.sampled_from(["", "++"]), KEYS, VALUES).map(lambda parts: f"{parts[0]}{parts[1]}={parts[2]}")


@settings(SEARCH, max_examples=120)
@given(
    optimizer=st.sampled_from(options("optimizer")),
    decay=st.sampled_from(options("optimizer/decay")),
    mask=st.sampled_from(options("optimizer/mask")),
    scheduler=st.sampled_from(options("lr_scheduler")),
    overrides=st.lists(OVERRIDES, max_size=2),
)
def test_a_config_trains_two_steps_or_is_refused_in_our_words(
    optimizer: str, decay: str, mask: str, scheduler: str, overrides: list[str]
) -> None:
    groups = [f"+optimizer={optimizer}", f"optimizer/decay={decay}", f"optimizer/mask={mask}"]
    module = network()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(overrides=[*groups, f"+lr_scheduler={scheduler}", *overrides])
            made = [instantiate(config.optimizer), instantiate(config.lr_scheduler)]
    except InstantiationException as error:
        if not isinstance(error.__cause__, OURS):
            raise
        event("refused at once")
        return
    except (HydraException, OmegaConfBaseException):
        event("refused by Hydra")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            configured = wd.configure_optimizers(module, *made, total_steps=20, steps_per_epoch=5)
        except OURS:
            event("refused for this module")
            return
        event("trained")
        lr_scheduler = configured.get("lr_scheduler", {}).get("scheduler") if isinstance(configured, dict) else None
        plateau = isinstance(lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        steps(module, configured["optimizer"], None if plateau else lr_scheduler)
    assert all(parameter.isfinite().all() for parameter in module.parameters())


RECIPE_KEYS = st.sampled_from(
    "seed ckpt_path data.batch_size data.num_workers data.seed data.typo model.in_features model.hidden "
    "model.num_classes model.dropout model.typo trainer.max_epochs trainer.accumulate_grad_batches "
    "trainer.gradient_clip_val trainer.limit_train_batches trainer.limit_val_batches trainer.val_check_interval "
    "trainer.check_val_every_n_epoch trainer.precision trainer.devices trainer.accelerator trainer.strategy "
    "trainer.log_every_n_steps trainer.deterministic callbacks.typo logger.typo".split()
)


@pytest.mark.slow
@settings(SEARCH, max_examples=60)
@given(overrides=st.lists(st.tuples(RECIPE_KEYS, VALUES), min_size=1, max_size=2))
def test_a_job_of_the_recipe_trains_two_steps_or_is_refused_in_our_words(
    overrides: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    quiet = ["callbacks=none", "trainer.max_steps=2", "trainer.enable_progress_bar=false", "lr_scheduler=constant"]
    given_ = [f"++{key}={value}" for key, value in overrides]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            job(*quiet, *given_, folder=tmp_path_factory.mktemp("job"))
        except (HydraException, OmegaConfBaseException):  # the recipe shows ours as Hydra's, without a traceback
            event("refused")
            return
    event("trained")


def saved(name: str) -> dict[str, Any]:
    module = network()
    optimizer = wd.configure_optimizers(module, {"name": name, "lr": 0.01, "weight_decay": 0.1})["optimizer"]
    steps(module, optimizer)
    return copy.deepcopy(optimizer.state_dict())


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of everything inside a state dict."""
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    return [found for key, value in inside for found in ((*path, key), *places(value, (*path, key)))]


@pytest.mark.parametrize("name", ["adamw", "sgdw", "adam_l2"])
@settings(SEARCH, max_examples=60)
@given(data=st.data())
def test_a_tampered_optimizer_state_is_refused_or_harmless(name: str, data: st.DataObject) -> None:
    """Refused with one of our errors and nothing changed, or loaded and able to step."""
    state = saved(name)
    settings_ = [("param_groups", *path) for path in places(state["param_groups"]) if "params" not in path]
    tensors = [("state", *path) for path in places(state["state"])]
    path = data.draw(st.sampled_from(settings_ + tensors), label="path")
    parent: Any = state
    for key in path[:-1]:
        parent = parent[key]
    if isinstance(parent, tuple):
        return
    if data.draw(st.booleans(), label="delete"):
        del parent[path[-1]]
    else:
        junk: st.SearchStrategy[Any] = st.sampled_from([None, "junk", -1.0, float("nan"), [], {}, 3, True])
        parent[path[-1]] = data.draw(junk, label="junk")
    module = network()
    optimizer = wd.configure_optimizers(module, {"name": name, "lr": 0.01, "weight_decay": 0.1})["optimizer"]
    before = repr(optimizer.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            optimizer.load_state_dict(state)
        except OURS:
            event("refused")
            assert repr(optimizer.state_dict()) == before
            return
        event("loaded")
        steps(module, optimizer)
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weights": torch.arange(64.0), "step": 7, "name": "adamw"}, buffer)
    return buffer.getvalue()


WHOLE = checkpoint()


def same(one: Any, two: Any) -> bool:
    return all(torch.equal(v, two[k]) if isinstance(v, Tensor) else v == two[k] for k, v in one.items())


@settings(SEARCH, max_examples=300)
@given(at=st.integers(0, len(WHOLE) - 1), bits=st.integers(1, 255), cut=st.booleans())
def test_a_spoilt_byte_is_found_or_harmless(at: int, bits: int, cut: bool, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(WHOLE[:at] if cut else WHOLE[:at] + bytes([WHOLE[at] ^ bits]) + WHOLE[at + 1 :])
    if damage(path) is not None:
        event("found")
        return
    try:
        loaded = torch.load(path, weights_only=True)
    except RuntimeError as error:
        if "PytorchStreamReader failed reading zip archive" not in str(error):
            raise
        event("found by torch")
        return
    event("harmless")
    assert same(loaded, torch.load(io.BytesIO(WHOLE), weights_only=True))


def test_torch_itself_loads_a_spoilt_weight_without_a_word(tmp_path: Path) -> None:
    """This is why there is a check."""
    at = WHOLE.index(torch.arange(64.0).numpy().tobytes()) + 11
    path = tmp_path / "last.ckpt"
    path.write_bytes(WHOLE[:at] + b"\x77" + WHOLE[at + 1 :])
    assert not same(torch.load(path, weights_only=True), torch.load(io.BytesIO(WHOLE), weights_only=True))
    assert str(damage(path)).startswith("the checksum of archive/data/0 is wrong") or "CRC" in str(damage(path))
    path.write_bytes(WHOLE)
    assert damage(path) is None
