"""Steps of an optimizer class with ``weight_decay`` and without, from the same weights and on the same gradients."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import math
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_wd.optimizers.constructor import keywords_of, parameters_of, takes_any

__all__ = ["AMOUNT", "LR", "SMALL", "Step", "Trial", "aside", "unhooked"]

# Powers of two: products and ratios are exact. d is about 1e-4, so that a decay that is not linear in it looks linear.
LR, AMOUNT = 2.0**-6, 2.0**-7
_WARM_UP = 12  # RAdam's first five steps and Adopt's first are not like the rest
_LRS = (LR, LR / 2, LR / 4, LR)  # of the measured steps
_SHAPES = ((64, 64), (6, 4))  # 8-bit optimizers quantize from 4096 elements on
_SECONDS = 2.0  # for a trial of these, which takes most classes a quarter of that
SMALL = ((16, 16), (6, 4))


class Step(NamedTuple):
    """A step of twins: learning rate, weights before it, and after it with and without decay; one vector each."""

    lr: float
    old: Tensor
    decayed: Tensor
    plain: Tensor


class _Run:
    """An optimizer on weights of its own."""

    def __init__(self, weights: list[torch.nn.Parameter], optimizer: Any, step: Callable[..., Any]) -> None:
        self.weights, self.optimizer, self._step = weights, optimizer, step
        self._with_closure = False
        self._made = {key: repr(value) for key, value in optimizer.param_groups[0].items() if key != "params"}
        if callable(getattr(optimizer, "train", None)):  # schedule-free optimizers step in this mode only
            optimizer.train()

    def counters(self) -> set[str]:
        """Return the keys of its group that steps have changed."""
        ours = ("params", "lr", "initial_lr", "weight_decay")
        group = self.optimizer.param_groups[0]
        return {key for key, value in group.items() if key not in ours and repr(value) != self._made.get(key)}

    def follow(self, lr: float) -> None:
        """Set the learning rate as a scheduler of torch does."""
        for group in self.optimizer.param_groups:
            if group.get("lr", lr) != lr:
                group.setdefault("initial_lr", float(group["lr"]))
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr

    def read(self) -> Tensor:
        return torch.cat([w.detach().flatten() for w in self.weights])

    def write(self, values: Tensor) -> None:
        sizes = [w.numel() for w in self.weights]
        for w, part in zip(self.weights, torch.split(values, sizes), strict=True):
            w.data.copy_(part.view_as(w))

    def move(self, gradient: Tensor) -> None:
        """Step on a gradient, with the same noise each time, where the optimizer uses any."""
        self._set_gradient(gradient)
        torch.manual_seed(0)
        random.seed(0)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(0)
        if not self._with_closure:
            try:
                self._step(self.optimizer)
                return
            except Exception:
                parameter = inspect.signature(self._step).parameters.get("closure")
                if parameter is None:
                    raise
                self._with_closure = True
        self._step(self.optimizer, self.closure(gradient, []))

    def closure(self, gradient: Tensor, calls: list[Tensor]) -> Callable[[], Tensor]:
        """Return a closure that may be evaluated once; ``calls`` gets the weights at each evaluation."""

        def evaluate() -> Tensor:
            calls.append(self.read())
            if len(calls) > 1:
                raise RuntimeError("it evaluates the closure more than once in a step, each time for other weights")
            self._set_gradient(gradient)
            return torch.ones((), dtype=gradient.dtype)

        return evaluate

    def _set_gradient(self, gradient: Tensor) -> None:
        sizes = [w.numel() for w in self.weights]
        for w, part in zip(self.weights, torch.split(gradient, sizes), strict=True):
            w.grad = part.view_as(w).clone()


class Trial:
    """Runs of a class on the same weights and gradients, of several magnitudes each."""

    def __init__(
        self,
        cls: Any,
        keywords: Mapping[str, Any],
        dtype: torch.dtype,
        device: str,
        shapes: tuple[tuple[int, int], ...] = _SHAPES,
    ) -> None:
        self.cls, self.keywords, self.dtype, self.shapes = cls, keywords, dtype, shapes
        self.sizes = [math.prod(shape) for shape in shapes]
        self._first_moved: float | None = None
        self.tolerance = 1e-6 if dtype == torch.float64 else 1e-2
        self.counters: set[str] = set()
        self.step = unhooked(cls)
        self.accepted, self.any = keywords_of(cls), takes_any(cls)
        parameters = [p for p in parameters_of(cls).values() if p.kind is not p.VAR_KEYWORD]
        self.first = parameters[0].name if parameters else "params"
        source = torch.Generator("cpu").manual_seed(0)

        def magnitudes(low: float, high: float) -> Tensor:
            signs = torch.cat([torch.randn(shape, generator=source).sign().flatten() for shape in shapes])
            size = torch.rand(len(signs), generator=source, dtype=torch.float64)
            return (signs * low * (high / low) ** size).to(device, dtype)

        self.start = magnitudes(0.1, 10.0)
        # Of one size for each weight: what divides by it, as Adam does, then decays weights by unlike fractions.
        size = magnitudes(1e-3, 1.0)
        lean = size * self.start.sign() / 2  # not orthogonal to the weights: AdamP and SGDP then project
        self.gradients = [lean + size * magnitudes(0.5, 1.0) for _ in range(_WARM_UP + len(_LRS))]
        self.rates = [_LRS[max(0, t - _WARM_UP)] for t in range(len(self.gradients))]

    def make(self, amount: float, lr: float) -> _Run:
        pieces = zip(torch.split(self.start, self.sizes), self.shapes, strict=True)
        weights = [torch.nn.Parameter(piece.clone().view(shape)) for piece, shape in pieces]
        settings = dict(self.keywords)
        for key, value in (("lr", lr), ("weight_decay", amount)):
            if key in self.accepted or self.any:
                settings[key] = value
        model = torch.nn.Module()
        for i, w in enumerate(weights):
            model.add_module(f"layer_{i}", layer := torch.nn.Module())
            layer.weight = w
        if self.first == "model":
            params: Any = model
        elif self.first.startswith("named"):
            params = list(model.named_parameters())
        else:
            params = weights
        try:
            made = self.cls(params, **settings)
        except Exception as error:
            try:  # as Muon's variants want it
                made = self.cls([{"params": weights, "use_muon": True}], **settings)
            except Exception:
                raise error from None
        return _Run(weights, made, self.step)

    def twins(
        self,
        amount: float = AMOUNT,
        lr: float = LR,
        *,
        scale: float = 1.0,
        before: Mapping[float, float] | None = None,
    ) -> list[Step]:
        """Return the measured steps of twins that start each step from the same weights.

        Args:
            amount: the ``weight_decay`` of one of them.
            lr: the learning rate of their constructors; the steps have the rates ``_LRS``.
            scale: of all gradients.
            before: the fraction by rate that the plain twin's weights shrink before its step.
        """
        with_decay, without = self.make(amount, lr), self.make(0.0, lr)
        steps = []
        for t, (gradient, rate) in enumerate(zip(self.gradients, self.rates, strict=True)):
            with_decay.follow(rate)
            without.follow(rate)
            old = with_decay.read()
            without.write(old * (1 - before[rate]) if before else old)
            for run in (with_decay, without):
                self._move(run, gradient * scale)
            if t >= _WARM_UP:
                steps.append(Step(rate, old, with_decay.read(), without.read()))
        self.counters |= with_decay.counters()
        return steps

    def penalty_factor(self) -> float | None:
        """Return the factor where steps with decay equal those without on the gradients ``g + factor * lam * w``."""
        sign = -1 if self.keywords.get("maximize") else 1
        effect = self.decayed - self.plain
        for factor in (1.0, 0.5, 2.0):
            penalized = self._last(0.0, penalty=sign * factor * AMOUNT)
            error = self.decayed - penalized
            small = bool(error.abs().mean() < 0.01 * effect.abs().mean())  # not equal just because nothing moves
            if small and self.same(self.decayed, penalized):
                return factor
        return None

    def follows_group(self) -> bool:
        """Whether a ``weight_decay`` written into the group later has the effect of the constructor's."""
        on, off = self._last(0.0, late=AMOUNT), self._last(AMOUNT, late=0.0)
        return self.same(on, self.decayed) and self.same(off, self.plain)

    @functools.cached_property
    def decayed(self) -> Tensor:
        """The weights after all steps with decay."""
        return self._last(AMOUNT)

    @functools.cached_property
    def plain(self) -> Tensor:
        """The weights after all steps without decay."""
        return self._last(0.0)

    def _last(self, amount: float, *, penalty: float = 0.0, late: float | None = None) -> Tensor:
        """Return the weights after all steps on the gradients ``g + penalty * w``.

        Args:
            amount: the ``weight_decay`` of the constructor.
            penalty: of the weights before each step.
            late: the ``weight_decay`` of the group before each step.
        """
        run = self.make(amount, LR)
        for gradient, rate in zip(self.gradients, self.rates, strict=True):
            run.follow(rate)
            if late is not None:
                for group in run.optimizer.param_groups:
                    group["weight_decay"] = late
            self._move(run, gradient + penalty * run.read())
        return run.read()

    def _move(self, run: _Run, gradient: Tensor) -> None:
        """Step; give the larger matrix up where steps after the first, which may compile, take too long."""
        run.move(gradient)
        now = time.thread_time()
        if self._first_moved is None:
            self._first_moved = now
        elif now - self._first_moved > _SECONDS and self.shapes is _SHAPES:
            raise TimeoutError(f"A trial with a matrix of 64 x 64 takes more than {_SECONDS:g} s of processor time")

    def same(self, a: Tensor, b: Tensor) -> bool:
        """Whether two results are equal but for rounding. Quantized state may round one in a hundred otherwise."""
        close = (a - b).abs() <= self.tolerance * 1e-2 * (1 + b.abs())
        enough = 1.0 if self.dtype == torch.float64 else 0.99
        return bool(a.isfinite().all() and b.isfinite().all() and close.double().mean() >= enough)


def unhooked(optimizer_cls: type[Optimizer]) -> Callable[..., Any]:
    """Return the class's step without the hooks that torch wraps around it when an instance is made."""
    step: Any = optimizer_cls.step
    while getattr(step, "hooked", False) and hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    return step  # type: ignore[no-any-return]


@contextlib.contextmanager
def aside(device: str) -> Iterator[None]:
    """Keep random state, warnings, output, default tensors and grad mode of the process out of the trial, and back."""
    numpy = sys.modules.get("numpy")
    states = random.getstate(), None if numpy is None else numpy.random.get_state()
    cuda = [torch.cuda.current_device()] if device == "cuda" else []
    printed = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(printed),
            torch.random.fork_rng(cuda),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.device(device),
            torch.compiler.set_stance("force_eager"),  # to compile a step takes longer than all steps here
        ):
            warnings.simplefilter("ignore")
            yield
    except SystemExit as error:  # lion_pytorch prints why and exits where triton is missing: that was in `printed`
        raise RuntimeError(f"it ends the program. {' '.join(printed.getvalue().split())}".rstrip()) from error
    finally:
        random.setstate(states[0])
        if numpy is not None:
            numpy.random.set_state(states[1])
