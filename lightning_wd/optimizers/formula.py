"""A whole step, written once: torch computes it on tensors, and :func:`as_cpp` writes it as C++.

A formula is arithmetic on values by name, with operators and methods that a tensor and a :class:`_Term` share. So what
torch.compile traces and what the C++ compiler gets cannot differ.

=============  =======================================================================================================
value          meaning
=============  =======================================================================================================
w, g           weight and gradient
m, v, top      Adam's moments and (amsgrad) the largest ``v``; ``m`` is also SGD's momentum buffer
anchor         ``w*``, what the weight decays towards; without it towards 0
size           what multiplies ``u``: ``lr_t`` for SGD, ``lr_t / (1 - b1^t)`` for Adam, whose ``u`` is made of ``m``
root           ``1 / sqrt(1 - b2^t)``
d, lam         ``d_t``, and ``lam`` of an L2 penalty
radius         of the hyperball: ``||W_0||``
=============  =======================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["ADAM", "SGD", "Flags", "Formula", "advanced", "as_cpp", "decayed", "rows_of", "turn"]

Values = dict[str, Any]  # tensors, or terms
# Of: amsgrad, cautious, hyperball, l2, maximize, momentum, narrow_anchor (of bfloat16), nesterov, toward.
Flags = frozenset[str]


class Formula(NamedTuple):
    """An optimizer's own part of a step; decay and hyperball are the same for all."""

    state: Callable[[Values, Flags], Values]  # the new states, from the gradient
    direction: Callable[[Values, Flags], Any]  # ``u``, from the new states
    columns: Callable[[Flags], tuple[str, ...]]  # what each weight has, itself first
    rows: tuple[str, ...]  # numbers of each weight
    numbers: tuple[str, ...]  # numbers of the whole group


def rows_of(formula: Formula, flags: Flags) -> tuple[str, ...]:
    """Return the names of the numbers of each weight, the hyperball's included."""
    return (*formula.rows, "radius") if "hyperball" in flags else formula.rows


def advanced(formula: Formula, x: Values, flags: Flags) -> tuple[Values, Any]:
    """Return the new states and the direction ``u``."""
    g = -x["g"] if "maximize" in flags else x["g"]
    x = {**x, "g": g + x["lam"] * _distance(x, flags) if "l2" in flags else g}
    new = formula.state(x, flags)
    return new, formula.direction({**x, **new}, flags)


def direction_again(formula: Formula, x: Values, flags: Flags) -> Any:
    """Return ``u`` where the states are new already."""
    return formula.direction({**x, "g": -x["g"] if "maximize" in flags else x["g"]}, flags)


def decayed(x: Values, u: Any, flags: Flags) -> Any:
    """Return ``w - lr_t * u - d_t * (w_old - w*)``."""
    removed = _distance(x, flags)
    if "cautious" in flags:  # by their signs: a product of two small numbers would underflow to 0, and agree
        removed = removed.where((-u).where(removed < 0, u) >= 0, 0.0)
    return x["w"] - x["size"] * u - x["d"] * removed


def _distance(x: Values, flags: Flags) -> Any:
    return x["w"] - x["anchor"] if "toward" in flags else x["w"]


def turn(lr: Any, radius: Any, ww: Any, wu: Any, uu: Any) -> tuple[Any, Any]:
    """Return k and s with ``R * N(W - lr_t * R * N(u)) = k * (W - s * u)``, from sums over the whole tensor.

    They are ``<W, W>``, ``<W, u>`` and ``<u, u>``; where u is 0, W stays.
    """
    s = (lr * radius / uu.sqrt()).where(uu > 0, 0.0)
    k = radius / (ww - 2 * s * wu + s * s * uu).sqrt()
    return k.where(uu > 0, 1.0), s


# --- Adam and SGD -----------------------------------------------------------------------------------------------------


def _adam_state(x: Values, flags: Flags) -> Values:
    m = x["m"] + x["c1"] * (x["g"] - x["m"])
    v = x["b2"] * x["v"] + x["c2"] * x["g"] * x["g"]
    return {"m": m, "v": v, "top": x["top"].maximum(v)} if "amsgrad" in flags else {"m": m, "v": v}


def _adam_direction(x: Values, flags: Flags) -> Any:
    return x["m"] / (x["top" if "amsgrad" in flags else "v"].sqrt() * x["root"] + x["eps"])


def _sgd_state(x: Values, flags: Flags) -> Values:
    return {"m": x["mu"] * x["m"] + x["c"] * x["g"]} if "momentum" in flags else {}


def _sgd_direction(x: Values, flags: Flags) -> Any:
    if "momentum" not in flags:
        return x["g"]
    return x["g"] + x["mu"] * x["m"] if "nesterov" in flags else x["m"]


ADAM = Formula(
    _adam_state,
    _adam_direction,
    lambda flags: ("w", "g", "m", "v", *_each(flags, amsgrad="top", toward="anchor")),
    ("size", "root"),
    ("c1", "b2", "c2", "eps", "d", "lam", "lr"),
)
SGD = Formula(
    _sgd_state,
    _sgd_direction,
    lambda flags: ("w", "g", *_each(flags, momentum="m", toward="anchor")),
    (),
    ("size", "mu", "c", "d", "lam", "lr"),
)


def _each(flags: Flags, **columns: str) -> list[str]:
    return [column for flag, column in columns.items() if flag in flags]


# --- C++ --------------------------------------------------------------------------------------------------------------

_HEAD = """
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

struct bfloat16 {
  uint16_t bits;
  operator float() const {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
};

// `count` tensors of `sizes` bytes; columns[c][i] is the address of tensor i's part of column c, and
// rows[r * count + i] its number of row r. A thread does one slice of each tensor, always the same, so that a step's
// bits do not depend on which thread is done first.
extern "C" void step(int threads, int64_t count, const int64_t* sizes, void* const* const* columns,
                     const double* rows, const double* numbers) {
"""
_TEAM = """
  #pragma omp parallel num_threads(threads)
  {
    int me = 0, team = 1;
    #ifdef _OPENMP
    me = omp_get_thread_num(), team = omp_get_num_threads();
    #endif
    for (int64_t i = 0; i < count; ++i) {
      const int64_t length = sizes[i] / sizeof(T), begin = length * me / team, end = length * (me + 1) / team;
"""
# Sums of 1024 elements are vectors in T, the others doubles; two sets of them, so that one barrier is enough.
_SUMS = """
      double* const own = &sums[(i % 2 * team + me) * 3];
      own[0] = own[1] = own[2] = 0;
      for (int64_t from = begin; from < end; from += 1024) {
        const int64_t to = from + 1024 < end ? from + 1024 : end;
        T ww = 0, wu = 0, uu = 0;
        #pragma omp simd reduction(+ : ww, wu, uu)
        for (int64_t j = from; j < to; ++j) {
          BODY
        }
        own[0] += ww, own[1] += wu, own[2] += uu;
      }
      #pragma omp barrier
      double ww = 0, wu = 0, uu = 0;
      for (int t = 0; t < team; ++t) {
        const double* const theirs = &sums[(i % 2 * team + t) * 3];
        ww += theirs[0], wu += theirs[1], uu += theirs[2];
      }
"""
_LOOP = """
      #pragma omp simd
      for (int64_t j = begin; j < end; ++j) {
        BODY
      }
"""


def as_cpp(formula: Formula, real: str, flags: Flags) -> str:
    """Return a formula as C++ source: one function that steps any number of weights of type ``real``."""
    columns, rows = formula.columns(flags), rows_of(formula, flags)
    head = [f"const T {name} = numbers[{i}];" for i, name in enumerate(formula.numbers)]
    types = {"anchor": "bfloat16"} if "narrow_anchor" in flags else {}
    tensor = [
        f"auto* __restrict__ {name}_ = static_cast<{types.get(name, 'T')}*>(columns[{c}][i]);"
        for c, name in enumerate(columns)
    ]
    tensor += [f"const T {name} = rows[{r} * count + i];" for r, name in enumerate(rows)]

    def element() -> tuple[_Code, Values]:
        code = _Code([f"const T {name} = {name}_[j];" for name in columns])
        return code, {name: _Term(code, name) for name in (*columns, *rows, *formula.numbers)}

    code, x = element()
    new, u = advanced(formula, x, flags)
    if "hyperball" not in flags:
        loops = _LOOP.replace("BODY", code.writing(**new, w=decayed(x, u, flags)))
    else:
        head.append("std::vector<double> sums(6 * threads);")
        sums = f"ww += {x['w'] * x['w']}; wu += {x['w'] * u}; uu += {u * u};"
        loops = _SUMS.replace("BODY", f"{code.writing(**new)} {sums}")
        code = _Code([])
        k, s = turn(*(_Term(code, name) for name in ("lr", "radius", "ww", "wu", "uu")))
        loops += f"{code.writing()} const T k = {k}, s = {s};"
        code, x = element()
        u = direction_again(formula, x, flags)
        loops += _LOOP.replace("BODY", code.writing(w=_Term(code, "k") * (x["w"] - _Term(code, "s") * u)))
    return f"typedef {real} T;\n{_HEAD}{' '.join(head)}\n{_TEAM}{' '.join(tensor)}\n{loops}\n    }}\n  }}\n}}\n"


class _Code:
    """The statements of a block, one for each operation of a formula."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def writing(self, **elements: _Term) -> str:
        """Return all statements, and those that write these values to an element."""
        return " ".join([*self.lines, *(f"{name}_[j] = {term};" for name, term in elements.items())])


class _Term:
    """A value in C++; what an operation on it returns is another, named in a statement of its own."""

    def __init__(self, code: _Code, name: str) -> None:
        self.code, self.name = code, name

    def __str__(self) -> str:
        return self.name

    def _new(self, text: str) -> _Term:
        name = f"t{len(self.code.lines)}"
        self.code.lines.append(f"const auto {name} = {text};")
        return _Term(self.code, name)

    def __add__(self, other: Any) -> _Term:
        return self._new(f"{self} + {other}")

    def __sub__(self, other: Any) -> _Term:
        return self._new(f"{self} - {other}")

    def __mul__(self, other: Any) -> _Term:
        return self._new(f"{self} * {other}")

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> _Term:
        return self._new(f"{self} / {other}")

    def __neg__(self) -> _Term:
        return self._new(f"-{self}")

    def __lt__(self, other: Any) -> _Term:
        return self._new(f"{self} < {other}")

    def __gt__(self, other: Any) -> _Term:
        return self._new(f"{self} > {other}")

    def __ge__(self, other: Any) -> _Term:
        return self._new(f"{self} >= {other}")

    def sqrt(self) -> _Term:
        return self._new(f"std::sqrt({self})")

    def maximum(self, other: Any) -> _Term:
        return self._new(f"{self} > {other} ? {self} : {other}")

    def where(self, condition: _Term, other: Any) -> _Term:
        return self._new(f"{condition} ? {self} : T({other})")
