"""The step of AdamW and SGDW: exact values, a float64 reference, torch's own bits, and the facts about decay."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import lightning_wd as wd
from lightning_wd.optimizers import SGDL2, AdamL2, compiled

torch.set_num_threads(1)

GRADIENTS = torch.tensor([[0.5, -0.2], [-0.1, 0.3], [0.4, 0.1]], dtype=torch.float64)
IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "kahan": {"kahan": True},
}


def train(make: Any, w0: Any, gradients: Any, lrs: list[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Step over given gradients and learning rates; return the weights."""
    p = torch.nn.Parameter(torch.as_tensor(w0, dtype=dtype).clone())
    optimizer = make([p])
    for g, lr in zip(gradients, lrs, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        p.grad = torch.as_tensor(g, dtype=dtype).clone()
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"style": "l2", "weight_decay": 0.1}, [0.98464093, -1.98641254]),
        ({"style": "decoupled", "weight_decay": 0.1}, [0.98394085, -1.98863578]),
        ({"style": "independent", "weight_decay": 1e-3}, [0.98394085, -1.98863578]),
        ({"style": "constant", "weight_decay": 1e-3}, [0.98270739, -1.98615159]),
        ({"style": "corrected", "weight_decay": 0.1}, [0.98437295, -1.98950555]),
        ({"cautious_wd": True, "weight_decay": 0.1}, [0.98394085, -1.99012685]),
    ],
)
def test_check_values_of_adam(settings: dict[str, Any], expected: list[float], implementation: str) -> None:
    w = train(
        lambda p: wd.AdamW(p, lr=0.01, **settings, **IMPLEMENTATIONS[implementation]),
        [1.0, -2.0],
        GRADIENTS,
        [0.01, 0.005, 0.0025],
    )
    np.testing.assert_allclose(w, expected, rtol=0, atol=5e-9)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"style": "l2", "weight_decay": 0.1}, [0.98884152, -1.99386922]),
        ({"style": "decoupled", "weight_decay": 0.1}, [0.98971756, -1.9956231]),
        ({"style": "independent", "weight_decay": 1e-3}, [0.98971756, -1.9956231]),
    ],
)
def test_check_values_of_sgd(settings: dict[str, Any], expected: list[float], implementation: str) -> None:
    w = train(
        lambda p: wd.SGDW(p, lr=0.01, momentum=0.9, **settings, **IMPLEMENTATIONS[implementation]),
        [1.0, -2.0],
        GRADIENTS,
        [0.01, 0.005, 0.0025],
    )
    np.testing.assert_allclose(w, expected, rtol=0, atol=5e-9)


def _cases() -> list[Any]:
    adam: list[dict[str, Any]] = [{}, {"amsgrad": True}, {"maximize": True}, {"betas": (0.8, 0.9), "eps": 1e-3}]
    sgd: list[dict[str, Any]] = [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "nesterov": True, "maximize": True},
        {"maximize": True},
    ]
    styles = [("l2", False), ("none", False)]
    styles += list(itertools.product(["decoupled", "independent", "constant", "corrected"], [False, True]))
    return [
        pytest.param(kind, style, cautious, extra, id=f"{kind}-{style}{'-cautious' * cautious}-{'-'.join(extra)}")
        for kind, extras in (("adam", adam), ("sgd", sgd))
        for style, cautious in styles
        for extra in extras
    ]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("kind", "style", "cautious", "extra"), _cases())
def test_equals_the_reference(
    kind: str, style: str, cautious: bool, extra: dict[str, Any], implementation: str
) -> None:
    rng = np.random.default_rng(0)
    w0 = rng.normal(size=(5, 7))
    gradients = rng.normal(size=(6, 5, 7))
    gradients[2] = 0
    lrs = [0.0, 0.02, 0.05, 0.1, 0.04, 0.01]
    lam = 0.3
    settings = {"weight_decay": lam, "style": style, "cautious_wd": cautious, **extra}
    twin = (reference.Adam if kind == "adam" else reference.SGD)(
        w0, base_lr=0.1, lam=lam, style=style, cautious=cautious, **extra
    )
    for g, lr in zip(gradients, lrs, strict=True):
        twin.step(g, lr)
    cls = wd.AdamW if kind == "adam" else wd.SGDW
    w = train(lambda p: cls(p, lr=0.1, **settings, **IMPLEMENTATIONS[implementation]), w0, gradients, lrs)
    np.testing.assert_allclose(w, twin.w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("implementation", ["single", "foreach", "fused"])
@pytest.mark.parametrize(
    ("ours", "theirs", "extra"),
    [
        (wd.AdamW, torch.optim.AdamW, {"weight_decay": 0.5}),
        (wd.AdamW, torch.optim.AdamW, {"weight_decay": 0.5, "amsgrad": True, "maximize": True}),
        (AdamL2, torch.optim.Adam, {"weight_decay": 0.5}),
        (SGDL2, torch.optim.SGD, {"weight_decay": 0.5, "momentum": 0.9, "nesterov": True}),
        (wd.SGDW, torch.optim.SGD, {"weight_decay": 0.0, "momentum": 0.9, "dampening": 0.1}),
        (wd.SGDW, torch.optim.SGD, {"weight_decay": 0.0, "maximize": True}),
    ],
)
def test_is_torch_bit_for_bit(
    ours: Any, theirs: Any, extra: dict[str, Any], implementation: str, dtype: torch.dtype
) -> None:
    if implementation == "fused" and dtype.is_complex:
        pytest.skip("torch's fused kernels take no complex weights")
    if implementation == "fused" and dtype == torch.bfloat16 and theirs is torch.optim.SGD:
        pytest.skip("torch's fused SGD is wrong here, and refused")
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5), (7,), (), (0,), (1,)]
    draw = [torch.randn(s, dtype=dtype, generator=generator) for s in shapes]
    runs = []
    for cls in (ours, theirs):
        params = [torch.nn.Parameter(w.clone()) for w in draw]
        optimizer = cls(params, lr=0.01, **extra, **IMPLEMENTATIONS[implementation])
        source = torch.Generator().manual_seed(1)
        for t in range(5):
            optimizer.param_groups[0]["lr"] = 0.01 / (t + 1)
            for p in params:
                p.grad = torch.randn(p.shape, dtype=dtype, generator=source)
            optimizer.step()
        runs.append(([p.detach() for p in params], optimizer.state_dict()["state"]))
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0], runs[1][0], strict=True))
    assert runs[0][1].keys() == runs[1][1].keys()
    for mine, other in zip(runs[0][1].values(), runs[1][1].values(), strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[k], other[k]) for k in other if isinstance(other[k], torch.Tensor))


def test_state_takes_no_more_memory_than_torch() -> None:
    cases: list[tuple[Any, Any, dict[str, Any]]] = [
        (wd.AdamW, torch.optim.AdamW, {}),
        (wd.SGDW, torch.optim.SGD, {"momentum": 0.9}),
        (wd.SGDW, torch.optim.SGD, {}),
    ]
    for ours, theirs, extra in cases:
        sizes = []
        for cls in (ours, theirs):
            p = torch.nn.Parameter(torch.ones(64))
            optimizer = cls([p], lr=0.1, **extra)
            p.grad = torch.ones(64)
            optimizer.step()
            tensors = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
            sizes.append(sum(t.numel() * t.element_size() for t in tensors))
        assert sizes[0] == sizes[1]


def _schedules(steps: int) -> dict[str, list[float]]:
    warm = [min(1.0, (t + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * t / steps)) for t in range(steps)]
    return {"constant": [1e-2] * steps, "warmup_cosine": [1e-2 * x for x in warm]}


def _error(make: Any, twin: Any, lrs: list[float]) -> float:
    """Relative error after training in float32 on the gradients that the float64 reference saw."""
    rng = np.random.default_rng(0)
    p = torch.nn.Parameter(torch.tensor(twin.w, dtype=torch.float32))
    optimizer = make([p])
    for lr in lrs:
        g = rng.normal(size=twin.w.shape).astype(np.float32)
        twin.step(g.astype(np.float64), lr)
        optimizer.param_groups[0]["lr"] = lr
        p.grad = torch.from_numpy(g)
        optimizer.step()
    return float(np.linalg.norm(p.detach().double().numpy() - twin.w) / np.linalg.norm(twin.w))


@pytest.mark.filterwarnings(  # inductor's own
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning",
    "ignore:Skipping serialization of skipfiles_inline_module_allowlist:UserWarning",
)
@pytest.mark.parametrize("native", [True, False], ids=["native", "graphs"])
@pytest.mark.parametrize("schedule", ["constant", "warmup_cosine"])
def test_float32_drift_over_1000_steps(schedule: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(compiled, "is_native", lambda p: False)
        monkeypatch.setattr(compiled, "MIN_NUMEL", 2**14)
    lrs = _schedules(1000)[schedule]
    w0 = np.random.default_rng(1).normal(size=2**14).astype(np.float32).astype(np.float64)

    def adam(**settings: Any) -> reference.Adam:
        return reference.Adam(w0, base_lr=1e-2, lam=0.1, **settings)

    torch_error = _error(lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1), adam(), lrs)
    assert _error(lambda p: wd.AdamW(p, lr=1e-2, weight_decay=0.1), adam(), lrs) <= torch_error * 1.05
    assert _error(lambda p: wd.AdamW(p, lr=1e-2, weight_decay=0.1, compile=True), adam(), lrs) <= 2e-6

    def sgd() -> reference.SGD:
        return reference.SGD(w0, base_lr=1e-2, lam=0.1, momentum=0.9)

    settings: dict[str, Any] = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}
    assert _error(lambda p: wd.SGDW(p, **settings), sgd(), lrs) <= 2e-6
    assert _error(lambda p: wd.SGDW(p, **settings, compile=True), sgd(), lrs) <= 2e-6


# --- facts of decay -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW])
@pytest.mark.parametrize(
    ("style", "lam", "d"),
    [("decoupled", 0.5, 0.05), ("independent", 0.05, 0.05), ("constant", 0.05, 0.05), ("corrected", 0.5, 0.05)],
)
@pytest.mark.parametrize("cautious", [False, True])
def test_zero_gradient_shrinks_geometrically(cls: Any, style: str, lam: float, d: float, cautious: bool) -> None:
    w = train(
        lambda p: cls(p, lr=0.1, weight_decay=lam, style=style, cautious_wd=cautious),
        [1.0, -2.0],
        torch.zeros(20, 2),
        [0.1] * 20,
    )
    np.testing.assert_allclose(w, np.array([1.0, -2.0]) * (1 - d) ** 20, rtol=1e-12)


def test_momentum_makes_l2_stronger() -> None:
    """Zero gradient, mu .9, lr .1, 2,000 steps: what is left of a weight of 1."""
    left = {}
    for name, amount in {
        "l2 5e-4": {"style": "l2", "weight_decay": 5e-4},
        "decoupled 5e-4": {"weight_decay": 5e-4},
        "decoupled 5e-3": {"weight_decay": 5e-3},
    }.items():
        made = lambda p, s=amount: wd.SGDW(p, lr=0.1, momentum=0.9, **s)  # noqa: E731
        left[name] = round(train(made, [1.0], torch.zeros(2000, 1), [0.1] * 2000).item(), 4)
    assert left == {"l2 5e-4": 0.3678, "decoupled 5e-4": 0.9048, "decoupled 5e-3": 0.3678}


@pytest.mark.parametrize("lam", [1e-4, 1.0, 100.0])
def test_adam_l2_first_step_forgets_lambda(lam: float) -> None:
    w = train(lambda p: wd.AdamW(p, lr=0.1, style="l2", weight_decay=lam), [1.0, -2.0], torch.zeros(1, 2), [0.1])
    np.testing.assert_allclose(w, [0.9, -1.9], rtol=1e-3)


schedules = st.lists(st.floats(0.0, 1.0), min_size=2, max_size=6)
arrays = st.lists(st.floats(-2, 2), min_size=3, max_size=3)


@settings(max_examples=25, deadline=None)
@given(etas=schedules, w0=arrays, lam=st.floats(1e-5, 0.2), kind=st.sampled_from(["adam", "sgd"]))
def test_independent_is_decoupled_with_lambda_over_the_peak(
    etas: list[float], w0: list[float], lam: float, kind: str
) -> None:
    cls = {"adam": wd.AdamW, "sgd": wd.SGDW}[kind]
    gradients = torch.linspace(-1, 1, 3 * len(etas)).reshape(-1, 3)
    lrs = [0.05 * eta for eta in etas]
    a = train(lambda p: cls(p, lr=0.05, weight_decay=lam, style="independent"), w0, gradients, lrs)
    b = train(lambda p: cls(p, lr=0.05, weight_decay=lam / 0.05), w0, gradients, lrs)
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@settings(max_examples=25, deadline=None)
@given(etas=schedules, w0=arrays, lam=st.floats(1e-5, 0.2))
def test_plain_sgd_cannot_tell_l2_from_decoupled(etas: list[float], w0: list[float], lam: float) -> None:
    """Loshchilov & Hutter, Prop. 1."""
    gradients = torch.linspace(-1, 1, 3 * len(etas)).reshape(-1, 3)
    lrs = [0.05 * eta for eta in etas]
    runs = [
        train(lambda p, s=s, x=x: wd.SGDW(p, lr=0.05, weight_decay=x, style=s), w0, gradients, lrs)
        for s, x in (("l2", lam / 0.05), ("independent", lam), ("decoupled", lam / 0.05))
    ]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(runs[1], runs[2], rtol=1e-11, atol=1e-14)


@settings(max_examples=15, deadline=None)
@given(etas=schedules, w0=arrays, kind=st.sampled_from(["adam", "sgd"]), cautious=st.booleans())
def test_without_lambda_all_styles_are_one(etas: list[float], w0: list[float], kind: str, cautious: bool) -> None:
    cls = {"adam": wd.AdamW, "sgd": wd.SGDW}[kind]
    gradients = torch.linspace(-1, 1, 3 * len(etas)).reshape(-1, 3)
    lrs = [0.05 * eta for eta in etas]
    plain = train(lambda p: cls(p, lr=0.05, style="none", weight_decay=0.7), w0, gradients, lrs)
    for style in ("l2", "decoupled", "independent", "constant", "corrected"):
        careful = cautious and style != "l2"
        w = train(
            lambda p, s=style, c=careful: cls(p, lr=0.05, weight_decay=0.0, style=s, cautious_wd=c), w0, gradients, lrs
        )
        assert torch.equal(w, plain)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(4)), cut=st.integers(1, 3), kind=st.sampled_from(["adam", "sgd"]))
def test_order_and_grouping_change_nothing(order: list[int], cut: int, kind: str) -> None:
    cls = {"adam": wd.AdamW, "sgd": wd.SGDW}[kind]

    def run(groups: list[list[int]]) -> list[torch.Tensor]:
        params = [torch.nn.Parameter(torch.linspace(-1, 1, 5) * (i + 1)) for i in range(4)]
        optimizer = cls(
            [{"params": [params[i] for i in g]} for g in groups], lr=0.1, weight_decay=0.1, style="independent"
        )
        for t in range(3):
            for i, p in enumerate(params):
                p.grad = torch.cos(torch.arange(5.0) + i + t)
            optimizer.step()
        return [p.detach() for p in params]

    base = run([[0, 1, 2, 3]])
    assert all(torch.equal(a, b) for a, b in zip(base, run([list(order)]), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(base, run([list(order[:cut]), list(order[cut:])]), strict=True))


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
def test_cycling_schedulers_keep_the_scale_of_independent_decay(name: str) -> None:
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = wd.SGDW([p], lr=0.1, momentum=0.9, weight_decay=1e-2, style="independent")
    if name == "OneCycleLR":
        scheduler: Any = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    else:
        scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, base_lr=0.004, max_lr=0.1, step_size_up=5)
    expected = 1.0
    for _ in range(19):
        lr = optimizer.param_groups[0]["lr"]
        expected *= 1 - lr / 0.1 * 1e-2
        p.grad = torch.zeros(1, dtype=torch.float64)
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["base_lr"] == 0.1
    assert p.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW])
@pytest.mark.parametrize("style", ["decoupled", "independent", "corrected", "none", "l2", "constant"])
def test_lr_zero_is_finite(cls: Any, style: str) -> None:
    w = train(lambda p: cls(p, lr=0.0, weight_decay=0.1, style=style), [1.0, -2.0], torch.ones(2, 2), [0.0, 0.0])
    kept = 0.9**2 if style == "constant" else 1.0
    np.testing.assert_allclose(w, np.array([1.0, -2.0]) * kept, rtol=1e-12)


def test_none_gradient_skips_and_zero_gradient_decays() -> None:
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    for cls in (wd.AdamW, wd.SGDW):
        optimizer = cls([a, b], lr=0.1, weight_decay=0.5)
        before = b.detach().clone()
        a.grad, b.grad = None, torch.zeros(2)
        optimizer.step()
        assert torch.equal(a, torch.ones(2))
        torch.testing.assert_close(b.detach(), before * 0.95)


def test_nan_gradient_is_not_hidden() -> None:
    w = train(lambda p: wd.AdamW(p, lr=0.1, weight_decay=0.5, cautious_wd=True), [1.0, 1.0], [[math.nan, 0.0]], [0.1])
    assert math.isnan(w[0].item())
    assert w[1].item() == pytest.approx(0.95)


def test_cautious_does_not_underflow() -> None:
    """u * w underflows to -0 in float32, and -0 >= 0: only the signs may decide."""
    p = torch.nn.Parameter(torch.tensor([1e-30]))
    optimizer = wd.SGDW([p], lr=1.0, weight_decay=0.5, cautious_wd=True)
    p.grad = torch.tensor([-1e-30])
    optimizer.step()
    assert p.item() == torch.tensor(2e-30).item()
