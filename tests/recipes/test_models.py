"""The recipes' models: published sizes, readable twins, what decays, and experiments that start."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from helpers.real_data import REAL, needs_real_data
from helpers.recipe import ROOT, run_folder, train, train_here, trained
from hydra import compose, initialize_config_dir
from models.gpt import GPT, PRESETS
from models.resnet import ResNet
from models.shake_shake import Shake, ShakeShake, Shortcut
from omegaconf import OmegaConf
from torch import Tensor, nn

import lightning_wd as wd
from lightning_wd.conversions import all_units
from lightning_wd.optimizers.by_name import OPTIMIZERS


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("build", "millions"),
    [
        (lambda: ShakeShake(width=32), 2.9),  # 1705.07485, table 1
        (lambda: ShakeShake(width=64), 11.7),  # "11.6M" in 1711.05101, section 6
        (lambda: ShakeShake(width=96), 26.2),
        (lambda: ResNet(depth=20), 0.27),  # 1512.03385, table 6
        (lambda: ResNet(depth=56), 0.86),  # 0.85 there, whose shortcuts have no weights
        (lambda: GPT("gpt2", vocab_size=50257, block_size=1024), 124.4),
    ],
)
def test_the_sizes_are_the_published_ones(build: Any, millions: float) -> None:
    with torch.device("meta"):
        model = build()
    digits = 2 if millions < 1 else 1
    assert round(size(model) / 1e6, digits) == millions


# --- residual networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [ResNet, ShakeShake])
@pytest.mark.parametrize("channels", [1, 3])
def test_image_models_take_both_kinds_of_images_and_train(build: Any, channels: int) -> None:
    torch.manual_seed(0)
    small = {"depth": 8} if build is ResNet else {"blocks": 1}
    model = build(**small, width=4, in_channels=channels, num_classes=7, optimizer={"name": "adamw", "lr": 1e-2})
    images, labels = torch.randn(32, channels, 28, 28), torch.arange(32) % 7
    optimizer = model.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert model(images).shape == (32, 7)
    assert losses[-1] < 0.8 * losses[0]
    # fused kernels want one layout for a parameter and its gradient
    assert [name for name, p in model.named_parameters() if p.stride() != p.grad.stride()] == []


@pytest.mark.parametrize(("depth", "near"), [(18, 20), (7, 8), (2, 8), (-4, 8), (110 - 1, 110)])
def test_a_depth_between_names_the_nearest(depth: int, near: int) -> None:
    with pytest.raises(wd.ConfigError) as caught:
        ResNet(depth=depth)
    assert str(caught.value).split("\n") == [
        f"model.depth={depth} is not 6n + 2.",
        f"  nearest: '{near}'",
        f"  fix: write model.depth={near}",
    ]


def test_only_kernels_and_the_head_of_a_residual_network_decay() -> None:
    for model in (ResNet(depth=8, width=4), ShakeShake(width=4, blocks=1)):
        decaying = {row.name for row in wd.plan_decay(model) if row.wd_mult}
        assert decaying == {name for name, p in model.named_parameters() if p.ndim >= 2}
        assert "net.0.weight" in decaying


def test_shake_mixes_each_image_by_its_own_alpha_and_the_gradient_by_another() -> None:
    torch.manual_seed(0)
    a, b = torch.full((64, 2, 3, 3), 3.0, requires_grad=True), torch.full((64, 2, 3, 3), 1.0, requires_grad=True)
    out = Shake.apply(a, b)
    alpha = (out.detach() - 1) / 2
    assert torch.equal(alpha, alpha[:, :1, :1, :1].expand_as(alpha))
    alpha = alpha[:, 0, 0, 0]
    assert 0 <= alpha.min() < 0.1 < 0.9 < alpha.max() <= 1
    assert len(alpha.unique()) > 60
    out.backward(torch.ones_like(out))
    assert a.grad is not None
    assert b.grad is not None
    beta = a.grad[:, 0, 0, 0]
    torch.testing.assert_close(a.grad + b.grad, torch.ones_like(a))
    assert len(beta.unique()) > 60
    assert np.corrcoef(alpha, beta)[0, 1] ** 2 < 0.2  # independent


def test_evaluation_takes_the_mean_of_the_branches() -> None:
    model = ShakeShake(width=4, blocks=1).eval()
    block: Any = model.net[2]
    x = torch.randn(2, 16, 8, 8)
    expected = block.shortcut(x) + 0.5 * block.branch1(x) + 0.5 * block.branch2(x)
    torch.testing.assert_close(block(x), expected)
    assert torch.equal(model(x[:, :3]), model(x[:, :3]))


def test_the_shortcut_sees_the_even_pixels_and_the_odd_ones() -> None:
    shortcut = Shortcut(1, 2, stride=2).eval()
    nn.init.ones_(shortcut.conv1.weight)
    nn.init.ones_(shortcut.conv2.weight)
    x = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    even, odd = shortcut(x)[0] * math.sqrt(1 + 1e-5)
    torch.testing.assert_close(even, x[0, 0, ::2, ::2])
    torch.testing.assert_close(odd, x[0, 0, 1::2, 1::2])


# --- GPT ------------------------------------------------------------------------------------------------------------


def twin(model: GPT, tokens: list[int]) -> np.ndarray[Any, Any]:
    """The logits of one sequence, in float64 NumPy, position by position."""
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return centred / spread * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Any, name: str) -> Any:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    layers, heads, width = PRESETS[model.hparams["preset"]]
    x = w["tokens.weight"][tokens] + w["positions.weight"][: len(tokens)]
    for layer in range(layers):
        block = f"blocks.{layer}"
        query, key, value = np.split(linear(norm(x, f"{block}.norm1"), f"{block}.qkv"), 3, axis=-1)
        mixed = np.zeros_like(x)
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            for t in range(len(tokens)):
                scores = key[: t + 1, part] @ query[t, part] / math.sqrt(width // heads)
                share = np.exp(scores - scores.max())
                mixed[t, part] = share / share.sum() @ value[: t + 1, part]
        x = x + linear(mixed, f"{block}.proj")
        inner = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.0")
        inner = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + linear(inner, f"{block}.mlp.2")
    result: np.ndarray[Any, Any] = norm(x, "norm") @ w["tokens.weight"].T
    return result


def test_gpt_computes_what_its_readable_twin_does() -> None:
    torch.manual_seed(0)
    model = GPT("tiny", vocab_size=11, block_size=9).eval()
    for parameter in model.parameters():  # away from the initial zeros and ones
        nn.init.normal_(parameter, std=0.3)
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    with torch.no_grad():
        logits = model(torch.tensor([tokens]))[0]
    np.testing.assert_allclose(logits.numpy(), twin(model, tokens), rtol=1e-4, atol=1e-4)


def test_a_new_gpt_knows_nothing_and_dropout_is_for_training() -> None:
    torch.manual_seed(0)
    model = GPT("tiny", vocab_size=65, block_size=16, dropout=0.5)
    tokens = torch.randint(65, (8, 17))
    batch = tokens[:, :-1], tokens[:, 1:]
    assert not torch.equal(model(batch[0]), model(batch[0]))
    model.eval()
    assert torch.equal(model(batch[0]), model(batch[0]))
    assert abs(model._loss(batch).item() - math.log(65)) < 0.05


def test_the_tied_head_is_one_tensor_and_decays_once() -> None:
    model = GPT("tiny", vocab_size=65, block_size=8)
    assert model.head.weight is model.tokens.weight
    plan = wd.plan_decay(model)
    assert plan["tokens.weight"].names == ("tokens.weight", "head.weight")
    assert {row.name for row in plan if row.wd_mult} == {name for name, p in model.named_parameters() if p.ndim == 2}
    with pytest.warns(UserWarning, match="disagrees about one tied tensor: tokens.weight.*head.weight"):
        plain = {row.name for row in wd.plan_decay(model, wd.Mask.no_embeddings()) if not row.wd_mult}
    assert plain == {name for name, p in model.named_parameters() if p.ndim == 1} | {
        "tokens.weight",
        "positions.weight",
    }


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(wd.ConfigError) as caught:
        GPT("smal")
    assert str(caught.value).split("\n") == [
        "model.preset 'smal' is unknown.",
        "  valid: tiny, tiny_wide, tiny_wider, mini, small, gpt2",
        "  nearest: 'small'",
        "  fix: write model.preset=small",
    ]


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # Lightning 2.6 on torch 2.13
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_validation_loss_is_the_mean_over_characters_not_over_batches() -> None:
    torch.manual_seed(0)
    model = GPT("tiny", vocab_size=65, block_size=8)
    text = torch.randint(65, (5, 9))
    batches = [(rows[:, :-1], rows[:, 1:]) for rows in (text[:4], text[4:])]
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    (found,) = trainer.validate(model, loader, verbose=False)
    with torch.no_grad():
        expected = model.eval()._loss((text[:, :-1], text[:, 1:])).item()
    assert found["val/loss"] == pytest.approx(expected, rel=1e-5)


# --- experiments ----------------------------------------------------------------------------------------------------

FILES = sorted(
    path
    for group in ("data", "model", "experiment", "optimizer/decay")
    for path in (ROOT / "recipes/conf" / group).glob("*")
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_file_opens_with_what_it_is_and_its_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    if path.parent.name == "experiment":
        assert lines.pop(0) == "# @package _global_"
    assert lines[0].startswith("# ")
    assert lines[1].startswith("# python recipes/train.py ")
    group = path.parent.relative_to(ROOT / "recipes/conf").as_posix()
    assert f"{group}={path.stem}" in lines[1].split()


@pytest.mark.parametrize(
    "experiment", ["cifar10_shakeshake_adamw", "digits_adamw", "fashion_resnet_sgdw", "shakespeare_gpt"]
)
def test_each_experiment_is_the_optimizer_that_its_name_says(experiment: str) -> None:
    with initialize_config_dir(str(ROOT / "recipes/conf"), version_base="1.3"):
        cfg = compose("train", [f"experiment={experiment}"])
    expected = {
        "cifar10_shakeshake_adamw": ("adamw", "independent", 1e-3, None, 0.025, 100, 128),
        "digits_adamw": ("adamw", "decoupled", 1e-3, 2.5, None, 20, 16),
        "fashion_small": ("adamw", "independent", 2**-8, 2**-10, None, 40, 50),
        "fashion_resnet_sgdw": ("sgdw", "decoupled", 0.1, 5e-3, None, cfg.trainer.max_epochs, 128),
        "shakespeare_gpt": ("adamw", "decoupled", cfg.optimizer.lr, 0.1, None, cfg.trainer.max_epochs, 32),
    }
    optimizer = cfg.optimizer
    assert (
        optimizer.name,
        optimizer.decay.style,
        optimizer.lr,
        optimizer.weight_decay,
        optimizer.decay.normalized,
        cfg.trainer.max_epochs,
        cfg.data.batch_size,
    ) == expected[experiment]


def test_digits_adamw_is_the_default_run() -> None:
    with initialize_config_dir(str(ROOT / "recipes/conf"), version_base="1.3"):
        default, spelled = (compose("train", overrides) for overrides in ([], ["experiment=digits_adamw"]))
    assert OmegaConf.to_container(default, resolve=True) == OmegaConf.to_container(spelled, resolve=True)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/conf/optimizer/decay").glob("*")), ids=lambda path: path.stem)
def test_the_recipes_decays_differ_from_the_packs_in_the_amount_only(path: Path) -> None:
    with initialize_config_dir(str(ROOT / "recipes/conf"), version_base="1.3"):
        ours = compose("train", [f"optimizer/decay={path.stem}"]).optimizer.decay
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        packs = compose(overrides=["+optimizer=adamw", f"optimizer/decay={path.stem}"]).optimizer.decay
    assert {**ours, "typical": None} == {**packs, "typical": None}


@pytest.mark.parametrize("style", ["decoupled", "independent", "constant", "corrected"])
def test_the_recipes_amounts_are_one_strength_for_every_optimizer(style: str) -> None:
    """A timescale of 400 steps at the optimizer's own learning rate; Adamax's is twice Adam's."""
    typical = OmegaConf.load(ROOT / f"recipes/conf/optimizer/decay/{style}.yaml").typical
    for name, family in OPTIMIZERS.items():
        lr = 1e-3 if name == "adamaxw" else family.lr
        assert lr is not None
        units = all_units(style, typical[family.typical], lr=lr)
        assert units["timescale_steps"] == pytest.approx(400), name


SHORT = ["trainer.max_steps=2", "+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1"]


@needs_real_data
@pytest.mark.filterwarnings("ignore:.ModelCheckpoint.monitor='val/loss'.. could not find")  # it stops before that
@pytest.mark.parametrize(
    ("experiment", "overrides"),
    [
        ("fashion_resnet_sgdw", [f"data.root={REAL}/fashion_mnist"]),
        ("shakespeare_gpt", [f"data.root={REAL}/tinyshakespeare"]),
        # full size on other images: those of CIFAR-10 are not there
        (
            "cifar10_shakeshake_adamw",
            ["data=fashion_mnist", f"data.root={REAL}/fashion_mnist", "data.batch_size=2", "model.in_channels=1"],
        ),
    ],
)
def test_each_experiment_starts(experiment: str, overrides: list[str], tmp_path: Path) -> None:
    run = trained(f"experiment={experiment}", *overrides, *SHORT, folder=tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert "test/loss" in run["metrics"]
    assert "test/loss" in (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")


def test_missing_data_and_no_network_end_in_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    data = ["data=cifar10", f"data.root={tmp_path}/none"]
    done = train_here(*data, "model=resnet", "callbacks=none", cwd=tmp_path, ok=False)
    assert done.returncode != 0
    assert f"DataError: {tmp_path}/none/cifar-10-binary.tar.gz is absent and could not be downloaded." in done.stderr
    assert "fix: download it elsewhere into a folder and give that folder: data.root=FOLDER" in done.stderr


@needs_real_data
@pytest.mark.filterwarnings("ignore:.ModelCheckpoint.monitor='val/loss'.. could not find")  # it stops before that
def test_two_processes_train_the_gpt_as_one_does(tmp_path: Path) -> None:
    """At the same global batch the weights and the test loss are equal to rounding: no row is left out or doubled."""
    command = [
        "experiment=shakespeare_gpt",
        "model.preset=tiny",
        "optimizer.eps=1e-3",  # with 1e-8 Adam makes steps of size lr out of gradients that are rounding errors
        f"data.root={REAL}/tinyshakespeare",
        "trainer.max_steps=4",
        *SHORT[1:],
    ]
    done = train(*command, "trainer=ddp_cpu", "trainer.devices=2", "data.batch_size=4", cwd=tmp_path)
    trained(*command, "trainer.accelerator=cpu", "data.batch_size=8", folder=tmp_path / "one")
    states, losses = [], []
    for folder in (run_folder(done), tmp_path / "one"):
        states.append(torch.load(folder / "checkpoints/last.ckpt", weights_only=True))
        with (folder / "metrics.csv").open(newline="") as file:
            losses += [float(row["test/loss"]) for row in csv.DictReader(file) if row["test/loss"]]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    two, one = (state["state_dict"] for state in states)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-6, msg=name)
    moved = max((value - two[name]).abs().max() for name, value in start(one).items())
    assert moved > 1e-4


def start(like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The untrained weights of that run."""
    L.seed_everything(0, verbose=False)
    return {name: p.detach() for name, p in GPT("tiny").named_parameters() if name in like}
