"""The whole step in one pass over memory: every weight, gradient and state is read once and written once.

Both ways take the step from :mod:`lightning_wd.optimizers.formula`.

- Plain float32 and float64 weights on a CPU are stepped by one C++ call, :func:`_run_native`, compiled in a second.
- All others (CUDA, 16 bits) go through torch.compile, :func:`_run_graphs`, in half a minute. A graph takes 24, 6 or 1
  flat views of any length, and every number as a tensor: three graphs serve all tensors of a dtype, and neither a new
  learning rate nor a parameter without a gradient compiles again. Small tensors stay on the eager kernels, where a
  second pass over memory is cheap.

Inductor caches both on disk. Kahan summation is not compiled: Inductor removes the very roundings that it keeps.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from lightning_wd import _private
from lightning_wd.errors import ConfigError
from lightning_wd.optimizers.formula import Flags, Formula, advanced, as_cpp, decayed, rows_of, turn

log = logging.getLogger(__name__)

__all__ = ["MIN_NATIVE", "check_compiler", "compiles", "is_native", "kind_of", "kinds_of", "native_ready", "run_pass"]

_Columns = Sequence[Sequence[Tensor]]  # lists of one length, a tensor for each weight
_Rows = Sequence[Any]  # lists or tensors of numbers, a number for each weight

MIN_NATIVE = 2**18  # elements of a group that are worth compiling for where nobody asked for it
MIN_NUMEL = 2**18  # a graph's call costs more than it saves on smaller tensors
_CHUNKS = (24, 6, 1)  # tensors of one graph: more of them compile longer (24: 20 s), fewer mean more calls
_VARIANTS = 64  # graphs that one process may hold: three list lengths, by dtype, by combination of flags
_TYPES = {torch.float32: "float", torch.float64: "double"}

kind_of = attrgetter("__class__", "device", "dtype")  # what one kernel call must have in common
_dtype, _is_cpu, _nbytes = map(attrgetter, ("dtype", "is_cpu", "nbytes"))


def compiles(p: Tensor) -> bool:
    """Whether the compiled pass steps a weight: any size on the C++ path, only large ones through torch.compile."""
    return is_native(p) or p.numel() >= MIN_NUMEL


def is_native(p: Tensor) -> bool:
    """Whether the C++ call steps a weight: a plain float32 or float64 tensor in a CPU's memory."""
    return type(p) in (torch.nn.Parameter, Tensor) and p.is_cpu and p.dtype in _TYPES


def kinds_of(params: Sequence[Tensor]) -> dict[Any, Tensor]:
    """Return a tensor of each class, device and dtype: asking each of 1,000 small tensors costs time.

    torch.compile cannot trace that: while it traces, each tensor counts as a kind.
    """
    if torch.compiler.is_compiling():
        return dict(enumerate(params))
    if all(map(_is_cpu, params)) and len({*map(type, params)}) == 1 == len({*map(_dtype, params)}):  # asked faster
        return {kind_of(params[0]): params[0]}
    return dict(zip(map(kind_of, params), params, strict=True))


def check_compiler(device_types: set[str]) -> None:
    """Raise a ConfigError that says what to install where these devices have no compiler."""
    try:
        if lacks := _private.missing("get_cpp_compiler", "CppCodeCache", "has_triton", "dynamo_config", "fx_config"):
            raise RuntimeError(f"torch {torch.__version__} has no {', '.join(lacks)}")
        if "cpu" in device_types:
            _private.get_cpp_compiler()
        if "cuda" in device_types and not _private.has_triton():
            raise RuntimeError("Triton does not work here")
    except Exception as error:
        raise _no_compiler(error) from error


def _no_compiler(error: Exception) -> ConfigError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return ConfigError(
        "compile=True: torch.compile cannot make code here.",
        found=f"{type(error).__name__}: {reason}",
        fix="on CPU install a C++ compiler and Python's headers (Debian, Ubuntu: apt-get install g++ python3-dev), "
        "on CUDA install triton; or write compile=False",
    )


def run_pass(
    formula: Formula,
    flags: Flags,
    columns: Mapping[str, Sequence[Tensor]],
    rows: Mapping[str, Any],
    numbers: Mapping[str, Any],
    *,
    alike: bool = False,
) -> None:
    """Run a formula compiled, on tensors that are dense, each in the layout of its weight.

    Args:
        formula, flags: what to run; each combination of flags is compiled on its own.
        columns: weights, gradients and states by name; the formula knows which of them it takes.
        rows: lists or tensors of numbers by name, each as long as there are weights.
        numbers: floats or 0-dim tensors by name; one that is absent is not used.
        alike: the weights are known to be of one class, device and dtype.

    Raises:
        ConfigError: torch.compile cannot make code here.
    """
    taken = [columns[name] for name in formula.columns(flags)]
    values = [numbers.get(name, 0.0) for name in formula.numbers]
    each = [rows[name] for name in rows_of(formula, flags)]
    kinds = {None: taken[0][0]} if alike else kinds_of(taken[0])
    for kind, sample in kinds.items():
        part, own = taken, each
        if len(kinds) > 1:
            indices = [i for i, p in enumerate(taken[0]) if kind_of(p) == kind]
            part = [[c[i] for i in indices] for c in taken]
            own = [torch.as_tensor(row, dtype=torch.float64)[indices] for row in each]
        run = _run_native if is_native(sample) else _run_graphs
        try:
            run(formula, flags, part, own, values)
        except Exception as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise _no_compiler(error) from error
            raise


# --- one C++ call ---------------------------------------------------------------------------------------------------


def _run_native(formula: Formula, flags: Flags, columns: _Columns, rows: _Rows, numbers: Sequence[Any]) -> None:
    """Run a formula as one C++ call, on weights of one dtype."""
    params = columns[0]
    step = library(formula, params[0].dtype, flags).step
    expected = [*map(_nbytes, params)]
    names = formula.columns(flags)[1:]
    for name, column in zip(names, columns[1:], strict=True):  # read and written by address, so checked
        narrow = name == "anchor" and "narrow_anchor" in flags
        own = [2 * (n // params[0].itemsize) for n in expected] if narrow else expected
        if not all(map(_is_cpu, column)) or [*map(_nbytes, column)] != own:
            raise RuntimeError("compile=True: a gradient or state is not of its weight's dtype, device and size")
    sizes = array("q", expected)
    # From a list, since an array that grows takes longer.
    addresses = [array("q", [*map(Tensor.data_ptr, column)]) for column in columns]
    table = array("q", [each.buffer_info()[0] for each in addresses])
    per_tensor = array("d", [n for row in rows for n in (row.tolist() if isinstance(row, Tensor) else row)])
    values = array("d", map(float, numbers))
    step(
        ctypes.c_int(torch.get_num_threads()),
        ctypes.c_int64(len(sizes)),
        *(ctypes.c_void_p(each.buffer_info()[0]) for each in (sizes, table, per_tensor, values)),
    )
    torch.autograd.graph.increment_version(params)  # a backward pass through the old weights must fail


@functools.cache
def native_ready(formula: Formula, dtype: torch.dtype, flags: Flags) -> bool:
    """Whether the C++ call of a formula can be made here; the log says so, once for all."""
    try:
        check_compiler({"cpu"})
        library(formula, dtype, flags)
    except Exception as error:  # whatever a machine lacks: the step is right without it
        _say(f"compile=None: steps that torch's own kernel lacks take several passes. {error}")
        return False
    _say("compile=None: steps that torch's own kernel lacks run in one compiled pass.")
    return True


@functools.cache
def _say(line: str) -> None:
    log.info(line)


@functools.cache
def library(formula: Formula, dtype: torch.dtype, flags: Flags) -> Any:
    """Return the library that holds a formula's ``step``; made once a machine."""
    # GCC must vectorise these loops, which Inductor switches off, and square roots only vectorise without errno.
    flags_of_gcc = ("-ftree-loop-vectorize", "-fno-math-errno")
    return _private.load_cpp(as_cpp(formula, _TYPES[dtype], flags), flags_of_gcc)


# --- torch.compile --------------------------------------------------------------------------------------------------


def _run_graphs(formula: Formula, flags: Flags, columns: _Columns, rows: _Rows, numbers: Sequence[Any]) -> None:
    """Run a formula through torch.compile, on weights of one dtype."""
    sample = columns[0][0]
    op = torch.float64 if sample.dtype == torch.float64 else torch.float32
    scalars = torch.stack([torch.as_tensor(n, dtype=op, device=sample.device) for n in numbers])
    each = [torch.as_tensor(row, dtype=op, device=sample.device) for row in rows]
    table = torch.stack(each, dim=1) if each else torch.zeros(len(columns[0]), 0, dtype=op, device=sample.device)
    step = _compiled(formula, flags)
    # Lengths that happen to agree must not be assumed to. Entered once a step: it takes as long as a call.
    no_shape_guards = _private.fx_config.patch(use_duck_shape=False)
    with no_shape_guards, _private.dynamo_config.patch(cache_size_limit=_VARIANTS):
        for chunk in _chunks(list(range(len(columns[0])))):
            # Flat views in memory order: the tensors are dense and laid out alike, so elements still match.
            flat = [[c[i].as_strided((c[i].numel(),), (1,)) for i in chunk] for c in columns]
            step(flat, table[chunk], scalars)


def _chunks(indices: list[int]) -> Iterator[list[int]]:
    """Cut a list into chunks of the lengths that graphs are compiled for, longest first."""
    start = 0
    for length in _CHUNKS:
        while len(indices) - start >= length:
            yield indices[start : start + length]
            start += length


@functools.cache
def _compiled(formula: Formula, flags: Flags) -> Callable[[_Columns, Tensor, Tensor], None]:
    """Return a formula for torch.compile: a step of lists of flat tensors, a row of numbers for each, and scalars."""
    names, rows = formula.columns(flags), rows_of(formula, flags)

    def step(columns: _Columns, table: Tensor, scalars: Tensor) -> None:
        numbers = dict(zip(formula.numbers, scalars.unbind(), strict=True))
        for i in range(len(columns[0])):
            x = {**numbers, **{name: table[i, r] for r, name in enumerate(rows)}}
            for name, column in zip(names, columns, strict=True):
                x[name] = column[i].to(scalars.dtype)
            new, u = advanced(formula, x, flags)
            w = x["w"]
            if "hyperball" in flags:
                k, s = turn(x["lr"], x["radius"], (w * w).sum(), (w * u).sum(), (u * u).sum())
                new["w"] = k * (w - s * u)
            else:
                new["w"] = decayed(x, u, flags)
            for name, column in zip(names, columns, strict=True):
                if name in new:
                    column[i].copy_(new[name])

    return torch.compile(step, fullgraph=True, dynamic=True)
