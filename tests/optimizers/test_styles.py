"""Every style, towards zero and towards an anchor, cautious or not, in every implementation, against the reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import reference
from helpers.steps import inductor

import lightning_wd as wd
from lightning_wd import _private
from lightning_wd.optimizers import compiled, kernel_step, kernels, pieces
from lightning_wd.optimizers.muon import Muon

STEPS = 200
IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "single": {"foreach": False},
    "compiled": {"compile": True},
    "default": {},  # compiled too: the test lowers the size it is worth from
    "graphs": {"compile": True},  # what torch.compile gets, run as it is
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.05}
OPTIMIZERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "adamw": (wd.AdamW, reference.Adam, {}),
    "sgdw": (wd.SGDW, reference.SGD, {"momentum": 0.9, "nesterov": True}),
    "sgdw-plain": (wd.SGDW, reference.SGD, {"maximize": True}),
}
STYLES = {"l2": 0.1, "decoupled": 0.1, "independent": 2e-3, "constant": 2e-3, "corrected": 0.1, "none": 0.5}


def cases() -> list[Any]:
    """Each style once with and without an anchor and caution, where they have a meaning."""
    plain = [(style, toward, False) for style in STYLES for toward in ("zero", "init")]
    careful = [(style, toward, True) for style, toward, _ in plain if style not in ("l2", "none")]
    return [
        pytest.param(name, style, toward, cautious, id=f"{name}-{style}-{toward}{'-cautious' * cautious}")
        for name in OPTIMIZERS
        for style, toward, cautious in [*plain, *careful, ("hyperball", "zero", False)]
    ]


def trajectory(dtype: torch.dtype) -> tuple[Any, Any, Any, list[float]]:
    """Return an anchor, start weights, gradients and learning rates."""
    rng = np.random.default_rng(0)
    anchor, w0 = rng.normal(size=(2, 5, 7))
    gradients = rng.normal(size=(STEPS, 5, 7)) + 0.3
    gradients[7] = 0
    lrs = [0.05 * min(1.0, t / 20) * (0.55 + 0.45 * math.cos(math.pi * t / STEPS)) for t in range(STEPS)]
    held: list[Any] = [torch.tensor(a).to(dtype).double().numpy() for a in (anchor, w0, gradients)]  # by that dtype
    return held[0], held[1], held[2], lrs


@pytest.fixture
def every_way(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small weights take the compiled ways too; torch.compile compiles nothing."""
    monkeypatch.setattr(kernel_step, "MIN_NATIVE", 0)
    monkeypatch.setattr(compiled, "MIN_NUMEL", 0)
    monkeypatch.setattr(torch, "compile", lambda step, **settings: step)
    compiled._compiled.cache_clear()
    yield
    compiled._compiled.cache_clear()


@inductor
@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:toward='init' of")  # weights are moved away from the anchors
@pytest.mark.parametrize(("name", "style", "toward", "cautious"), cases())
def test_equals_the_reference_over_200_steps(
    name: str, style: str, toward: str, cautious: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, twin_cls, extra = OPTIMIZERS[name]
    lam = STYLES.get(style, 0.0)
    anchor, w0, gradients, lrs = trajectory(dtype)
    twin = twin_cls(w0, base_lr=0.05, lam=lam, style=style, cautious=cautious, **extra)
    twin.anchor = anchor if toward == "init" else 0.0
    steps = 20 if dtype == torch.bfloat16 else STEPS  # after that its second moments stand still
    for g, lr in zip(gradients[:steps], lrs, strict=False):
        twin.step(g, lr)

    for implementation, flags in IMPLEMENTATIONS.items():
        if dtype == torch.bfloat16 and implementation in ("fused", "compiled"):
            continue  # torch's fused SGD does nothing there, and there is no C++
        if implementation == "graphs":
            for where in (compiled, kernels):
                monkeypatch.setattr(where, "is_native", lambda p: False)
        p = torch.nn.Parameter(torch.tensor(anchor, dtype=dtype))
        settings = {"weight_decay": lam, "style": style, "cautious_wd": cautious, "toward": toward, **extra, **flags}
        optimizer = cls([p], lr=0.05, **settings) if style != "hyperball" else None
        with torch.no_grad():
            p.copy_(torch.tensor(w0))
        optimizer = optimizer or cls([p], lr=0.05, **settings)
        for g, lr in zip(torch.tensor(gradients[:steps], dtype=dtype), lrs, strict=False):
            optimizer.param_groups[0]["lr"] = lr
            p.grad = g
            optimizer.step()
        error = np.linalg.norm(p.detach().double().numpy() - twin.w) / np.linalg.norm(twin.w)
        assert error <= TOLERANCE[dtype], f"{implementation}: {error:.2g}"


# --- facts of the hyperball -----------------------------------------------------------------------------------------

CLASSES = [
    pytest.param(wd.AdamW, {}, id="AdamW"),
    pytest.param(wd.SGDW, {"momentum": 0.9}, id="SGDW"),
    pytest.param(wd.AdamW, {"compile": True}, id="AdamW-compiled"),
    pytest.param(wd.SGDW, {"momentum": 0.9, "compile": True}, id="SGDW-compiled"),
    pytest.param(Muon, {}, id="Muon"),
]


@inductor
@pytest.mark.parametrize(("cls", "extra"), CLASSES)
def test_a_hyperball_keeps_the_norm(cls: Any, extra: dict[str, Any]) -> None:
    """To 1e-6 over 1,000 steps in float32, at any scale of weights and gradients."""
    source = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(9, 11, generator=source) * scale) for scale in (1e-3, 1.0, 1e3)]
    before = [p.detach().double().norm() for p in params]
    optimizer = cls(params, lr=0.05, style="hyperball", **extra)
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
    for _ in range(1000 if cls is not Muon else 100):
        for p in params:
            p.grad = torch.randn(9, 11, generator=source) * 1e-3
        optimizer.step()
    for p, norm in zip(params, before, strict=True):
        assert p.detach().double().norm().item() == pytest.approx(norm.item(), rel=1e-6)


@inductor
@pytest.mark.parametrize("compile", [False, True])
def test_a_hyperball_turns_by_the_arc_tangent_of_lr(compile: bool) -> None:
    """Where u is orthogonal to W; a tensor without an update stays, bit for bit, and a vector steps as it would."""
    weight, still, vector = (torch.nn.Parameter(torch.ones(*shape)) for shape in [(4, 2), (4, 2), (4,)])
    optimizer = wd.SGDW([weight, still, vector], lr=0.3, style="hyperball", compile=compile)
    weight.grad = torch.tensor([[1.0, -1.0]] * 4) * 1e-4
    still.grad, vector.grad = torch.zeros(4, 2), torch.ones(4)
    optimizer.step()
    cosine = (weight.detach() * torch.ones(4, 2)).sum() / 8
    assert math.acos(cosine) == pytest.approx(math.atan(0.3), rel=1e-5)
    assert torch.equal(still, torch.ones(4, 2))
    torch.testing.assert_close(vector.detach(), torch.full((4,), 0.7))


def test_what_a_hyperball_refuses() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    with pytest.raises(wd.ConfigError, match="keeps the norm of parameter 'lora_b' of group 0, which is 0") as error:
        wd.AdamW([("lora_b", weight)], style="hyperball")
    assert "found: shape (2, 3), all zeros" in str(error.value)
    assert "fix: exclude it with a mask rule (wd_mult: 0)" in str(error.value)
    wd.AdamW([torch.nn.Parameter(torch.zeros(3))], style="hyperball")  # a vector is on no hyperball
    full = [torch.nn.Parameter(torch.ones(2, 3))]
    with pytest.raises(wd.ConfigError, match=r"style 'hyperball' of group 0 has no amount"):
        wd.AdamW(full, style="hyperball", weight_decay=0.1)
    with pytest.raises(wd.ConfigError, match="cautious_wd has no meaning with style 'hyperball'"):
        wd.AdamW(full, style="hyperball", cautious_wd=True)
    with pytest.raises(wd.ConfigError, match="kahan=True does not go with style 'hyperball' of group 0"):
        wd.AdamW(full, style="hyperball", kahan=True)
    piece: Any = torch.nn.Parameter(torch.ones(6))
    piece._fsdp_flattened = True
    with pytest.raises(wd.ConfigError, match="FSDP1 has cut parameter 'w' of group 0 into pieces"):
        wd.AdamW([("w", piece)], style="hyperball")
    with pytest.raises(wd.ConfigError, match="NAdamW does not do style 'hyperball'"):
        wd.decoupled(torch.optim.NAdam)(full, style="hyperball")


# --- the compiled pass by default -----------------------------------------------------------------------------------


@inductor
def test_the_default_compiles_where_torchs_kernel_lacks_the_style(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From a size on, on tensors that no flag sends elsewhere; said once, and in several passes without a compiler."""
    caplog.set_level("INFO", "lightning_wd")
    compiled.native_ready.cache_clear()
    compiled._say.cache_clear()
    calls: list[Any] = []
    run = compiled._run_native

    def counted(*args: Any) -> None:
        calls.append(args)
        run(*args)

    monkeypatch.setattr(compiled, "_run_native", counted)

    def compiles(cls: Any = wd.AdamW, *, size: int = kernel_step.MIN_NATIVE, **settings: Any) -> bool:
        p = torch.nn.Parameter(torch.ones(size // 2, 2))
        optimizer = cls([p], **{"lr": 0.1, "weight_decay": 0.1, **settings})
        calls.clear()
        for _ in range(2):
            p.grad = torch.ones_like(p)
            optimizer.step()
        return bool(calls)

    outside: list[dict[str, Any]] = [{"cautious_wd": True}, {"style": "constant"}, {"toward": "init"}]
    outside += [{"style": "l2", "toward": "init"}, {"style": "hyperball", "weight_decay": None}]
    assert all(compiles(**settings) for settings in outside)
    assert compiles(wd.SGDW)
    assert caplog.messages == ["compile=None: steps that torch's own kernel lacks run in one compiled pass."]
    inside: list[dict[str, Any]] = [{}, {"style": "independent"}, {"style": "l2"}]
    assert not any(compiles(**settings) for settings in inside)
    assert not compiles(wd.SGDW, weight_decay=0.0)
    assert not compiles(wd.SGDW, size=kernel_step.MIN_NATIVE - 2)
    elsewhere: list[dict[str, Any]] = [{"fused": True}, {"foreach": False}, {"kahan": True}, {"compile": False}]
    assert not any(compiles(wd.SGDW, **settings) for settings in elsewhere)

    def missing(*_: Any) -> None:
        raise RuntimeError("No working C++ compiler found")

    compiled.native_ready.cache_clear()
    monkeypatch.setattr(_private, "get_cpp_compiler", missing)
    assert not compiles(wd.SGDW)
    assert "lacks take several passes. compile=True: torch.compile cannot make code here." in caplog.messages[-1]
    assert "No working C++ compiler found" in caplog.messages[-1]
    compiled.native_ready.cache_clear()


@pytest.mark.parametrize("settings", [{"cautious_wd": True}, {"toward": "init"}, {"kahan": True}], ids=str)
@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW])
def test_a_step_in_pieces_is_the_whole_step(
    cls: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights cut anywhere, in any number: the same to the rounding of vectors and of what is left over; one step."""
    results = []
    for size in (2**17, 7):
        monkeypatch.setattr(pieces, "PIECE", size)
        shapes = [(3, 5), (2,), (0,), (), (7,), (4, 4), (1,)]
        source = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, generator=source)) for shape in shapes]
        extra = {"momentum": 0.9} if cls is wd.SGDW else {}
        optimizer = cls(params, lr=0.1, weight_decay=0.1, compile=False, **extra, **settings)
        for _ in range(4):
            for p in params:
                p.grad = torch.randn(p.shape, generator=source)
            optimizer.step()
        results.append((params, [optimizer.state[p] for p in params]))
    (whole, states), (cut, cut_states) = results
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-7)
    for a, b in zip(states, cut_states, strict=True):
        assert a.keys() == b.keys()
        torch.testing.assert_close([*a.values()], [*b.values()], rtol=1e-6, atol=1e-7)
