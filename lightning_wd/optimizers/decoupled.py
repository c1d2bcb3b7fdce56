"""Decoupled weight decay for any optimizer: ``w <- w - d_t * w_old``, then the optimizer's own step without decay."""

from __future__ import annotations

import copyreg
import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_wd.errors import ConfigError, checked_keywords, number, warn
from lightning_wd.optimizers.adamw import AdamW
from lightning_wd.optimizers.base import DecayGroups, check_decoupled
from lightning_wd.optimizers.identify import identify
from lightning_wd.optimizers.identify_result import Identification
from lightning_wd.optimizers.identify_twins import unhooked
from lightning_wd.optimizers.kernels import add_penalty, distances, is_zero, masked, pulls, shrink
from lightning_wd.optimizers.param_groups import stepper_of
from lightning_wd.optimizers.sgdw import SGDW
from lightning_wd.styles import STYLES, kernel_coefficient

__all__ = ["decoupled", "schedule_free"]

_READY_MADE: dict[Any, Any] = {torch.optim.Adam: AdamW, torch.optim.AdamW: AdamW, torch.optim.SGD: SGDW}


def _is_schedule_free(optimizer: Any) -> bool:
    """Whether an optimizer or a class of one has other weights in the model while it trains than in evaluation."""
    return all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))


def schedule_free(optimizer: Any) -> list[Any]:
    """Return which of the optimizers that step an optimizer's groups, itself or some within, are schedule-free."""
    steppers = dict.fromkeys(stepper_of(optimizer, group) for group in optimizer.param_groups)
    return [*filter(_is_schedule_free, steppers)]


class _Decoupled(DecayGroups):
    """The mixin of :func:`decoupled`."""

    base: ClassVar[type[Optimizer]]
    base_step: ClassVar[Callable[..., Any]]  # without hooks, which this class's step runs
    _makes_state = False  # whether the constructor of the class makes the state of its parameters

    def __init__(
        self,
        params: Any,
        *args: Any,
        style: str = "decoupled",
        cautious_wd: bool = False,
        toward: str = "zero",
        anchor_dtype: str | torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        accepted = inspect.signature(self.base).parameters
        lacks_decay = "weight_decay" not in accepted
        amount = settings.pop("weight_decay", None) if lacks_decay else None
        if "decoupled_weight_decay" in accepted:
            check_decoupled(settings.pop("decoupled_weight_decay", None), style)
        bound = inspect.signature(self.base).bind(params, *args, **settings)
        self._given = _keywords(bound)
        amount = bound.arguments.get("weight_decay", amount)
        ours: dict[str, Any] = {"style": style, "cautious_wd": cautious_wd}
        ours |= {"toward": toward, "anchor_dtype": anchor_dtype}
        amount = self._begin(weight_decay=amount, **ours)
        if not lacks_decay:
            bound.arguments["weight_decay"] = amount
        if lacks_decay or self._keeps_amount(style):
            self._settings["weight_decay"] = amount
            bound.arguments.update({} if lacks_decay else {"weight_decay": 0.0})
        super().__init__(*bound.args, **bound.kwargs)
        self._makes_state = bool(self.state)

    def append_group(self, param_group: dict[str, Any]) -> None:
        super().append_group(param_group)
        if self._makes_state:  # and never for a group that is added later
            self.state.update(self.base([dict(param_group)], **self._given).state)

    def _check(self, given: dict[str, Any], settings: dict[str, Any], of: str = "") -> None:
        # Theirs: None may be a default, as timm's eps, and a momentum may be 1 or more.
        own = {k: v for k, v in given.items() if v is not None or k in ("lr", "weight_decay")}
        momentum = own.pop("momentum", None)
        if isinstance(momentum, (int, float)):
            settings["momentum"] = number(f"momentum{of}", momentum)
        super()._check(own, settings, of)

    def _complete(self, group: dict[str, Any], label: str) -> None:
        if "lr" not in self.defaults:
            raise ConfigError(
                f"{self.base.__name__} keeps no lr in its groups, which units and schedules of decay need.",
                found=f"settings {', '.join(self.defaults)}",
                fix=f"use {self.base.__name__} as it is, or an optimizer with a learning rate",
            )
        super()._complete(group, label)
        group.setdefault("optimizer", self.own_name)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_given": self._given, "_makes_state": self._makes_state}

    @functools.cached_property
    def identification(self) -> Identification:
        """What the class's own ``weight_decay`` means, with these keywords."""
        return identify(self.base, **self._given)

    def _keeps_amount(self, style: str) -> bool:
        """Whether the class would decay by its constructor's ``weight_decay``, whatever its group says."""
        return not self.identification.follows_group and style != "l2" and not self.keeps_own_decay

    @property
    def keeps_own_decay(self) -> bool:
        """Whether the class's own decay stays: nobody can say what it means, or it is of weights the class keeps."""
        return self.identification.style == "unknown" or _is_schedule_free(self.base)

    def _check_together(self, style: str, group: dict[str, Any], settings: dict[str, Any], label: str) -> None:
        super()._check_together(style, group, settings, label)
        name, own = self.base.__name__, self.identification
        if own.own_closure:
            raise _of_own_closure(name, own.own_closure)
        if style == "l2" and not own.may_be_l2:
            raise ConfigError(
                f"{type(self).__name__} cannot do style 'l2' of {label}: the weight_decay of {name} is no L2 penalty.",
                found=" ".join([f"identify({name}) says '{own.style}'.", *own.evidence]),
                valid=[style for style in self.styles if style != "l2"],
                fix="write style='decoupled', or add the penalty lam/2 * ||w||^2 to the loss",
            )
        if self.keeps_own_decay and style not in ("none", own.style) and settings["weight_decay"]:
            for key, off in (("cautious_wd", False), ("toward", "zero")):
                if settings[key] != off:
                    raise ConfigError(
                        f"{type(self).__name__} cannot do {key} of {label}: the decay of {name} is its own.",
                        found=" ".join(own.evidence),
                        fix=f"write {key}={off}, or weight_decay=0",
                    )
            why = "what its weight_decay means is unknown"
            if _is_schedule_free(self.base):
                why = "the model holds averages of the weights that it decays"
            warn(
                f"{name} keeps its own decay in {label}: {why}, so weight_decay={settings['weight_decay']!r} is handed "
                f"to it as it is, whatever style {style!r} means.",
                found=" ".join(own.evidence),
                fix="write style='none' (optimizer/decay=none) for no decay, or take an optimizer whose decay is known",
            )

    @property
    def counters(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the class's own steps change in its groups."""
        return self.identification.counters

    @property
    def plain_style(self) -> str | None:  # type: ignore[override]
        """The style of states that the class itself has saved."""
        own = self.identification.style
        return {"none": "l2", "unknown": None}.get(own, own)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure, once, on the weights as they are, then the decay, then the base optimizer's step.

        Raises:
            ConfigError: the base optimizer evaluates the closure more than once.
        """
        loss = self._run_closure(closure)
        found_inf = getattr(self, "found_inf", None)
        skipped = found_inf is not None and bool(found_inf.item())  # GradScaler's bad step: the kernel will skip too
        self._meet_groups()
        self._initialising = self._initialises_state()
        amounts = [group["weight_decay"] for group in self.param_groups]
        grads, later = [], []
        anchors: dict[Tensor, dict[str, Tensor]] = {}  # kept last: a class makes its state where it finds none at all
        try:
            with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
                for group in self.param_groups:
                    group["weight_decay"], fraction = self._split(group)
                    params = [p for p in group["params"] if p.grad is not None]
                    if skipped or not params:
                        continue
                    if pulls(group):
                        anchors |= {p: {"anchor": self._anchor(group, p)} for p in params}
                    if pulls(group) and group["style"] == "l2" and not is_zero(group["weight_decay"]):
                        # The class's own penalty pulls towards 0, so it is added here.
                        grads += [(p, p.grad) for p in params]
                        away = distances(params, group, anchors)
                        for p, g in zip(params, add_penalty([p.grad for p in params], away, group), strict=True):
                            p.grad = g
                        group["weight_decay"] = 0.0
                    if is_zero(fraction):
                        continue
                    mode = "foreach" if group.get("foreach") else "single"
                    away = distances(params, group, anchors)
                    if group["cautious_wd"]:
                        later.append((params, [p.clone() for p in params], away, fraction, mode))
                    else:
                        shrink(params, away, fraction, mode)
            result = self.base_step(None if closure is None else _once(loss, type(self).__name__))
        finally:
            for group, amount in zip(self.param_groups, amounts, strict=True):
                group["weight_decay"] = amount
            for p, grad in grads:
                p.grad = grad
            for p, kept in anchors.items():
                self.state[p].update(kept)
                self._anchors.pop(p, None)
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            for params, old, away, fraction, mode in later:
                moved = [w - p for w, p in zip(old, params, strict=True)]  # lr_t * u, whatever the optimizer
                shrink(params, masked(old if away is params else away, moved), fraction, mode)
        return loss if result is None else result

    def _split(self, group: dict[str, Any]) -> tuple[Any, Any]:
        """Return the coefficient for the base's own decay and the fraction we remove ourselves."""
        style, own = group["style"], self.identification
        if style == "l2" or (self.keeps_own_decay and style != "none"):
            return group["weight_decay"], 0.0
        if own.own_rule and style != "constant" and not (group["cautious_wd"] or pulls(group)):
            lam, lr, peak = group["weight_decay"], group["lr"], group["base_lr"]
            return kernel_coefficient(style, weight_decay=lam, lr=lr, base_lr=peak) / own.multiple, 0.0
        return 0.0, self._fraction(group)


def _keywords(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return the keywords of a call without its first argument, the parameters to train."""
    given = dict([*bound.arguments.items()][1:])
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return given


def _once(loss: Any, owner: str) -> Callable[[], Any]:
    """Return a closure that returns the loss already computed, and may be called only once."""
    losses = [loss]

    def closure() -> Any:
        if not losses:
            raise ConfigError(
                f"{owner} evaluates the closure more than once in a step, on weights that decay in between.",
                fix="use the optimizer without decoupled(), with the penalty added to the loss",
            )
        return losses.pop()

    return closure


@checked_keywords()
@functools.cache
def decoupled(optimizer_cls: type[Optimizer]) -> Any:
    r"""Return ``optimizer_cls`` with decoupled weight decay in every style, named with a ``W`` at the end.

    .. math::
        w_t = w_{t-1} - \eta_t u_t - d_t w_{t-1}

    with :math:`d_t` as in :class:`~lightning_wd.optimizers.adamw.AdamW` and :math:`u_t` the class's own update. The
    constructor takes the class's own arguments, ``style="decoupled"``, ``cautious_wd=False``, ``toward="zero"`` and
    ``anchor_dtype=None``; ``weight_decay`` is ``lam`` in the style's unit. A step runs the closure, then the decay,
    then the class's own step with its own decay set to 0. What its own decay is,
    :func:`~lightning_wd.optimizers.identify.identify` finds out: one that is decoupled already is handed the
    coefficient instead. One that is unknown is kept as it is, with a warning, and so is that of schedule-free
    optimizers, in whose state the weights are that they decay. ``cautious_wd`` reads ``u`` from how far the weights
    moved, so a move that rounds to 0 counts as agreement.

    Adam and AdamW give :class:`lightning_wd.AdamW`, SGD gives :class:`lightning_wd.SGDW`. The same argument gives the
    same class. Instances pickle.

    Args:
        optimizer_cls: a subclass of torch.optim.Optimizer.

    Style ``l2`` is the class's own ``weight_decay``, where that is found to be an L2 penalty; else it is refused.

    Raises:
        ConfigError: not an optimizer class; or one that evaluates the closure itself, like LBFGS and SAM, or (when it
            is built) on other weights, like the closure forms of schedulefree.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = decoupled(torch.optim.RMSprop)([weight], lr=0.1, weight_decay=0.5)
        >>> type(optimizer).__name__
        'RMSpropW'
        >>> weight.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> weight.detach()
        tensor([ 0.9500, -1.9000])

    References:
        Loshchilov & Hutter, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101;
        TensorFlow Addons, extend_with_decoupled_weight_decay,
        https://www.tensorflow.org/addons/api_docs/python/tfa/optimizers/extend_with_decoupled_weight_decay.
    """
    if optimizer_cls in _READY_MADE:
        return _READY_MADE[optimizer_cls]
    _check_base(optimizer_cls)
    if issubclass(optimizer_cls, DecayGroups):
        return optimizer_cls
    parameters = inspect.signature(optimizer_cls).parameters
    own = parameters.get("weight_decay")
    ours = {"style": "decoupled", "cautious_wd": False, "toward": "zero", "anchor_dtype": None, "weight_decay": 0.0}
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(k, keyword, default=v) for k, v in ours.items() if k not in parameters]
    metaclass: Any = type("DecoupledType", (type(optimizer_cls),), {})
    copyreg.pickle(metaclass, _by_base)
    return metaclass(
        f"{optimizer_cls.__name__}W",
        (_Decoupled, optimizer_cls),
        {
            "__module__": optimizer_cls.__module__,
            "__qualname__": f"decoupled.<locals>.{optimizer_cls.__name__}W",
            "__doc__": f"{optimizer_cls.__name__} with decoupled weight decay, made by lightning_wd.decoupled.",
            "__signature__": inspect.Signature(sorted([*parameters.values(), *added], key=lambda p: p.kind)),
            "base": optimizer_cls,
            "base_step": unhooked(optimizer_cls),
            "own_name": f"{optimizer_cls.__module__.partition('.')[0]}.{optimizer_cls.__name__}",
            "styles": tuple(style for style in STYLES if style not in ("hyperball", *(() if own else ("l2",)))),
            "default_weight_decay": own.default if own is not None else 0.0,
        },
    )


def _by_base(cls: Any) -> Any:
    """Pickle a class made here through its base, and a subclass of one by its name."""
    return (decoupled, (cls.base,)) if "base" in vars(cls) else cls.__qualname__


def _check_base(optimizer_cls: Any) -> None:
    if not (isinstance(optimizer_cls, type) and issubclass(optimizer_cls, Optimizer)):
        raise ConfigError(
            f"decoupled() takes a torch.optim.Optimizer class but got {optimizer_cls!r}.",
            fix="pass the class, for example decoupled(torch.optim.NAdam)",
        )
    name = optimizer_cls.__name__
    closure = inspect.signature(optimizer_cls.step).parameters.get("closure")
    if (closure is not None and closure.default is inspect.Parameter.empty) or hasattr(optimizer_cls, "second_step"):
        raise _of_own_closure(name, "more than once in a step")


def _of_own_closure(name: str, how: str) -> ConfigError:
    """Return the refusal of a class that does not evaluate its closure once, on the weights that it finds."""
    return ConfigError(
        f"{name} cannot be decoupled: it evaluates the closure itself, {how}, and would see weights that decay in "
        "between.",
        fix=f"use {name} as it is, with the penalty lam/2 * ||w||^2 added to the loss",
    )
