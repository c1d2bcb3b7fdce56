"""Muon: torch's own bits, a float64 reference, what it orthogonalises and which tensors it takes; then beside AdamW."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from helpers import reference
from helpers.recipe import ROOT
from torch import nn

import lightning_wd as wd
from lightning_wd.optimizers import MultiOptimizer, Muon
from lightning_wd.optimizers.muon import COEFFICIENTS, _matrices, orthogonalised

has_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch < 2.9 has no Muon to compare with")
SETTINGS = {"split": 1, "ns_steps": 5, "ns_coefficients": "quintic", "adjust_lr_fn": "match_rms_adamw"}


def draw(*shape: int, seed: int = 0, **kind: Any) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(**kind)


def weights(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(draw(*shape, seed=i, dtype=dtype)) for i, shape in enumerate(shapes)]


def step(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], count: int, first: int = 100) -> None:
    for t in range(first, first + count):
        for i, p in enumerate(params):
            p.grad = draw(*p.shape, seed=1000 * t + i, dtype=p.dtype)
        optimizer.step()


# --- the step -----------------------------------------------------------------------------------------------------


@has_muon
@pytest.mark.parametrize("adjust_lr_fn", ["match_rms_adamw", "original"])
@pytest.mark.parametrize(
    ("nesterov", "ns_steps", "dtype"), [(True, 5, torch.float32), (False, 3, torch.float32), (True, 5, torch.bfloat16)]
)
def test_torchs_muon_bit_for_bit(nesterov: bool, ns_steps: int, dtype: torch.dtype, adjust_lr_fn: str) -> None:
    shapes = [(8, 8), (16, 5), (5, 16), (33, 77), (1, 4)]
    ours, theirs = weights(*shapes, dtype=dtype), weights(*shapes, dtype=dtype)
    settings: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.9, "nesterov": nesterov}
    settings |= {"ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
    optimizer, twin = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    step(optimizer, ours, 5)
    step(twin, theirs, 5)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(optimizer.state[a]["momentum_buffer"], twin.state[b]["momentum_buffer"])


def test_the_buffer_of_a_16_bit_weight_keeps_its_scale() -> None:
    """Without Nesterov torch 2.13 normalises the buffer itself, in place."""
    (p,) = params = weights((4, 6), dtype=torch.bfloat16)
    optimizer = Muon(params, lr=0.1, momentum=0.0, nesterov=False)
    step(optimizer, params, 1)
    assert p.grad is not None
    assert torch.equal(optimizer.state[p]["momentum_buffer"], p.grad)


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((6, 4), {"style": "decoupled"}),
        ((4, 6), {"style": "decoupled", "cautious": True}),
        ((4, 6), {"style": "independent", "momentum": 0.9, "nesterov": False}),
        ((6, 4), {"style": "independent", "cautious": True, "original": True}),
        ((5, 3, 2, 2), {"style": "constant"}),
        ((3, 5, 4), {"style": "constant"}),
        ((6, 4), {"style": "corrected", "split": 3}),
        ((8, 2, 3, 3), {"style": "corrected", "split": 2}),
        ((6, 4), {"style": "none"}),
    ],
)
def test_the_float64_reference(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    """The iteration is in bfloat16, so u is right to a hundredth."""
    lam = {"decoupled": 2.0, "corrected": 2.0, "none": 2.0}.get(settings["style"], 0.04)
    twin = reference.Muon(draw(*shape).numpy(), base_lr=0.02, lam=lam, **settings)
    ours: dict[str, Any] = {key: settings[key] for key in ("style", "momentum", "nesterov", "split") if key in settings}
    ours |= {"cautious_wd": settings.get("cautious", False)}
    ours |= {"adjust_lr_fn": "original"} if settings.get("original") else {}
    p = nn.Parameter(draw(*shape))
    optimizer = Muon([p], lr=0.02, weight_decay=lam, **ours)
    rounding = 0.0
    for t, eta in enumerate([1.0, 0.8, 0.5, 0.25]):
        before, old = twin.w, p.detach().clone()
        optimizer.param_groups[0]["lr"] = 0.02 * eta
        p.grad = draw(*shape, seed=10 + t)
        optimizer.step()
        twin.step(p.grad.numpy(), 0.02 * eta)
        rounding += 0.01 * np.linalg.norm(twin.w - before)
        assert np.linalg.norm(p.detach().numpy() - twin.w) < rounding
        assert not torch.equal(p, old)


@pytest.mark.parametrize(
    ("style", "lam", "left"),
    [
        ("decoupled", 0.5, 1 - 0.01 * 0.5),
        ("independent", 0.1, 0.9),
        ("constant", 0.1, 0.9),
        ("corrected", 0.5, 1 - 0.01 * 0.5),
        ("none", 0.5, 1.0),
    ],
)
@pytest.mark.parametrize("cautious", [False, True])
def test_a_zero_gradient_leaves_the_decay_alone(style: str, lam: float, left: float, cautious: bool) -> None:
    params = weights((4, 6), (3, 2, 2, 2), dtype=torch.float64)
    optimizer = Muon(params, lr=0.01, weight_decay=lam, style=style, cautious_wd=cautious)
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for p, start in zip(params, weights((4, 6), (3, 2, 2, 2), dtype=torch.float64), strict=True):
        torch.testing.assert_close(p.detach(), start.detach() * left**3, rtol=1e-14, atol=0)


def test_kahan_keeps_a_decay_that_bfloat16_rounds_away() -> None:
    left = []
    for kahan in (False, True):
        p = nn.Parameter(torch.full((2, 2), 1.5, dtype=torch.bfloat16))
        optimizer = Muon([p], lr=1e-2, weight_decay=0.05, kahan=kahan)
        p.grad = torch.zeros_like(p)
        if not kahan:
            with pytest.warns(UserWarning, match=r"the decay of group 0 is lost in bfloat16[\s\S]*write kahan=True"):
                optimizer.step()
        for _ in range(400):
            optimizer.step()
        left.append(p.detach().float().unique().item())
    assert left[0] == 1.5
    assert left[1] == pytest.approx(1.5 * (1 - 5e-4) ** 400, rel=4e-3)


def test_float16_weights_step() -> None:
    params = weights((4, 6), dtype=torch.float16)
    before = params[0].detach().clone()
    step(Muon(params, lr=0.1, weight_decay=1.0, cautious_wd=True), params, 2)
    assert torch.isfinite(params[0]).all()
    assert not torch.equal(params[0], before)


def test_a_killed_run_goes_on_bit_for_bit() -> None:
    def build() -> tuple[list[nn.Parameter], Muon]:
        params = weights((6, 4), (4, 3, 2, 2), (2, 3, 5))
        groups = [{"params": [(str(i), p)], "split": n} for i, (p, n) in enumerate(zip(params, (3, 1, 2), strict=True))]
        return params, Muon(groups, lr=0.1, weight_decay=0.02, style="independent", ns_coefficients="polar_express")

    whole, optimizer = build()
    step(optimizer, whole, 3)
    file = io.BytesIO()
    torch.save({"weights": whole, "optimizer": optimizer.state_dict()}, file)
    step(optimizer, whole, 3, first=200)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, optimizer = build()
    for p, kept in zip(resumed, saved["weights"], strict=True):
        p.data.copy_(kept)
    optimizer.load_state_dict(saved["optimizer"])
    step(optimizer, resumed, 3, first=200)
    assert all(map(torch.equal, resumed, whole))
    assert pickle.loads(pickle.dumps(optimizer)).param_groups[0]["split"] == 3


# --- the orthogonal matrix ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "steps", "low", "high"),
    [("quintic", 5, 0.68, 1.16), ("polar_express", 5, 0.87, 1.13), ("polar_express", 8, 1.0, 1.0)],
)
def test_singular_values_end_in_the_stated_band(preset: str, steps: int, low: float, high: float) -> None:
    """The composed polynomial, exactly; and matrices, to the digits of bfloat16."""
    x = np.geomspace(0.005, 1, 10_001)
    for i in range(steps):
        a, b, c = COEFFICIENTS[preset][min(i, len(COEFFICIENTS[preset]) - 1)]
        x = a * x + b * x**3 + c * x**5
    assert (round(x.min(), 2), round(x.max() + 0.004, 2)) == (low, high)
    left, right = (torch.linalg.qr(draw(size, 20, seed=size))[0] for size in (32, 20))
    for values in (torch.logspace(-2, 0, 20), torch.ones(20)):
        matrix = left * values @ right
        assert values.min() / values.norm() > 0.005
        for update in (matrix, 1e-4 * matrix.T, 1e4 * right * values @ right):
            made, _ = orthogonalised(update, {**SETTINGS, "ns_coefficients": preset, "ns_steps": steps})
            found = torch.linalg.svdvals(made.double())
            assert low - 0.02 < found.min() <= found.max() < high + 0.02
            assert made.shape == update.shape


def test_the_update_has_the_rms_of_adamws() -> None:
    for shape in ((64, 64), (16, 128), (128, 16), (16, 8, 4, 4)):
        made, factor = orthogonalised(draw(*shape), SETTINGS)
        assert 0.15 < factor * made.double().square().mean().sqrt() < 0.24
    _, factor = orthogonalised(draw(128, 2, 4, 4), {**SETTINGS, "adjust_lr_fn": "original"})
    assert factor == math.sqrt(128 / 32)


@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (3, 8, 2), (4, 2, 3, 2, 2)])
def test_a_convolution_is_the_matrix_of_its_patches(shape: tuple[int, ...]) -> None:
    update = draw(*shape)
    if len(shape) == 4:
        update = update.to(memory_format=torch.channels_last)
    made, factor = orthogonalised(update, SETTINGS)
    matrix, same = orthogonalised(update.reshape(shape[0], -1), SETTINGS)
    assert torch.equal(made, matrix.reshape(shape))
    assert factor == same == 0.2 * math.sqrt(max(matrix.shape))
    transposed, _ = orthogonalised(update.reshape(shape[0], -1).T, SETTINGS)  # the map of a transposed convolution
    assert torch.equal(transposed.T, matrix)


@pytest.mark.parametrize(
    ("shape", "split", "matrix"), [((12, 4), 3, (4, 4)), ((3, 5, 4), 3, (5, 4)), ((8, 2, 3, 3), 4, (2, 18))]
)
def test_split_makes_several_matrices_of_one_tensor(
    shape: tuple[int, ...], split: int, matrix: tuple[int, int]
) -> None:
    """Fused QKV, experts, and a convolution in groups: as so many parameters."""
    (whole,) = weights(shape)
    parts = [nn.Parameter(part.clone()) for part in whole.detach().reshape(split, *matrix)]
    together, apart = Muon([whole], lr=0.1, split=split), Muon(parts, lr=0.1)
    for t in range(3):
        whole.grad = draw(*shape, seed=t, dtype=torch.float32)
        for part, grad in zip(parts, whole.grad.reshape(split, *matrix), strict=True):
            part.grad = grad.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(whole.detach(), torch.stack([*parts]).detach().reshape(shape), rtol=1e-5, atol=1e-5)


def test_the_page_of_muon() -> None:
    """docs/muon.md: its code runs."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/muon.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    qkv, experts = params = [names["qkv"], names["experts"]]
    step(names["optimizer"], params, 1)
    assert [_matrices(p.detach(), split).shape for p, split in ((qkv, 3), (experts, 4))] == [(3, 32, 32), (4, 64, 32)]


# --- refusals -----------------------------------------------------------------------------------------------------


NO_MATRIX = r"x of group 0 is not a real matrix: Muon orthogonalises matrices\.\n  found: shape \(3,\), torch.float32\n"
UNDIVIDED = r"split=3 of group 0 does not divide the first dimension of x\.\n  found: shape \(64, 8\), torch.float32\n"


@pytest.mark.parametrize(
    ("shape", "settings", "words"),
    [
        ((3,), {}, NO_MATRIX + "  fix: let AdamW update it"),
        ((64, 8), {"split": 3}, UNDIVIDED + "  valid: 1, 2, 4, 8, 16, 32, 64\n  fix: write how many matrices"),
        ((4, 4), {"split": 0}, "split must be"),
        ((4, 4), {"split": True}, "split must be"),
        ((4, 4), {"ns_steps": 2.5}, "ns_steps must be"),
        (
            (4, 4),
            {"ns_coefficients": "polar"},
            r"ns_coefficients 'polar' is unknown[\s\S]*valid: quintic, polar_express",
        ),
        ((4, 4), {"adjust_lr_fn": "orignal"}, r"adjust_lr_fn 'orignal' is unknown[\s\S]*nearest: 'original'"),
        ((4, 4), {"style": "l2"}, "Muon does not do style 'l2' of group 0"),
        ((4, 4), {"style": "independent"}, "style 'independent' of group 0 needs a weight_decay of its own"),
        ((4, 4), {"momentum": 1.0}, "momentum must be"),
        ((4, 4), {"betas": (0.9, 0.95)}, "betas"),
    ],
)
def test_bad_settings_are_refused_in_words(shape: tuple[int, ...], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(wd.ConfigError, match=words):
        Muon([("x", nn.Parameter(torch.ones(shape)))], **settings)
    if set(settings) <= {"split", "ns_steps", "ns_coefficients", "adjust_lr_fn"}:  # the same in one group
        words = words.replace(" must", " of group 0 must").replace(" '", " of group 0 '", 1)
        with pytest.raises(wd.ConfigError, match=words):
            Muon([{"params": [("x", nn.Parameter(torch.ones(shape)))], **settings}])


def test_what_muon_cannot_step_is_refused() -> None:
    with pytest.raises(wd.ConfigError, match=r"a parameter of group 0 is not a real matrix[\s\S]*complex64"):
        Muon([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))])
    sparse = nn.Parameter(torch.ones(2, 2))
    sparse.grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(RuntimeError, match="Muon does not support sparse gradients"):
        Muon([sparse]).step()
    (piece,) = weights((2, 2))
    piece._fsdp_flattened = True  # type: ignore[attr-defined]
    with pytest.raises(wd.ConfigError, match=r"FSDP1 has cut a parameter of group 0 into pieces[\s\S]*use FSDP2"):
        Muon([piece])


def test_another_optimizers_state_is_refused() -> None:
    params = weights((4, 4))
    adamw = wd.AdamW(params)
    step(adamw, params, 1)
    with pytest.raises(wd.CheckpointMismatchError, match="group 0 is of another optimizer"):
        Muon(params).load_state_dict(adamw.state_dict())
    saved = Muon(params, split=2).state_dict()
    with pytest.warns(UserWarning, match="split is 2 in the checkpoint, 1 in the configuration"):
        Muon(params).load_state_dict(saved)


# --- beside AdamW -------------------------------------------------------------------------------------------------


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2))


def built(module: nn.Module, **config: object) -> torch.optim.Optimizer:
    config = {"name": "muon", "lr": 0.01, "weight_decay": 0.1, **config}
    optimizer = wd.configure_optimizers(module, config)["optimizer"]
    assert isinstance(optimizer, MultiOptimizer)
    return optimizer


def backward(module: nn.Module) -> None:
    module.zero_grad()
    module(torch.tensor([0, 1, 2, 3])).square().mean().backward()


def test_members_by_name() -> None:
    groups = {(g["name"], g["use_muon"]): g["param_names"] for g in built(net()).param_groups}
    assert groups == {
        ("decay_muon", True): ["1.weight", "3.weight"],
        ("decay", False): ["0.weight", "4.weight"],
        ("no_decay", False): ["1.bias", "2.weight", "2.bias", "3.bias", "4.bias"],
    }


def test_convolutions_in_groups_are_split() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 1), nn.Linear(8, 2))
    groups = {g["name"]: (g.get("split"), g["param_names"]) for g in built(module).param_groups}
    assert groups == {
        "decay_muon": (1, ["2.weight"]),
        "decay_muon_split_2": (2, ["1.weight"]),
        "decay": (None, ["0.weight", "3.weight"]),
        "no_decay": (None, ["0.bias", "1.bias", "2.bias", "3.bias"]),
    }


@has_muon
def test_each_half_equals_torchs_own() -> None:
    ours, theirs = net(), net()
    optimizer = built(ours)
    named = dict(theirs.named_parameters())
    muon = torch.optim.Muon(
        [named[n] for n in ("1.weight", "3.weight")], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [
            {"params": [named[n] for n in ("0.weight", "4.weight")], "weight_decay": 0.1},
            {"params": [named[n] for n in named if n.endswith("bias") or n == "2.weight"], "weight_decay": 0.0},
        ],
        lr=0.01,
        fused=True,
    )
    for _ in range(5):
        backward(ours)
        optimizer.step()
        backward(theirs)
        muon.step()
        adamw.step()
    for name, value in ours.named_parameters():
        assert torch.equal(value, named[name]), name


def test_kahan_serves_both_halves() -> None:
    module = net().bfloat16()
    optimizer = built(module, lr=1e-2, weight_decay=0.05, kahan=True)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(400):
        optimizer.step()
    for name in ("0.weight", "1.weight", "3.weight", "4.weight"):
        left = dict(module.named_parameters())[name].float().norm() / before[name].float().norm()
        assert left.item() == pytest.approx((1 - 5e-4) ** 400, rel=4e-3)


def test_hooks_run_once_and_state_survives() -> None:
    module = net()
    optimizer = built(module)
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    backward(module)
    optimizer.step()
    assert calls == [1]
    twin = built(copy.deepcopy(module))
    twin.load_state_dict(optimizer.state_dict())
    assert str(twin.state_dict()) == str(optimizer.state_dict())
    assert [g["use_muon"] for g in pickle.loads(pickle.dumps(optimizer)).param_groups] == [False, False, True]


def test_refusals() -> None:
    with pytest.raises(wd.ConfigError, match=r"optimizer muon does not do optimizer.decay.style 'l2'"):
        built(net(), decay={"style": "l2"})
    module = net()
    adamw = wd.configure_optimizers(module, {"name": "adamw", "weight_decay": 0.1})["optimizer"]
    with pytest.raises(wd.CheckpointMismatchError, match="of another optimizer"):
        built(module).load_state_dict(adamw.state_dict())
