r"""What an optimizer's ``weight_decay`` means, found by stepping it on a few tensors.

Twins step from the same weights on the same gradients, one with ``weight_decay`` and one with 0. What they differ by
is the decay. Its fraction ``d`` of the weights is measured at several rates and amounts, and ``d = k * lr_t^a * lr0^b *
lam^c`` is read off.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_wd.conversions import peak_equal
from lightning_wd.errors import ConfigError, keys, listed, number
from lightning_wd.optimizers.constructor import keywords_of, missing_keywords, parameters_of, takes_any
from lightning_wd.styles import check_style

__all__ = ["Identification", "identify", "unhooked"]

# Powers of two: products and ratios are exact. d is about 1e-4, so that a decay that is not linear in it looks linear.
_LR, _AMOUNT = 2.0**-6, 2.0**-7
_WARM_UP = 12  # RAdam's first five steps and Adopt's first are not like the rest
_LRS = (_LR, _LR / 2, _LR / 4, _LR)  # of the measured steps
_SHAPES = ((64, 64), (6, 4))  # 8-bit optimizers quantize from 4096 elements on
_STYLES = {(1, 0, 1): "decoupled", (1, -1, 1): "independent", (0, 0, 1): "constant", (2, -1, 1): "corrected"}
_KERNELS = ("capturable", "differentiable", "fused")  # they choose how a step is computed, and want other tensors


@dataclass(frozen=True)
class Identification:
    """What the ``weight_decay`` of an optimizer class means, with one set of keywords.

    Attributes:
        name: the class.
        style: ``l2``, ``decoupled``, ``independent``, ``constant``, ``corrected``; ``none``, where it has no effect;
            ``unknown``, where no style fits.
        multiple: its decay over ours of this style at the same number; 1 for most.
        lr_exponent: a in ``d = multiple * lr_t^a * lr0^b * weight_decay^c``; None where no such ``d`` was found.
        base_lr_exponent: b; ``lr0`` is the learning rate that the constructor was given.
        amount_exponent: c.
        spread: the 95th over the 5th percentile of ``d`` over coordinates: 1 where all weights decay alike.
        evidence: what was measured, in lines.
        own_rule: whether it can do our decoupled decay itself: a fraction of the old weights, whatever the gradient,
            by the group's ``weight_decay`` at each step.
        follows_group: whether it reads ``weight_decay`` from its group at each step.
        both: whether it is ``l2`` and ``decoupled`` at once, as in SGD without momentum.
        counters: what a step changes in its groups: no settings, but state.
        own_closure: how a step evaluates its closure, where not once on the weights that it finds.
    """

    name: str
    style: str
    multiple: float | None = None
    lr_exponent: float | None = None
    base_lr_exponent: float | None = None
    amount_exponent: float | None = None
    spread: float | None = None
    evidence: tuple[str, ...] = ()
    own_rule: bool = False
    follows_group: bool = False
    both: bool = False
    counters: tuple[str, ...] = ()
    own_closure: str = ""

    def amount_for(self, style: str, weight_decay: float, lr: float) -> float | None:
        """Return the ``weight_decay`` to hand to this class so that it decays as ours of ``style`` would.

        Exact at the peak learning rate ``lr``, as :func:`lightning_wd.convert` is, and under any schedule between
        ``decoupled`` and ``independent``. None where no number does it: from or to ``l2``, to ``hyperball``, and for
        ``unknown``.

        >>> sgdp = Identification("SGDP", "decoupled", multiple=10.0)
        >>> sgdp.amount_for("decoupled", weight_decay=0.1, lr=1e-3), sgdp.amount_for("l2", weight_decay=0.1, lr=1e-3)
        (0.01, None)
        """
        check_style("style", style)
        lam, lr = number("weight_decay", weight_decay), number("lr", lr)
        if style == "none" or (lam == 0 and style != "l2"):
            return None if self.style == "unknown" else 0.0
        if style in ("l2", "hyperball") or self.style not in _STYLES.values() or not self.multiple:
            return None
        return peak_equal(lam, from_=style, to=self.style, lr=lr) / self.multiple

    @property
    def may_be_l2(self) -> bool:
        """Whether style ``l2`` can be left to the class."""
        return self.both or self.style in ("l2", "unknown")

    def __str__(self) -> str:
        return "\n  ".join([f"{self.name}: {self.style}", *self.evidence])


def identify(optimizer_cls: type[Optimizer], **keywords: Any) -> Identification:
    """Return what the ``weight_decay`` of an optimizer class means, found by stepping it, not by its name.

    It takes a second or two on a CPU and trains nothing. Random state is left as it was. The answer is remembered for
    each set of keywords.

    Args:
        optimizer_cls: a subclass of torch.optim.Optimizer.
        keywords: of its constructor, where the meaning depends on them (``weight_decouple=True``). ``lr`` and
            ``weight_decay`` are varied, whatever is given.

    Raises:
        ConfigError: no optimizer class, an unknown keyword, or a missing one.

    Example:
        >>> identify(torch.optim.AdamW).style, identify(torch.optim.Adam).style
        ('decoupled', 'l2')
        >>> identify(torch.optim.AdamW).amount_for("independent", weight_decay=1e-5, lr=1e-3)
        0.01
    """
    if not (isinstance(optimizer_cls, type) and issubclass(optimizer_cls, Optimizer)):
        raise ConfigError(
            f"identify() takes a torch.optim.Optimizer class but got {optimizer_cls!r}.",
            fix="pass the class, for example identify(torch.optim.NAdam)",
        )
    given = _check_keywords(optimizer_cls, keywords)
    asked = (optimizer_cls, *sorted((key, repr(value)) for key, value in given.items()))
    if asked not in _KNOWN:
        found = _find_out(optimizer_cls, given, "cuda" if torch.cuda.is_available() else None)
        _KNOWN[asked] = replace(found, own_closure=_own_closure(optimizer_cls, given))
    return _KNOWN[asked]


_KNOWN: dict[tuple[Any, ...], Identification] = {}


def _find_out(cls: type[Optimizer], keywords: Mapping[str, Any], accelerator: str | None) -> Identification:
    tries = [(torch.float64, "cpu"), (torch.float32, "cpu")]
    tries += [(torch.float32, accelerator)] if accelerator else []
    failures: list[str] = []
    unknown: list[Identification] = []
    for dtype, device in tries:
        try:
            with _aside(device):
                found = _Identifier(_Trial(cls, keywords, dtype, device)).identify()
            if found.style != "unknown" and not (unknown and found.style == "none"):
                return _as_on(accelerator, found, cls, keywords)
            unknown.append(found)  # one that computes in float32 may be known with its tolerance
        except Exception as error:  # anyone's optimizer: it may want other tensors, an accelerator, or a closure
            lines = str(error).strip().splitlines()
            where = f"{dtype} on {device}".removeprefix("torch.")
            failures.append(f"{where}: {type(error).__name__}: {lines[0] if lines else ''}".rstrip(": "))
    if unknown:
        return unknown[0]
    if keywords and _defaults(cls, {}) and not _defaults(cls, keywords):
        given = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
        raise ConfigError(
            f"{cls.__name__} cannot be made with {given}.", found=failures[0], fix="correct the value, or leave it out"
        )
    return Identification(cls.__name__, "unknown", evidence=("It could not be stepped.", *failures))


def _own_closure(cls: type[Optimizer], keywords: Mapping[str, Any]) -> str:
    """Return how a step evaluates its closure, where not once on the weights that it finds."""
    calls: list[Tensor] = []
    with contextlib.suppress(Exception), _aside("cpu"):  # who cannot be stepped is told in the evidence
        trial = _Trial(cls, keywords, torch.float32, "cpu")
        run = trial.make(_AMOUNT, _LR)
        for gradient in trial.gradients[:8]:  # RAdam's first five steps are not like the rest
            calls, found = [], run.read()
            trial.step(run.optimizer, run.closure(gradient, calls))
            if not torch.equal(found, calls[0]):
                return "on other weights than the model has"
    return "more than once in a step" if len(calls) > 1 else ""


def _as_on(accelerator: str | None, found: Identification, cls: type[Optimizer], keywords: Any) -> Identification:
    """Return what a class of another library does on the accelerator, where that is not what it does on the CPU.

    bitsandbytes has a kernel for each: its Lion is ``decoupled`` on a CPU, and was reported as ``l2`` on a GPU.
    """
    if accelerator is None or cls.__module__.startswith("torch.optim"):
        return found
    try:
        with _aside(accelerator):
            other = _Identifier(_Trial(cls, keywords, torch.float32, accelerator)).identify()
    except Exception:  # it runs on the CPU only
        return found
    if other.style == "unknown":  # 0 and our decay beside it are right on either
        return replace(found, own_rule=False)
    if other.style == found.style and math.isclose(other.multiple or 0.0, found.multiple or 0.0, rel_tol=0.02):
        return found
    line = f"That is on {accelerator}; on the CPU it is {found.style}."
    return replace(other, own_rule=False, both=False, evidence=(*other.evidence, line))


@contextlib.contextmanager
def _aside(device: str) -> Iterator[None]:
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


# --- the constructor ------------------------------------------------------------------------------------------------


def _check_keywords(cls: type, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse unknown and missing keywords, and return those that say how the class decays."""
    keys(cls.__name__, keywords, list(keywords_of(cls)))
    missing = missing_keywords(cls, {"lr": _LR, "weight_decay": _AMOUNT, **keywords})
    if missing:
        raise ConfigError(
            f"{cls.__name__} needs {listed(missing)}.",
            found=f"keywords {', '.join(keywords) or 'none'}",
            fix=f"give {', '.join(f'{key}=<value>' for key in missing)}",
        )
    return {key: value for key, value in keywords.items() if key not in ("lr", "weight_decay", *_KERNELS)}


def _defaults(cls: type, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that an instance shows: a keyword that it swallowed is not among them."""
    try:
        with _aside("cpu"):
            made = _Trial(cls, dict(keywords), torch.float32, "cpu").make(_AMOUNT, _LR).optimizer
        return {**vars(made), **made.defaults, **made.param_groups[0]}
    except Exception:
        return {}


def unhooked(optimizer_cls: type[Optimizer]) -> Callable[..., Any]:
    """Return the class's step without the hooks that torch wraps around it when an instance is made."""
    step: Any = optimizer_cls.step
    while getattr(step, "hooked", False) and hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    return step  # type: ignore[no-any-return]


# --- steps ----------------------------------------------------------------------------------------------------------


class _Step(NamedTuple):
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


class _Trial:
    """Runs of a class on the same weights and gradients, of several magnitudes each."""

    def __init__(self, cls: Any, keywords: Mapping[str, Any], dtype: torch.dtype, device: str) -> None:
        self.cls, self.keywords, self.dtype = cls, keywords, dtype
        self.tolerance = 1e-6 if dtype == torch.float64 else 1e-2
        self.counters: set[str] = set()
        self.step = unhooked(cls)
        self.accepted, self.any = keywords_of(cls), takes_any(cls)
        parameters = [p for p in parameters_of(cls).values() if p.kind is not p.VAR_KEYWORD]
        self.first = parameters[0].name if parameters else "params"
        source = torch.Generator("cpu").manual_seed(0)

        def magnitudes(low: float, high: float) -> Tensor:
            signs = torch.cat([torch.randn(shape, generator=source).sign().flatten() for shape in _SHAPES])
            size = torch.rand(len(signs), generator=source, dtype=torch.float64)
            return (signs * low * (high / low) ** size).to(device, dtype)

        self.start = magnitudes(0.1, 10.0)
        # Of one size for each weight: what divides by it, as Adam does, then decays weights by unlike fractions.
        size = magnitudes(1e-3, 1.0)
        lean = size * self.start.sign() / 2  # not orthogonal to the weights: AdamP and SGDP then project
        self.gradients = [lean + size * magnitudes(0.5, 1.0) for _ in range(_WARM_UP + len(_LRS))]
        self.rates = [_LRS[max(0, t - _WARM_UP)] for t in range(len(self.gradients))]

    def make(self, amount: float, lr: float) -> _Run:
        sizes = [math.prod(shape) for shape in _SHAPES]
        pieces = zip(torch.split(self.start, sizes), _SHAPES, strict=True)
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
        amount: float = _AMOUNT,
        lr: float = _LR,
        *,
        scale: float = 1.0,
        late: str = "",
        before: Mapping[float, float] | None = None,
    ) -> list[_Step]:
        """Return the measured steps of twins that start each step from the same weights.

        Args:
            amount: the ``weight_decay`` of one of them.
            lr: the learning rate of their constructors; the steps have the rates ``_LRS``.
            scale: of all gradients.
            late: "on": the constructor gets 0 and the group ``amount`` before each step; "off": the other way round.
            before: the fraction by rate that the plain twin's weights shrink before its step.
        """
        with_decay = self.make(0.0 if late == "on" else amount, lr)
        without = self.make(0.0, lr)
        steps = []
        for t, (gradient, rate) in enumerate(zip(self.gradients, self.rates, strict=True)):
            with_decay.follow(rate)
            without.follow(rate)
            if late:
                for group in with_decay.optimizer.param_groups:
                    group["weight_decay"] = amount if late == "on" else 0.0
            old = with_decay.read()
            without.write(old * (1 - before[rate]) if before else old)
            for run in (with_decay, without):
                run.move(gradient * scale)
            if t >= _WARM_UP:
                steps.append(_Step(rate, old, with_decay.read(), without.read()))
        self.counters |= with_decay.counters()
        return steps

    def is_penalty(self, factor: float) -> bool:
        """Whether steps with decay equal those without on the gradients ``g + factor * lam * w``."""
        with_decay, without, plain = self.make(_AMOUNT, _LR), self.make(0.0, _LR), self.make(0.0, _LR)
        for gradient, rate in zip(self.gradients, self.rates, strict=True):
            for run in (with_decay, without, plain):
                run.follow(rate)
            penalty = factor * _AMOUNT * without.read()
            with_decay.move(gradient)
            without.move(gradient - penalty if self.keywords.get("maximize") else gradient + penalty)
            plain.move(gradient)
        error, effect = with_decay.read() - without.read(), with_decay.read() - plain.read()
        small = bool(error.abs().mean() < 0.01 * effect.abs().mean())  # not equal just because nothing moves
        return small and self.same(with_decay.read(), without.read())

    def same(self, a: Tensor, b: Tensor) -> bool:
        """Whether two results are equal but for rounding. Quantized state may round one in a hundred otherwise."""
        close = (a - b).abs() <= self.tolerance * 1e-2 * (1 + b.abs())
        enough = 1.0 if self.dtype == torch.float64 else 0.99
        return bool(a.isfinite().all() and b.isfinite().all() and close.double().mean() >= enough)


# --- what the steps mean --------------------------------------------------------------------------------------------


class _Shares(NamedTuple):
    """The fraction ``d`` that a step removes, by rate; where it is one fraction of all weights in each step."""

    by_rate: Mapping[float, float]
    spread: float


class _Identifier:
    """Reads the style off the steps of a trial."""

    def __init__(self, trial: _Trial) -> None:
        self.trial = trial

    def identify(self) -> Identification:
        trial = self.trial
        if "weight_decay" not in trial.accepted and not trial.any:
            return self._answer("none", 0.0, "Its constructor takes no weight_decay.")
        moving, still = trial.twins(), trial.twins(scale=0.0)
        if all(torch.equal(step.decayed, step.plain) for step in [*moving, *still]):
            extra = "" if "weight_decay" in parameters_of(trial.cls) else "; any keyword is accepted"
            return self._answer("none", 0.0, f"Steps with weight_decay equal those with 0: it has no effect{extra}.")
        found = replace(self._style(moving, still), counters=tuple(sorted(trial.counters)))
        if self._follows_group(moving):
            return replace(found, follows_group=True)
        line = "It does not read weight_decay from its group at each step: a schedule of it changes nothing."
        return replace(found, own_rule=False, evidence=(*found.evidence, line))

    def _style(self, moving: list[_Step], still: list[_Step]) -> Identification:
        factor = next((factor for factor in (1.0, 0.5, 2.0) if self.trial.is_penalty(factor)), None)
        found = self._fraction_of_weights(moving, still)
        if factor is None:
            return found or self._unknown(moving, still)
        if found is not None and found.style == "decoupled":
            return self._both(found, factor)
        spread, sign = _ratios(moving[0]).spread, "-" if self.trial.keywords.get("maximize") else "+"
        return self._answer(
            "l2",
            factor,
            f"Steps with weight_decay equal those with 0 on the gradients g {sign} {_times(factor)}weight_decay * w: "
            "an L2 penalty.",
            f"The fraction of a weight that a step removes varies over coordinates: p95/p5 = {spread:.3g}.",
            spread=spread,
        )

    def _answer(self, style: str, multiple: float | None, *evidence: str, **more: Any) -> Identification:
        return Identification(self.trial.cls.__name__, style, multiple, evidence=evidence, **more)

    def _both(self, found: Identification, factor: float) -> Identification:
        """Tell an L2 penalty from decoupled decay by momentum, which the class is given where it can have it."""
        line = "Without momentum an L2 penalty and decoupled decay are the same steps"
        if "momentum" in self.trial.accepted and not self.trial.keywords.get("momentum"):
            settings = {**self.trial.keywords, "momentum": 0.5}
            trial = _Trial(self.trial.cls, settings, self.trial.dtype, self.trial.start.device.type)
            told = _Identifier(trial).identify()
            if told.style in ("l2", "decoupled"):
                own = f"{line}; with momentum=0.5 it is {told.style}:"
                base = found if told.style == "decoupled" else told
                return replace(base, evidence=(own, *told.evidence), both=True)
        return replace(found, evidence=(f"{line}; it has no momentum to tell them by.", *found.evidence), both=True)

    def _fraction_of_weights(self, moving: list[_Step], still: list[_Step]) -> Identification | None:
        """Return the identification where a step removes one fraction of all weights, else None."""
        trial = self.trial
        resting = _shares(still, trial.tolerance)
        orders = {"old": _ratios, "new": _ratios_of_new}
        found = {order: _shares(moving, trial.tolerance, read) for order, read in orders.items()}
        order = next((order for order in orders if found[order] is not None), "first")
        shares = found.get(order, resting)
        if order == "first" and resting is not None:  # a step that depends on the weights, as Adafactor's
            after_decay = trial.twins(before=resting.by_rate)
            shares = resting if all(trial.same(step.decayed, step.plain) for step in after_decay) else None
        if shares is None or not shares.by_rate[_LR]:
            return None
        scale = 0.0 if order == "first" else 1.0
        read, by_division = orders.get(order, _ratios), False
        if order == "new":  # w * (1 - d) or, proximal, w / (1 + d): the one whose d is linear in the amount
            read = min((_ratios_of_new, _ratios_of_decayed), key=lambda each: self._bend(moving, each))
            by_division = read is _ratios_of_decayed
            shares = _shares(moving, trial.tolerance, read) or shares
        more = _shares(trial.twins(2 * _AMOUNT, scale=scale), trial.tolerance, read)
        higher = _shares(trial.twins(lr=2 * _LR, scale=scale), trial.tolerance, read)
        at = shares.by_rate
        larger = shares if order == "first" else _shares(trial.twins(scale=16.0), trial.tolerance, read)
        if more is None or higher is None or larger is None or not self._alike(larger.by_rate[_LR], at[_LR]):
            return None
        a, a_low = _exponent(at[_LR], at[_LR / 2]), _exponent(at[_LR / 2], at[_LR / 4])
        b, c = _exponent(higher.by_rate[_LR], at[_LR]), _exponent(more.by_rate[_LR], at[_LR])
        if a is None or b is None or c is None or a != a_low:
            return None
        if "lr" not in trial.accepted and not trial.any:  # nobody can tell what it takes as lr0
            return None
        style = _STYLES.get((a, b, c), "unknown")  # type: ignore[arg-type]
        multiple = _snap(at[_LR] / (_LR**a * _LR**b * _AMOUNT**c))
        factors = [("lr_t", a), ("lr0", b), ("weight_decay", c)]
        formula = " * ".join(name if e == 1 else f"{name}^{e:g}" for name, e in factors if e)
        lines = [
            f"A step removes the same fraction d of all {'new' if order == 'new' else 'old'} weights: p95/p5 = "
            f"{shares.spread:.6g}.",
            f"d = {_times(multiple)}{formula}: {', '.join(f'{d:.3g} at lr_t={rate:g}' for rate, d in at.items())} "
            f"with lr0={_LR:g} and weight_decay={_AMOUNT:g}; {higher.by_rate[_LR]:.3g} with lr0={2 * _LR:g}, "
            f"{more.by_rate[_LR]:.3g} with weight_decay={2 * _AMOUNT:g}, at lr_t={_LR:g}.",
        ]
        if order == "new":
            how = ", and divides by 1 + d" * by_division
            lines.append(f"It decays the new weights, after the update{how}; decoupled decay here takes the old ones.")
        resting = _shares(still, trial.tolerance, read)
        steady = resting is None or self._alike(resting.by_rate[_LR], at[_LR])
        if resting is not None and not steady:
            lines.append(
                f"It depends on the gradient: with zero gradients d is {resting.by_rate[_LR]:.4g}, "
                f"{resting.by_rate[_LR] / at[_LR]:.4g} times as much."
            )
        if not 0.01 <= multiple <= 100:  # as of Prodigy, whose first is 1e-6
            style = "unknown"
            lines.append("That is no multiple of ours: it has a rate of its own, which may be another later.")
        elif style == "unknown":
            lines.append("No style has this d.")
        own_rule = style == "decoupled" and steady and order != "new"
        return self._answer(
            style,
            multiple,
            *lines,
            lr_exponent=a,
            base_lr_exponent=b,
            amount_exponent=c,
            spread=shares.spread,
            own_rule=own_rule,
        )

    def _alike(self, a: float, b: float) -> bool:
        return math.isclose(a, b, rel_tol=max(1e-3, self.trial.tolerance))

    def _bend(self, moving: list[_Step], read: Callable[[_Step], _Ratios]) -> float:
        """Return how far twice the amount is from twice the fraction."""
        twice = self.trial.twins(2 * _AMOUNT)
        return abs(read(twice[0]).middle / read(moving[0]).middle - 2)

    def _follows_group(self, moving: list[_Step]) -> bool:
        """Whether a ``weight_decay`` written into the group later has the effect of the constructor's."""
        same, on, off = self.trial.same, self.trial.twins(late="on"), self.trial.twins(late="off")
        return all(same(a.decayed, b.decayed) for a, b in zip(on, moving, strict=True)) and all(
            same(step.decayed, step.plain) for step in off
        )

    def _unknown(self, moving: list[_Step], still: list[_Step]) -> Identification:
        """Say what was measured where no style fits."""
        step = moving[0]
        ratios, values = _ratios(step), _usable(step)
        lines = ["No style fits: steps with weight_decay are no steps on an added penalty, and remove no one fraction."]
        top = float(values.abs().max())
        at_top = (values - top).abs() <= 1e-3 * top
        at_zero = values.abs() <= 1e-6 * top
        if top > 0 and bool(at_zero.any()) and bool((at_top | at_zero).all()):
            agree = ((step.old - step.plain) * step.old >= 0)[_big(step)]
            share = float(at_top.double().mean())
            cautious = bool((agree == at_top).double().mean() > 0.99)
            which = (
                "those where decay and update agree in sign: cautious decay" if cautious else "the others not at all"
            )
            lines.append(f"It decays {share:.0%} of the coordinates by d = {top:.4g}, {which}.")
        elif math.isfinite(ratios.middle):
            lines.append(
                f"At lr_t={_LR:g} and weight_decay={_AMOUNT:g} a step removes {ratios.low:.3g} (p5), "
                f"{ratios.middle:.3g} (median), {ratios.high:.3g} (p95) of a weight."
            )
        constant = _percentiles((step.plain - step.decayed).double())
        if constant.low > 0 and constant.spread < 1.001:
            lines.append(f"It subtracts the same number from each weight, {constant.middle:.4g}: that is no decay.")
        tensors = [_ratios(part) for part in _by_tensor(step)]
        alike = math.isclose(*(part.middle for part in tensors), rel_tol=1e-3)
        if all(0.999 < part.spread < 1.001 for part in tensors) and not alike:
            each = ", ".join(f"{part.middle:.4g}" for part in tensors)
            lines.append(f"Within a tensor it is one fraction, and another in each tensor: {each}.")
        middles = [_ratios(step).middle for step in moving if step.lr == _LR]
        if 0.999 < ratios.spread < 1.001 and not math.isclose(*middles, rel_tol=1e-3):
            lines.append(f"It changes from step to step: {middles[0]:.4g}, later {middles[1]:.4g}.")
        resting = _shares(still, self.trial.tolerance)
        if resting is not None:
            lines.append(f"With zero gradients it removes {resting.by_rate[_LR]:.4g} of all weights.")
        return self._answer("unknown", None, *lines, spread=ratios.spread if math.isfinite(ratios.spread) else None)


class _Ratios(NamedTuple):
    """Percentiles over coordinates of what a step removes of a weight."""

    low: float
    middle: float
    high: float
    mean: float

    @property
    def spread(self) -> float:
        return self.high / self.low if self.low > 0 else math.inf


def _big(step: _Step) -> Tensor:
    """Where a weight is not so near 0 that a ratio to it is rounding."""
    return (step.old.abs() > 0.05) & (step.plain.abs() > 0.05)


def _usable(step: _Step) -> Tensor:
    big = _big(step)
    return ((step.plain - step.decayed)[big] / step.old[big]).double()


def _percentiles(values: Tensor) -> _Ratios:
    if not len(values) or not bool(values.isfinite().all()):
        return _Ratios(math.nan, math.nan, math.nan, math.nan)
    low, middle, high = torch.quantile(values, torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype)).tolist()
    return _Ratios(low, middle, high, float(values.mean()))


def _ratios(step: _Step) -> _Ratios:
    return _percentiles(_usable(step))


def _ratios_of_new(step: _Step) -> _Ratios:
    big = _big(step)
    return _percentiles(((step.plain - step.decayed)[big] / step.plain[big]).double())


def _ratios_of_decayed(step: _Step) -> _Ratios:
    big = _big(step)
    return _percentiles(((step.plain - step.decayed)[big] / step.decayed[big]).double())


def _by_tensor(step: _Step) -> list[_Step]:
    sizes = [math.prod(shape) for shape in _SHAPES]
    return [_Step(step.lr, *parts) for parts in zip(*(torch.split(values, sizes) for values in step[1:]), strict=True)]


def _shares(steps: Sequence[_Step], tolerance: float, read: Callable[[_Step], _Ratios] = _ratios) -> _Shares | None:
    """Return the fraction that each step removes, None where it is not one for all weights, or not the same again."""
    by_rate: dict[float, float] = {}
    spread = 1.0
    for step in steps:
        each = [read(part) for part in [step, *_by_tensor(step)]]
        d = each[0].middle
        if not all(math.isclose(value, d, rel_tol=tolerance, abs_tol=1e-12) for r in each for value in r):
            return None
        if not math.isclose(by_rate.setdefault(step.lr, d), d, rel_tol=max(tolerance, 1e-5), abs_tol=1e-12):
            return None
        spread = max(spread, each[0].spread if d else 1.0)
    return _Shares(by_rate, spread)


def _exponent(numerator: float, denominator: float) -> float | None:
    """Return e with ``numerator / denominator = 2^e`` where e is a multiple of one half, else None."""
    if numerator <= 0 or denominator <= 0:
        return None
    exponent = math.log2(numerator / denominator)
    near = round(2 * exponent) / 2
    return near if abs(exponent - near) < 0.02 else None


def _snap(value: float) -> float:
    """Return the number of three digits that a measured one is, where it is one."""
    near = float(f"{value:.3g}")
    return near if math.isclose(value, near, rel_tol=5e-4) else value


def _times(factor: float) -> str:
    return "" if factor == 1 else f"{factor:.6g} * "
