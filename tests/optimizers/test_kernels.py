"""Kernels: layouts that the fused one gets wrong, AMP, low precision, shards, CUDA."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import pytest
import torch
from helpers.steps import OPTIMIZERS, inductor, run

import lightning_wd as wd
from lightning_wd.decay import STYLES
from lightning_wd.optimizers import SGDL2, AdamL2, kernels
from lightning_wd.optimizers.kernels import misfits


def layouts() -> dict[str, tuple[torch.Tensor, Any]]:
    """Weights and how their gradients lie in memory; each pair has the same values in the same places."""
    image = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    matrix = torch.randn(6, 7, generator=torch.Generator().manual_seed(1))
    last = torch.channels_last
    return {
        "contiguous": (image, lambda g: g.contiguous()),
        "channels_last both": (image.to(memory_format=last), lambda g: g.to(memory_format=last)),
        "channels_last weight": (image.to(memory_format=last), lambda g: g.contiguous()),
        "channels_last gradient": (image, lambda g: g.to(memory_format=last)),
        "transposed weight": (matrix.t(), lambda g: g.contiguous()),
        "transposed both": (matrix.t(), lambda g: g.t().contiguous().t()),
        "strided weight": (torch.randn(6, 14)[:, ::2], lambda g: g.contiguous()),
        "expanded gradient": (matrix, lambda g: g[:1].expand(6, 7)),
        "1x1 convolution": (image[:, :, :1, :1].contiguous(memory_format=last), lambda g: g.contiguous()),
    }


@pytest.mark.parametrize(("cls", "settings"), OPTIMIZERS)
def test_every_layout_steps_right(cls: Any, settings: dict[str, Any]) -> None:
    weights, places = zip(*layouts().values(), strict=True)
    loop = run(cls, {**settings, "foreach": False}, [w.clone() for w in weights], list(places))
    default = run(cls, settings, [w.clone() for w in weights], list(places))
    for name, a, b in zip(layouts(), default, loop, strict=True):
        torch.testing.assert_close(a, b, msg=functools.partial("{}: {}".format, name))


@pytest.mark.parametrize(("cls", "settings"), OPTIMIZERS)
def test_fused_on_a_bad_layout_is_refused_before_anything_changes(cls: Any, settings: dict[str, Any]) -> None:
    good = torch.nn.Parameter(torch.ones(2))
    bad = torch.nn.Parameter(torch.ones(6, 7).t())
    groups = [{"params": [("good", good)]}, {"params": [("bad", bad)], "name": "decay"}]
    optimizer = cls(groups, lr=0.1, fused=True, **settings)
    good.grad, bad.grad = torch.ones(2), torch.ones(7, 6)
    with pytest.raises(wd.ConfigError, match="fused=True is wrong for parameter 'bad' of group 'decay'") as error:
        optimizer.step()
    assert "found: shape (7, 6), strides (1, 7) of the parameter, (6, 1)" in str(error.value)
    assert "fix: leave out fused" in str(error.value)
    assert torch.equal(good, torch.ones(2))
    assert torch.equal(bad, torch.ones(7, 6))


def test_a_layout_that_changes_under_way_is_seen() -> None:
    """The state keeps the old layout when a model is moved to channels_last between two steps."""
    results = []
    for foreach in (None, False):
        p = torch.nn.Parameter(torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)))
        optimizer = wd.AdamW([p], lr=0.1, foreach=foreach)
        for t in range(3):
            p.grad = torch.cos(torch.arange(300.0) + t).reshape(p.shape)
            if t == 1:
                p.data = p.data.to(memory_format=torch.channels_last)
            if t:
                p.grad = p.grad.to(memory_format=torch.channels_last)
            optimizer.step()
        results.append(p.detach().contiguous())
    torch.testing.assert_close(*results)


def test_misfits() -> None:
    names, bad = list(layouts()), []
    for i, (weight, place) in enumerate(layouts().values()):
        p = weight.clone(memory_format=torch.preserve_format) if weight.is_contiguous() else weight
        if misfits([p], [[place(torch.randn(p.shape))]]):
            bad.append(names[i])
    assert bad == [
        "channels_last weight",
        "channels_last gradient",
        "transposed weight",
        "strided weight",
        "expanded gradient",
    ]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")  # any sparse tensor warns
def test_sparse_gradients_as_in_torch() -> None:
    p = torch.nn.Parameter(torch.ones(4, 2))
    p.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (4, 2))
    wd.SGDW([p], lr=0.1, weight_decay=0.5).step()
    expected = torch.full((4, 2), 0.95)
    expected[1] -= 0.1
    torch.testing.assert_close(p.detach(), expected)
    q = torch.nn.Parameter(torch.ones(4, 2))
    q.grad = p.grad
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        wd.AdamW([q], lr=0.1).step()


@pytest.mark.parametrize("mixed", [False, True])
def test_a_decay_around_a_fused_kernel_is_the_loops_bit_for_bit(mixed: bool) -> None:
    """On a CPU it is done by the fused SGD kernel, which is wrong on 16-bit weights: those must go another way."""
    dtypes = [torch.float32, torch.float64, torch.bfloat16] if mixed else [torch.float32]
    weights = [torch.randn(shape, dtype=dtype) for shape in [(7, 5), (33,), ()] for dtype in dtypes]
    runs = []
    for mode in ("fused", "single"):
        params = [w.clone() for w in weights]
        kernels.shrink(params, params, 0.01, mode)
        runs.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not any(torch.equal(a, w) for a, w in zip(runs[0], weights, strict=True))


@pytest.mark.parametrize("flags", [{}, {"fused": True}])
@pytest.mark.parametrize("settings", [{"style": "constant"}, {"cautious_wd": True}, {}], ids=str)
@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW])
def test_shards_of_fsdp2(cls: Any, settings: dict[str, Any], flags: dict[str, Any], mesh: Any) -> None:
    """torch has no fused SGD for DTensors, which is also the kernel of the decay around a fused step."""
    if cls is wd.SGDW and flags:
        pytest.skip("torch refuses it in its own words")
    from torch.distributed.tensor import Shard, distribute_tensor

    results = []
    for shard in (False, True):
        w = torch.linspace(-1, 1, 24).reshape(4, 6)
        p: Any = torch.nn.Parameter(distribute_tensor(w, mesh, [Shard(0)]) if shard else w)
        optimizer = cls([p], lr=0.1, weight_decay=0.01, **settings, **flags)
        for t in range(3):
            g = torch.cos(torch.arange(24.0) + t).reshape(4, 6)
            p.grad = distribute_tensor(g, mesh, [Shard(0)]) if shard else g
            optimizer.step()
        results.append(p.full_tensor().detach() if shard else p.detach())
    torch.testing.assert_close(*results)


# --- AMP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags", [{}, {"fused": True}, {"foreach": True}, {"fused": True, "kahan": True}, {"compile": True}]
)
@pytest.mark.parametrize(("cls", "settings"), OPTIMIZERS)
@inductor
def test_an_inf_step_changes_nothing(cls: Any, settings: dict[str, Any], flags: dict[str, Any]) -> None:
    """Skipped on the first step and on a later one, with the same result as if the bad steps had not been there."""
    results = []
    for bad_steps in ((0, 2), ()):
        p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = cls([p], lr=0.1, **settings, **flags)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
        for t in range(5):
            bad = t in bad_steps
            if not bad_steps and t in (0, 2):
                continue
            before = (
                p.detach().clone(),
                {k: torch.as_tensor(v).clone() for k, v in optimizer.state[p].items() if v is not None},
            )
            optimizer.zero_grad()
            loss = (p * torch.tensor([0.3, -0.2])).sum() * (float("inf") if bad else 1 + t)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if bad:
                assert torch.equal(p, before[0])
                for key, value in before[1].items():
                    assert torch.equal(optimizer.state[p][key], value), key
                scaler.update(1024.0)
        results.append(p.detach())
    torch.testing.assert_close(*results)


def test_amp_scaling_is_claimed_only_when_fused_is_asked_for() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    for cls in (wd.AdamW, wd.SGDW, AdamL2, SGDL2):
        assert not getattr(cls([p], lr=0.1), "_step_supports_amp_scaling", False)
        assert cls([p], lr=0.1, fused=True)._step_supports_amp_scaling


# --- low precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW])
@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"foreach": False}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kahan_keeps_a_decay_that_rounding_loses(cls: Any, flags: dict[str, Any], dtype: torch.dtype) -> None:
    """d = 1e-4 for 1,000 steps leaves 0.905 of the norm; in low precision 1 - 1e-4 is 1."""
    left = {}
    for kahan in (False, True):
        p = torch.nn.Parameter(torch.randn(512, generator=torch.Generator().manual_seed(0)).to(dtype))
        before = p.detach().double().norm()
        extra = {"eps": 1e-3} if cls is wd.AdamW else {}  # in float16 the default is 0, and 0 / 0 is NaN
        optimizer = cls([p], lr=0.1, weight_decay=1e-4, style="independent", kahan=kahan, **flags, **extra)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(1000):
                p.grad = torch.zeros_like(p)
                optimizer.step()
        left[kahan] = (p.detach().double().norm() / before).item()
        name = str(dtype).removeprefix("torch.")
        words = [str(w.message) for w in caught]
        assert len(words) == (0 if kahan else 1)
        if not kahan:
            assert f"the decay of group 0 is lost in {name}: a step removes d_t = 0.0001 of a weight" in words[0]
            assert f"half step {torch.finfo(dtype).eps / 4:.3g}" in words[0]
            assert "fix: write kahan=True" in words[0]
    assert left[False] == pytest.approx(1.0, abs=2e-3)
    assert left[True] == pytest.approx(0.905, abs=2e-3)


@pytest.mark.parametrize(
    ("cls", "dtype", "fix"),
    [
        (
            wd.AdamW,
            torch.bfloat16,
            "write kahan=True, or keep the weights in float32 (Lightning: precision=bf16-mixed), ",
        ),
        (wd.AdamW, torch.float32, "write kahan=True, "),
        (wd.decoupled(torch.optim.NAdam), torch.float32, ""),  # has no kahan
    ],
)
def test_a_lost_decay_names_only_what_can_help(cls: Any, dtype: torch.dtype, fix: str) -> None:
    p = torch.nn.Parameter(torch.ones(2, dtype=dtype))
    off = {"kahan": False} if dtype == torch.bfloat16 else {}
    optimizer = cls([p], lr=1e-3, weight_decay=1e-6, **off)
    p.grad = torch.ones_like(p)
    with pytest.warns(UserWarning, match="is lost in") as caught:
        optimizer.step()
    or_ = "or " * bool(fix)
    assert str(caught[0].message).endswith(f"fix: {fix}{or_}write a larger weight_decay, or 0")


@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW])
def test_kahan_by_default_where_16_bits_would_lose_the_decay(cls: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Only there, group by group, and said once; what is decided is saved."""
    caplog.set_level("INFO", "lightning_wd")
    dtypes = [torch.bfloat16, torch.bfloat16, torch.float32]
    params = [torch.nn.Parameter(torch.ones(2 + i, dtype=dtype)) for i, dtype in enumerate(dtypes)]
    lams = [1e-4, 0.1, 1e-4]
    groups = [{"params": [p], "weight_decay": lam} for p, lam in zip(params, lams, strict=True)]
    optimizer = cls(groups, lr=0.1)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert [group["kahan"] for group in optimizer.param_groups] == [True, False, False]
    assert ["kahan" in optimizer.state[p] for p in params] == [True, False, False]
    (line,) = caplog.messages
    assert line.startswith("kahan=None turns Kahan summation on: without it the decay of group 0 is lost in bfloat16")
    resumed = cls(groups, lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())  # None in the configuration is no difference: nothing warns
    assert [group["kahan"] for group in resumed.param_groups] == [True, False, False]


def test_a_state_saved_before_the_first_step_decided_on_kahan() -> None:
    optimizer = wd.AdamW([torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))], lr=1e-3, weight_decay=1e-2)
    before = copy.deepcopy(optimizer.state_dict())
    assert before["param_groups"][0]["kahan"] is None
    for _ in range(2):  # as a finder does: steps, and then the state of the start
        optimizer.param_groups[0]["params"][0].grad = torch.zeros(4, dtype=torch.bfloat16)
        optimizer.step()
        assert optimizer.param_groups[0]["kahan"] is True
        optimizer.load_state_dict(before)


def test_kahan_follows_float32_through_training() -> None:
    results = {}
    for dtype, kahan in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        p = torch.nn.Parameter(torch.linspace(0.5, 2, 256).to(dtype))
        optimizer = wd.AdamW([p], lr=1e-3, weight_decay=1e-3, style="independent", kahan=kahan)
        source = torch.Generator().manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(300):
                p.grad = torch.randn(256, generator=source).to(dtype)
                optimizer.step()
        results[dtype, kahan] = p.detach().double()
    exact = results[torch.float32, False]
    plain = (results[torch.bfloat16, False] - exact).norm() / exact.norm()
    compensated = (results[torch.bfloat16, True] - exact).norm() / exact.norm()
    assert compensated < 0.006  # bfloat16's own rounding is 2^-9 of a weight
    assert plain > 10 * compensated


def test_counts_of_steps_of_any_dtype() -> None:
    """torch counts in float64 where that is the default dtype, and a state may hold both."""
    for dtypes in ((torch.float32,) * 3, (torch.float64,) * 3, (torch.float32, torch.float64, torch.float32)):
        steps = [torch.tensor(float(2**24 - 2 - i), dtype=dtype) for i, dtype in enumerate(dtypes)]
        kernels.count_up(steps)
        assert [(s.item(), s.dtype) for s in steps] == [(2**24 - 1 - i, dtype) for i, dtype in enumerate(dtypes)]


# --- CUDA -----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "settings",
    [
        *({"style": style, "weight_decay": 1e-2} for style in STYLES if style != "hyperball"),
        {"style": "hyperball"},
        {"weight_decay": 1e-2, "cautious_wd": True},
        {"weight_decay": 1e-2, "toward": "init"},
        {"weight_decay": 1e-2, "toward": "init", "style": "l2"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW])
def test_a_captured_step_replays_at_another_learning_rate(cls: Any, settings: dict[str, Any]) -> None:
    extra = {"capturable": True} if cls is wd.AdamW else {"momentum": 0.9}
    results = []
    for captured in (False, True):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 64, device="cuda").view(8, 8))
        lr = torch.tensor(0.1, device="cuda")
        optimizer = cls([p], lr=lr, fused=True, **settings, **extra)
        p.grad = torch.ones_like(p)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
        for value in (0.1, 0.02):
            lr.fill_(value)
            graph.replay() if captured else optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("cls", "settings"), OPTIMIZERS)
def test_cuda_equals_cpu(cls: Any, settings: dict[str, Any]) -> None:
    results = []
    for device in ("cpu", "cuda"):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 64, device=device))
        optimizer = cls([p], lr=0.1, **settings)
        for t in range(3):
            p.grad = torch.cos(torch.arange(64.0) + t).to(device)
            optimizer.step()
        results.append(p.detach().cpu())
    torch.testing.assert_close(*results)
