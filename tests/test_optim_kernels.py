"""Kernels: layouts that fused would get wrong, AMP, partial momentum, low precision, compiled steps."""

from __future__ import annotations

import functools
import gc
import sys
import warnings
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import lightning_wd as wd
from lightning_wd.optimizers import SGDL2, AdamL2, compiled, kernels
from lightning_wd.optimizers.kernels import misfits
from lightning_wd.optimizers.native import _library

OPTIMIZERS = [
    pytest.param(wd.AdamW, {"weight_decay": 0.1}, id="AdamW"),
    pytest.param(wd.AdamW, {"weight_decay": 0.1, "cautious": True}, id="AdamW-cautious"),
    pytest.param(wd.AdamW, {"weight_decay": 0.01, "style": "constant"}, id="AdamW-constant"),
    pytest.param(AdamL2, {"weight_decay": 0.1}, id="AdamL2"),
    pytest.param(wd.SGDW, {"weight_decay": 0.1, "momentum": 0.9}, id="SGDW"),
    pytest.param(wd.SGDW, {"weight_decay": 0.1}, id="SGDW-plain"),
    pytest.param(
        wd.SGDW, {"weight_decay": 0.1, "momentum": 0.9, "nesterov": True, "cautious": True}, id="SGDW-nesterov"
    ),
    pytest.param(SGDL2, {"weight_decay": 0.1, "momentum": 0.9}, id="SGDL2"),
]
inductor = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning",
    "ignore:Skipping serialization of skipfiles_inline_module_allowlist:UserWarning",  # torch 2.6, of its own config
)


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


def run(cls: Any, settings: dict[str, Any], weights: list[torch.Tensor], lay: list[Any], steps: int = 3) -> list[Any]:
    params = [torch.nn.Parameter(w.clone(memory_format=torch.preserve_format)) for w in weights]
    params = [
        torch.nn.Parameter(w.detach()) if p.stride() != w.stride() else p for p, w in zip(params, weights, strict=True)
    ]
    optimizer = cls(params, lr=0.1, **settings)
    source = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for p, place in zip(params, lay, strict=True):
            p.grad = place(torch.randn(p.shape, generator=source))
        optimizer.step()
    return [p.detach().contiguous() for p in params]


@pytest.mark.parametrize(("cls", "settings"), OPTIMIZERS)
def test_every_layout_steps_right(cls: Any, settings: dict[str, Any]) -> None:
    weights, places = zip(*layouts().values(), strict=True)
    loop = run(cls, {**settings, "foreach": False}, [w.clone() for w in weights], list(places))
    default = run(cls, settings, [w.clone() for w in weights], list(places))
    for name, a, b in zip(layouts(), default, loop, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


def through_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled steps go the way of other devices and dtypes, on the CPU's float32."""
    monkeypatch.setattr(compiled, "is_native", lambda p: False)
    monkeypatch.setattr(compiled, "MIN_NUMEL", 2**14)


@inductor
@pytest.mark.parametrize("native", [True, False], ids=["native", "graphs"])
@pytest.mark.parametrize(("cls", "settings"), OPTIMIZERS)
def test_compiled_steps_equal_eager_ones(
    cls: Any, settings: dict[str, Any], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    if not native:
        through_graphs(monkeypatch)
    big = [torch.randn(*shape) for shape in [(130, 140), (2**14,), (64, 3, 10, 10), (130, 140)] + [(128, 129)] * 6]
    big[2] = big[2].to(memory_format=torch.channels_last)
    weights = [*big, torch.randn(200, 100).t(), torch.randn(3, 3), torch.randn(())]
    places = [lambda g: g] * len(weights)
    places[2] = lambda g: g.to(memory_format=torch.channels_last)
    eager = run(cls, settings, weights, places)
    before = counters["stats"]["unique_graphs"]
    steps = run(cls, {**settings, "compile": True}, weights, places)
    graphs = counters["stats"]["unique_graphs"] - before
    assert graphs == 0 if native else graphs > 0 or settings == {"weight_decay": 0.01, "style": "constant"}
    for a, b in zip(steps, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=3e-5)  # where m cancels, m / sqrt(v) shows its rounding


def test_chunks_hold_every_tensor_once_in_three_lengths() -> None:
    for count in range(80):
        chunks = list(compiled._chunks(list(range(count))))
        assert [i for chunk in chunks for i in chunk] == list(range(count))
        assert {len(chunk) for chunk in chunks} <= {24, 6, 1}
        assert sum(len(chunk) == 1 for chunk in chunks) < 6


@inductor
@pytest.mark.parametrize("native", [True, False], ids=["native", "graphs"])
@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW])
def test_nothing_compiles_again(cls: Any, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another learning rate, decay, set of gradients or size of tensor is no new graph and no new library."""
    if not native:
        through_graphs(monkeypatch)
    params = [torch.nn.Parameter(torch.randn(2**14 + 8 * i)) for i in range(9)]
    extra = {"momentum": 0.9} if cls is wd.SGDW else {}
    optimizer = cls(params, lr=0.1, weight_decay=1e-3, style="independent", compile=True, **extra)
    seen = []
    for t in range(8):
        group = optimizer.param_groups[0]
        group["lr"], group["weight_decay"] = 0.1 / (t + 1), 1e-3 * (t + 1)
        for p in params:
            p.grad = torch.ones_like(p)
        if t > 4:
            params[t - 4].grad = None
        optimizer.step()
        seen.append(counters["stats"]["unique_graphs"] + _library.cache_info().misses)
    assert seen[1] - seen[0] <= 2
    assert seen[1:] == [seen[1]] * 7


def test_a_graph_from_before_a_native_step_does_not_go_backward() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = wd.SGDW([p], lr=0.1, compile=True)
    loss = p.square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_native_step_reads_and_writes_nothing_but_its_tensors() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = wd.AdamW([p], compile=True)
    p.grad = torch.ones(3)
    optimizer.step()
    for state in (torch.zeros(2), torch.zeros(3, dtype=torch.float64), torch.zeros(3, device="meta")):
        optimizer.state[p]["exp_avg"] = state
        with pytest.raises(RuntimeError, match="a gradient or state is not of its weight's dtype, device and size"):
            optimizer.step()


@pytest.mark.parametrize(("cls", "settings"), OPTIMIZERS)
def test_a_step_that_the_user_compiles(cls: Any, settings: dict[str, Any]) -> None:
    """torch.compile(optimizer.step): right, and at most two graphs over changing learning rates and decays."""
    torch._dynamo.reset()
    results = []
    for by_user in (False, True):
        params = [torch.nn.Parameter(torch.linspace(-1, 1, 8).reshape(2, 4)), torch.nn.Parameter(torch.ones(3))]
        optimizer = cls(params, lr=0.1, **settings)
        graphs = CompileCounter()
        step = torch.compile(optimizer.step, backend=graphs) if by_user else optimizer.step
        for t in range(6):
            for p in params:
                p.grad = torch.cos(torch.arange(float(p.numel())) + t).reshape(p.shape)
            optimizer.param_groups[0]["weight_decay"] = settings["weight_decay"] / (t + 1)
            step()
        results.append([p.detach() for p in params])
    # Two frames, each compiled once with a number and once with a symbol. SGD with momentum is right but compiles more
    # often, up to Dynamo's own limit: for it there is compile=True.
    assert graphs.frame_count >= 1
    assert graphs.frame_count <= 4 or settings.get("momentum")
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-4, atol=1e-5
        )  # a compiled Adam corrects its bias in float32, torch's too


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


def python_calls(function: Any) -> int:
    calls = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    gc.disable()  # the finalizers of what other tests have left would be counted
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
        gc.enable()
    return calls


@pytest.mark.parametrize("flags", [{}, {"amsgrad": True}, {"maximize": True}], ids=str)
@pytest.mark.parametrize("l2", [False, True], ids=["AdamW", "AdamL2"])
def test_a_fused_step_is_torchs_to_the_last_bit_by_no_more_python(l2: bool, flags: dict[str, Any]) -> None:
    peer, style = (torch.optim.Adam, "l2") if l2 else (torch.optim.AdamW, "decoupled")
    params, optimizers = [], []
    for make in (peer, functools.partial(wd.AdamW, style=style)):
        source = torch.Generator().manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(shape, generator=source)) for shape in ((4, 3), (5,), (2, 2), (3,))]
        groups = [{"params": weights[:2]}, {"params": weights[2:], "weight_decay": 0.0}]
        params.append(weights)
        optimizers.append(make(groups, lr=0.1, weight_decay=0.1, fused=True, **flags))
    for _ in range(3):
        for weights in zip(*params, strict=True):
            gradient = torch.randn(weights[0].shape)
            for w in weights:
                w.grad = gradient.clone()
        theirs, ours = (python_calls(optimizer.step) for optimizer in optimizers)
        for theirs_w, ours_w in zip(*params, strict=True):
            assert torch.equal(theirs_w, ours_w)
            states = [optimizer.state[w] for optimizer, w in zip(optimizers, (theirs_w, ours_w), strict=True)]
            assert states[0].keys() == states[1].keys()
            assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert ours <= theirs


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


def test_gradients_that_come_late_join_a_group_under_way() -> None:
    """torch's fused SGD takes all momentum buffers or none; a parameter unfrozen later has none yet."""
    for settings in ({}, {"fused": True}, {"foreach": False}):
        a, b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
        optimizer = wd.SGDW([a, b], lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1, **settings)
        for t in range(4):
            a.grad = torch.ones(3)
            b.grad = torch.ones(3) if t >= 2 else None
            optimizer.step()
        alone = torch.nn.Parameter(torch.ones(3))
        optimizer = wd.SGDW([alone], lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1)
        for _ in range(2):
            alone.grad = torch.ones(3)
            optimizer.step()
        torch.testing.assert_close(b, alone)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fused_sgd_on_low_precision_cpu_weights(dtype: torch.dtype) -> None:
    """torch's kernel (2.13) leaves all but the last few elements as they were; ours must not."""
    for settings in ({}, {"weight_decay": 0.5}, {"momentum": 0.9, "style": "l2", "weight_decay": 0.5}):
        results = []
        for flags in ({}, {"foreach": False}):
            p = torch.nn.Parameter(torch.ones(100, dtype=dtype))
            optimizer = wd.SGDW([p], lr=0.1, **settings, **flags)
            for _ in range(2):
                p.grad = torch.ones_like(p)
                optimizer.step()
            results.append(p.detach())
        assert torch.equal(*results)
        assert (results[0] < 0.9).all()
    p = torch.nn.Parameter(torch.ones(100, dtype=dtype))
    p.grad = torch.ones_like(p)
    with pytest.raises(wd.ConfigError, match=r"fused=True is wrong for parameter 0 of group 0: on a CPU torch's fused"):
        wd.SGDW([p], lr=0.1, fused=True).step()


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


@pytest.fixture
def mesh() -> Any:
    """A mesh of this process alone."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("flags", [{}, {"fused": True}])
@pytest.mark.parametrize("settings", [{"style": "constant"}, {"cautious": True}, {}], ids=str)
@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW])
def test_shards_of_fsdp2(cls: Any, settings: dict[str, Any], flags: dict[str, Any], mesh: Any) -> None:
    """torch has no fused SGD for DTensors, which is also the kernel of the decay around a fused step."""
    if cls is wd.SGDW and flags:
        pytest.skip("torch refuses it in its own words")
    from torch.distributed.tensor import Shard, distribute_tensor

    results = []
    for shard in (False, True):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 24).reshape(4, 6))
        p = torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) if shard else p
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


# --- CUDA -----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("style", ["decoupled", "independent", "constant", "corrected", "none", "l2"])
@pytest.mark.parametrize("cls", [wd.AdamW, wd.SGDW])
def test_a_captured_step_replays_at_another_learning_rate(cls: Any, style: str) -> None:
    extra = {"capturable": True} if cls is wd.AdamW else {"momentum": 0.9}
    results = []
    for captured in (False, True):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 64, device="cuda"))
        lr = torch.tensor(0.1, device="cuda")
        optimizer = cls([p], lr=lr, weight_decay=1e-2, style=style, fused=True, **extra)
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
