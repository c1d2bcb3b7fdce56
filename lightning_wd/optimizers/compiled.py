"""The whole step in one compiled pass: every byte of weight, gradient and state is read once and written once.

Weights of float32 and float64 in a CPU's memory are stepped by one C++ call, see :mod:`native`. Others (CUDA, 16 bits)
go through torch.compile: as flat views of any length, in lists of three fixed numbers, and every number as a tensor. So
three graphs, compiled in half a minute and then read from Inductor's cache on disk, serve all tensors of a dtype, and
neither a learning rate nor a parameter that has no gradient this time compiles anything again. There small tensors stay
on the eager kernels: their second pass hits the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from lightning_wd.errors import ConfigError, explain
from lightning_wd.optimizers.native import is_native, run_native

__all__ = ["adam_pass", "check_compiler", "compiles", "kind_of", "kinds_of", "run_pass", "sgd_pass"]

MIN_NUMEL = 2**18  # below, a call costs more than the bytes it saves
_CHUNKS = (24, 6, 1)  # tensors of one graph: more of them take longer to compile (24: 20 s), fewer cost more calls
_VARIANTS = 64  # graphs that one process may hold: three list lengths, by dtype, by combination of flags


def compiles(p: Tensor) -> bool:
    """Whether a weight is stepped by the compiled pass: one call takes all on a CPU, elsewhere large ones only."""
    return is_native(p) or p.numel() >= MIN_NUMEL


kind_of = attrgetter("__class__", "device", "dtype")


def kinds_of(params: Sequence[Tensor]) -> list[Tensor]:
    """Return one tensor of each class, device and dtype: asking every one of 1,000 small tensors shows in a step."""
    if torch.compiler.is_compiling():
        return list(params)
    return list(dict(zip(map(kind_of, params), params, strict=True)).values())


def check_compiler(device_types: set[str]) -> None:
    """Raise a ConfigError that says what to install where torch.compile cannot make code for these devices."""
    try:
        if "cpu" in device_types:
            from torch._inductor.cpp_builder import get_cpp_compiler

            get_cpp_compiler()
        if "cuda" in device_types:
            from torch.utils._triton import has_triton

            if not has_triton():
                raise RuntimeError("Triton does not work here")
    except Exception as error:
        raise _no_compiler(error) from error


def _no_compiler(error: Exception) -> ConfigError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return ConfigError(
        explain(
            "compile=True: torch.compile cannot make code here.",
            found=f"{type(error).__name__}: {reason}",
            fix="on CPU install a C++ compiler and Python's headers (Debian, Ubuntu: apt-get install g++ python3-dev), "
            "on CUDA install triton; or write compile=False",
        )
    )


def adam_pass(
    columns: Sequence[list[Tensor]],
    per_tensor: Tensor,
    numbers: Tensor,
    *,
    amsgrad: bool,
    maximize: bool,
    penalty: bool,
    cautious: bool,
) -> None:
    """Do one step of Adam on lists of weights, gradients, both moments and (amsgrad) the second moment's maximum.

    Args:
        columns: the lists, each with one tensor per weight.
        per_tensor: for each weight its step size ``lr / (1 - b1^t)`` and ``sqrt(1 - b2^t)``; shape (n, 2).
        numbers: ``1 - b1, b2, 1 - b2, eps, d_t, lam``; ``lam`` is an L2 penalty's.
        amsgrad, maximize, penalty, cautious: which terms there are.
    """
    c1, b2, c2, eps, d, lam = numbers.unbind()
    params, grads, exp_avgs, exp_avg_sqs = columns[:4]
    for i in range(len(params)):
        p, op = params[i], numbers.dtype
        w, g = p.to(op), grads[i].to(op)
        g = -g if maximize else g
        g = g + lam * w if penalty else g
        m, v = exp_avgs[i].to(op), exp_avg_sqs[i].to(op)
        m = m + c1 * (g - m)
        v = b2 * v + c2 * g * g
        exp_avgs[i].copy_(m)
        exp_avg_sqs[i].copy_(v)
        if amsgrad:
            v = torch.maximum(columns[4][i].to(op), v)
            columns[4][i].copy_(v)
        u = m / (v.sqrt() / per_tensor[i, 1] + eps)
        old = torch.where(m * w.sign() >= 0, w, torch.zeros_like(w)) if cautious else w
        p.copy_(w - per_tensor[i, 0] * u - d * old)


def sgd_pass(
    columns: Sequence[list[Tensor]],
    per_tensor: Tensor,
    numbers: Tensor,
    *,
    momentum: bool,
    nesterov: bool,
    maximize: bool,
    penalty: bool,
    cautious: bool,
) -> None:
    """Do one step of SGD on lists of weights, gradients and (momentum) buffers that exist already.

    Args:
        columns: the lists, each with one tensor per weight.
        per_tensor: not used; it stands where Adam's does.
        numbers: ``lr_t, mu, 1 - dampening, d_t, lam``; ``lam`` is an L2 penalty's.
        momentum, nesterov, maximize, penalty, cautious: which terms there are.
    """
    lr, mu, c, d, lam = numbers.unbind()
    params, grads = columns[:2]
    for i in range(len(params)):
        p, op = params[i], numbers.dtype
        w, g = p.to(op), grads[i].to(op)
        g = -g if maximize else g
        g = g + lam * w if penalty else g
        u = g
        if momentum:
            m = mu * columns[2][i].to(op) + c * g
            columns[2][i].copy_(m)
            u = g + mu * m if nesterov else m
        old = torch.where(u * w.sign() >= 0, w, torch.zeros_like(w)) if cautious else w
        p.copy_(w - lr * u - d * old)


def run_pass(
    function: Callable[..., None],
    columns: list[list[Tensor]],
    per_tensor: Tensor,
    numbers: Sequence[Any],
    **flags: bool,
) -> None:
    """Run a pass compiled, on tensors that are dense, each in the layout of its weight.

    Args:
        function: :func:`adam_pass` or :func:`sgd_pass`.
        columns: lists of tensors, or empty lists.
        per_tensor: rows for each weight, as the pass wants them.
        numbers: floats or 0-dim tensors, as the pass wants them.
        flags: static terms of the pass; each combination is a graph of its own.

    Raises:
        ConfigError: torch.compile cannot make code here.
    """
    kinds = kinds_of(columns[0])
    for kind in kinds:
        part, rows = columns, per_tensor
        if len(kinds) > 1:
            like = (type(kind), kind.device, kind.dtype)
            indices = [i for i, p in enumerate(columns[0]) if (type(p), p.device, p.dtype) == like]
            part, rows = [[c[i] for i in indices] if c else [] for c in columns], per_tensor[indices]
        try:
            if is_native(kind):
                run_native("adam" if function is adam_pass else "sgd", part, rows, numbers, flags)
            else:
                _run_graphs(function, part, rows.to(kind.device), numbers, flags, kind.dtype)
        except Exception as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise _no_compiler(error) from error
            raise


def _run_graphs(
    function: Callable[..., None],
    columns: list[list[Tensor]],
    rows: Tensor,
    numbers: Sequence[Any],
    flags: dict[str, bool],
    dtype: torch.dtype,
) -> None:
    """Run a pass through torch.compile, on weights of one dtype."""
    op, step = torch.float64 if dtype == torch.float64 else torch.float32, _compiled(function)
    scalars = torch.stack([torch.as_tensor(n, dtype=op, device=rows.device) for n in numbers])
    rows = rows.to(op)
    with _no_shape_guards():  # once a step: entering it takes as long as a call
        for chunk in _chunks(list(range(len(columns[0])))):
            # Flat views: the tensors are dense, so memory order is an order of elements, the same in every column.
            flat = [[c[i].as_strided((c[i].numel(),), (1,)) for i in chunk] for c in columns if c]
            step(flat, rows[chunk], scalars, **flags)


def _chunks(indices: list[int]) -> Iterator[list[int]]:
    """Cut a list into pieces of the lengths that graphs are made for, the longest first."""
    start = 0
    for length in _CHUNKS:
        while len(indices) - start >= length:
            yield indices[start : start + length]
            start += length


@functools.cache
def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    return torch.compile(function, fullgraph=True, dynamic=True)


def _no_shape_guards() -> Any:
    """Return a context in which lengths that happen to agree are not compiled in as equal."""
    from contextlib import ExitStack

    import torch._dynamo.config
    import torch.fx.experimental._config

    stack = ExitStack()
    stack.enter_context(torch.fx.experimental._config.patch(use_duck_shape=False))  # type: ignore[attr-defined]
    stack.enter_context(torch._dynamo.config.patch(cache_size_limit=_VARIANTS))
    return stack
