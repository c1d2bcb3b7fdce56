"""The compiled pass on a CPU: one C++ call steps every tensor of a group.

Inductor's compiler makes a library of the source below for each dtype and combination of terms, in two seconds, and
keeps it in its cache on disk. A call takes addresses and lengths, so no size, number of tensors or learning rate
compiles anything again.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_native", "run_native"]

_TYPES = {torch.float32: "float", torch.float64: "double"}

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


def is_native(p: Tensor) -> bool:
    """Whether a weight is one that a C++ call can step: a plain tensor in a CPU's memory, float32 or float64."""
    return type(p) in (torch.nn.Parameter, Tensor) and p.is_cpu and p.dtype in _TYPES


def run_native(
    name: str, columns: Sequence[Sequence[Tensor]], per_tensor: Tensor, numbers: Sequence[Any], flags: dict[str, bool]
) -> None:
    """Step weights of one dtype, each dense and in the layout of its gradient and state.

    Args:
        name: "adam" or "sgd".
        columns: weights, gradients and states; lists of one length, or empty.
        per_tensor: two numbers for each weight, or none.
        numbers: what the pass wants, floats or 0-dim tensors.
        flags: the terms of the pass.

    Raises:
        RuntimeError: the compiler failed, or a gradient or state is not like its weight.
    """
    params = columns[0]
    step = _library(name, _TYPES[params[0].dtype], *flags.items()).step
    lengths = array("q", map(Tensor.numel, params))
    for column in filter(None, columns):  # what is read and written by address
        kinds = set(zip(map(attrgetter("dtype"), column), map(attrgetter("is_cpu"), column), strict=True))
        if kinds != {(params[0].dtype, True)} or array("q", map(Tensor.numel, column)) != lengths:
            raise RuntimeError("compile=True: a gradient or state is not of its weight's dtype, device and size")
    addresses = [array("q", map(Tensor.data_ptr, column)) for column in columns]
    pointers = [ctypes.c_void_p(a.buffer_info()[0]) for a in addresses]
    pointers += [ctypes.c_void_p(None)] * (5 - len(pointers))
    rows, values = array("d", per_tensor.double().flatten().tolist()), array("d", map(float, numbers))
    step(
        ctypes.c_int(torch.get_num_threads()),
        ctypes.c_int64(len(lengths)),
        ctypes.c_void_p(lengths.buffer_info()[0]),
        *pointers,
        ctypes.c_void_p(rows.buffer_info()[0]),
        ctypes.c_void_p(values.buffer_info()[0]),
    )
    torch.autograd.graph.increment_version(params)  # so that a graph that saved them refuses to go backward


@functools.cache
def _library(name: str, real: str, *flags: tuple[str, bool]) -> Any:
    from torch._inductor.codecache import CppCodeCache

    terms = "".join(f"constexpr bool {flag.upper()} = {str(on).lower()};\n" for flag, on in flags)
    source = f"typedef {real} T;\n{terms}{_BEGIN}{_ADAM if name == 'adam' else _SGD}"
    # Inductor vectorises by itself and switches it off for GCC, which takes no square root that may set errno either.
    return CppCodeCache.load_async(source, extra_flags=("-ftree-loop-vectorize", "-fno-math-errno"))()
