"""The whole step in one pass over memory: every weight, gradient and state is read once and written once.

- Plain float32 and float64 weights on a CPU are stepped by one C++ call, :func:`_run_native`, compiled in seconds.
- All others (CUDA, 16 bits) go through torch.compile, :func:`_run_graphs`, in half a minute. A graph takes 24, 6 or 1
  flat views of any length, and every number as a tensor: three graphs serve all tensors of a dtype, and neither a new
  learning rate nor a parameter without a gradient compiles again. Small tensors stay on the eager kernels, where a
  second pass over memory is cheap.

Inductor caches both on disk.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from lightning_wd import _private
from lightning_wd.errors import ConfigError

__all__ = ["adam_pass", "check_compiler", "compiles", "is_native", "kind_of", "kinds_of", "run_pass", "sgd_pass"]

_Pass = Callable[..., None]
_Columns = Sequence[Sequence[Tensor]]  # lists of one length, a tensor for each weight, or empty ones
_Flags = dict[str, bool]  # which terms a pass has

MIN_NUMEL = 2**18  # a graph's call costs more than it saves on smaller tensors
_CHUNKS = (24, 6, 1)  # tensors of one graph: more of them compile longer (24: 20 s), fewer mean more calls
_VARIANTS = 64  # graphs that one process may hold: three list lengths, by dtype, by combination of flags
_TYPES = {torch.float32: "float", torch.float64: "double"}

kind_of = attrgetter("__class__", "device", "dtype")  # what one kernel call must have in common


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


def run_pass(function: _Pass, columns: _Columns, per_tensor: Tensor, numbers: Sequence[Any], **flags: bool) -> None:
    """Run :func:`adam_pass` or :func:`sgd_pass` compiled, on tensors that are dense, each in the layout of its weight.

    The numbers may be floats or 0-dim tensors. Each combination of flags is compiled on its own.

    Raises:
        ConfigError: torch.compile cannot make code here.
    """
    kinds = kinds_of(columns[0])
    for kind, sample in kinds.items():
        part, rows = columns, per_tensor
        if len(kinds) > 1:
            indices = [i for i, p in enumerate(columns[0]) if kind_of(p) == kind]
            part, rows = [[c[i] for i in indices] if c else [] for c in columns], per_tensor[indices]
        run = _run_native if is_native(sample) else _run_graphs
        try:
            run(function, part, rows.to(sample.device), numbers, flags)
        except Exception as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise _no_compiler(error) from error
            raise


# --- one C++ call ---------------------------------------------------------------------------------------------------

_BEGIN = r"""
#include <cmath>
#include <cstdint>

// count tensors of lengths n: weights w, gradients g, states a, b, c (as many as there are); two rows for each tensor.
extern "C" void step(int threads, int64_t count, const int64_t* n, T* const* ws, const T* const* gs, T* const* as,
                     T* const* bs, T* const* cs, const double* rows, const double* numbers) {
"""

_ADAM = r"""
  const T c1 = numbers[0], b2 = numbers[1], c2 = numbers[2], eps = numbers[3], d = numbers[4], lam = numbers[5];
  #pragma omp parallel num_threads(threads)
  for (int64_t i = 0; i < count; ++i) {
    T* __restrict__ w = ws[i];
    const T* __restrict__ g = gs[i];
    T* __restrict__ m = as[i];
    T* __restrict__ v = bs[i];
    T* __restrict__ top = AMSGRAD ? cs[i] : nullptr;
    const T size = rows[2 * i], root = rows[2 * i + 1];
    #pragma omp for simd schedule(static) nowait
    for (int64_t j = 0; j < n[i]; ++j) {
      const T old = w[j];
      T grad = MAXIMIZE ? -g[j] : g[j];
      if (PENALTY) grad += lam * old;
      const T mean = m[j] + c1 * (grad - m[j]);
      T square = b2 * v[j] + c2 * grad * grad;
      m[j] = mean;
      v[j] = square;
      if (AMSGRAD) {
        square = top[j] > square ? top[j] : square;
        top[j] = square;
      }
      const T u = mean / (std::sqrt(square) / root + eps);
      const T decayed = !CAUTIOUS || (old < 0 ? -mean : mean) >= 0 ? old : T(0);
      w[j] = old - size * u - d * decayed;
    }
  }
}
"""

_SGD = r"""
  const T lr = numbers[0], mu = numbers[1], c = numbers[2], d = numbers[3], lam = numbers[4];
  #pragma omp parallel num_threads(threads)
  for (int64_t i = 0; i < count; ++i) {
    T* __restrict__ w = ws[i];
    const T* __restrict__ g = gs[i];
    T* __restrict__ m = MOMENTUM ? as[i] : nullptr;
    #pragma omp for simd schedule(static) nowait
    for (int64_t j = 0; j < n[i]; ++j) {
      const T old = w[j];
      T grad = MAXIMIZE ? -g[j] : g[j];
      if (PENALTY) grad += lam * old;
      T u = grad;
      if (MOMENTUM) {
        const T sum = mu * m[j] + c * grad;
        m[j] = sum;
        u = NESTEROV ? grad + mu * sum : sum;
      }
      const T decayed = !CAUTIOUS || (old < 0 ? -u : u) >= 0 ? old : T(0);
      w[j] = old - lr * u - d * decayed;
    }
  }
}
"""


def _run_native(function: _Pass, columns: _Columns, rows: Tensor, numbers: Sequence[Any], flags: _Flags) -> None:
    """Run a pass as one C++ call, on weights of one dtype."""
    params = columns[0]
    step = _library(function, _TYPES[params[0].dtype], *flags.items()).step
    lengths = array("q", map(Tensor.numel, params))
    for column in filter(None, columns):  # read and written by address, so checked
        kinds = set(zip(map(attrgetter("dtype"), column), map(attrgetter("is_cpu"), column), strict=True))
        if kinds != {(params[0].dtype, True)} or array("q", map(Tensor.numel, column)) != lengths:
            raise RuntimeError("compile=True: a gradient or state is not of its weight's dtype, device and size")
    addresses = [array("q", map(Tensor.data_ptr, column)) for column in columns]
    pointers = [ctypes.c_void_p(a.buffer_info()[0]) for a in addresses]
    pointers += [ctypes.c_void_p(None)] * (5 - len(pointers))
    per_tensor, values = array("d", rows.double().flatten().tolist()), array("d", map(float, numbers))
    step(
        ctypes.c_int(torch.get_num_threads()),
        ctypes.c_int64(len(lengths)),
        ctypes.c_void_p(lengths.buffer_info()[0]),
        *pointers,
        ctypes.c_void_p(per_tensor.buffer_info()[0]),
        ctypes.c_void_p(values.buffer_info()[0]),
    )
    torch.autograd.graph.increment_version(params)  # a backward pass through the old weights must fail


@functools.cache
def _library(function: _Pass, real: str, *flags: tuple[str, bool]) -> Any:
    terms = "".join(f"constexpr bool {flag.upper()} = {str(on).lower()};\n" for flag, on in flags)
    source = f"typedef {real} T;\n{terms}{_BEGIN}{_ADAM if function is adam_pass else _SGD}"
    # GCC must vectorise these loops, which Inductor switches off, and square roots only vectorise without errno.
    return _private.CppCodeCache.load_async(source, extra_flags=("-ftree-loop-vectorize", "-fno-math-errno"))()


# --- torch.compile --------------------------------------------------------------------------------------------------


def adam_pass(
    columns: _Columns,
    per_tensor: Tensor,
    numbers: Tensor,
    *,
    amsgrad: bool,
    maximize: bool,
    penalty: bool,
    cautious: bool,
) -> None:
    """Do one step of Adam on lists of weights, gradients, both moments and (amsgrad) the second moment's maximum.

    ``per_tensor`` holds ``lr / (1 - b1^t)`` and ``sqrt(1 - b2^t)`` of each weight, in shape (n, 2); ``numbers`` are
    ``1 - b1, b2, 1 - b2, eps, d_t, lam``, the last of an L2 penalty.
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
    columns: _Columns,
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

    ``numbers`` are ``lr_t, mu, 1 - dampening, d_t, lam``, the last of an L2 penalty; ``per_tensor`` is not used.
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


def _run_graphs(function: _Pass, columns: _Columns, rows: Tensor, numbers: Sequence[Any], flags: _Flags) -> None:
    """Run a pass through torch.compile, on weights of one dtype."""
    op = torch.float64 if columns[0][0].dtype == torch.float64 else torch.float32
    scalars = torch.stack([torch.as_tensor(n, dtype=op, device=rows.device) for n in numbers])
    step, rows = _compiled(function), rows.to(op)
    # Lengths that happen to agree must not be assumed to. Entered once a step: it takes as long as a call.
    no_shape_guards = _private.fx_config.patch(use_duck_shape=False)
    with no_shape_guards, _private.dynamo_config.patch(cache_size_limit=_VARIANTS):
        for chunk in _chunks(list(range(len(columns[0])))):
            # Flat views in memory order: the tensors are dense and laid out alike, so elements still match.
            flat = [[c[i].as_strided((c[i].numel(),), (1,)) for i in chunk] for c in columns if c]
            step(flat, rows[chunk], scalars, **flags)


def _chunks(indices: list[int]) -> Iterator[list[int]]:
    """Cut a list into chunks of the lengths that graphs are compiled for, longest first."""
    start = 0
    for length in _CHUNKS:
        while len(indices) - start >= length:
            yield indices[start : start + length]
            start += length


@functools.cache
def _compiled(function: _Pass) -> _Pass:
    return torch.compile(function, fullgraph=True, dynamic=True)
