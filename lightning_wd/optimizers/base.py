"""What every optimizer of this package shares: the keys of its groups, pickling, and the check of a loaded state."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_wd._private import disable_dynamo, tells_scaler_when_fused
from lightning_wd.errors import ConfigError, as_typed, choice, flag, keys, number, warn
from lightning_wd.optimizers.anchors import anchors_of, no_anchor, tell_of_moved
from lightning_wd.optimizers.checkpoint import ON_RESUME, fit_checkpoint, keep_numbers
from lightning_wd.optimizers.compiled import check_compiler, kinds_of
from lightning_wd.optimizers.hyperball import check_settings, check_weights, radius_of, turns
from lightning_wd.optimizers.kernels import pulls
from lightning_wd.optimizers.low_precision import meet_low_precision
from lightning_wd.optimizers.param_groups import as_float, group_label, peak_fraction
from lightning_wd.styles import ALIASES, RENAMED, STYLES, check_style, check_toward, step_fraction

__all__ = ["DecayGroups", "check_decoupled"]

_RENAMED = {**RENAMED, "cautious": "cautious_wd"}  # old keywords and group keys -> their names
_NEED_AMOUNT = ("independent", "constant")  # the default weight_decay is in the unit of `decoupled`, not in theirs
_NUMBERS = ("lr", "eps", "momentum", "weight_decay", "base_lr")
_FLAGS = ("cautious_wd", "nesterov", "amsgrad", "maximize", "capturable", "differentiable")
# Keys that are not settings: ours and torch's labels, and what schedulers keep in a group.
_LABELS = ("params", "name", "param_names", "base_lr", "base_weight_decay")
_SCHEDULER_KEYS = ("initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum", "lr_scale")


class DecayGroups(Optimizer):
    """Mixin over a torch optimizer: checked groups with ``style`` and ``base_lr``, and a checked load.

    Each group holds these keys beside those of the torch class:

    - ``weight_decay``: ``lam`` in the unit of ``style``; a schedule may write it.
    - ``style``: a name of :data:`lightning_wd.styles.STYLES`.
    - ``base_lr``: ``lr0``, the group's peak learning rate; a Python float.
    - ``cautious_wd``: decay only where ``u * w >= 0``.
    - ``toward``: ``zero``, ``init`` or the path of a checkpoint.
    - ``anchor_dtype``: of the anchors; None is the weight's.
    - ``kahan``: sum the updates with compensation; None until the first step decides.
    - ``base_weight_decay``: ``lam`` as configured; compared on load, since a schedule may change ``weight_decay``.
    """

    # What a class accepts and expects; subclasses narrow it.
    styles: ClassVar[tuple[str, ...]] = STYLES
    default_weight_decay: ClassVar[float] = 0.0
    l2_form: ClassVar[Any] = None  # the class to build when every group is l2
    state_keys: ClassVar[frozenset[str] | None] = None  # names of its state tensors; None: unknown
    counters: ClassVar[tuple[str, ...]] = ()  # keys of groups that are state, no settings
    own_name: ClassVar[str | None] = None  # what its groups have under `optimizer`, where one class steps them all
    plain_style: ClassVar[str | None] = "l2"  # of the torch class's own states, which name no style; None: unknown
    typed: Mapping[str, str] = {}  # how messages spell its settings, as `as_typed` takes it
    _initialising = False
    # Takes over groups that are added later, where the mask is known; set by configure_optimizers.
    admit: Callable[[Any, dict[str, Any]], None] | None = None

    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "__init__" in vars(cls) and "__signature__" not in vars(cls):  # Python 3.10 would take that of __new__
            own = inspect.signature(cls.__init__)
            cls.__signature__ = own.replace(parameters=[*own.parameters.values()][1:])

    def __new__(cls, params: Any = None, *args: Any, style: str = "decoupled", **settings: Any) -> Any:
        known = inspect.signature(cls).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            keys(cls.__name__, settings, known, renamed=_RENAMED, aliases=ALIASES)
        if settings.get("anchor_dtype") and settings.get("toward", "zero") == "zero" and not _name_toward(params):
            raise no_anchor(f"anchor_dtype={settings['anchor_dtype']!r} of {cls.__name__}", "toward='init'")
        if "l2_form" in vars(cls) and _all_l2(params, style):
            return cls.l2_form(params, *args, **settings)
        return super().__new__(cls)

    def _begin(self, *, weight_decay: Any, compile: bool | None = None, **settings: Any) -> Any:
        """Keep what torch's constructor does not take, and return the ``weight_decay`` to give it."""
        self._amount_given = weight_decay is not None
        self._anchors: dict[Tensor, Tensor] = {}  # of weights that have not stepped yet; then `state` holds them
        self._resumed: set[Tensor] = set()  # weights whose anchor a loaded state brought
        self._on_resume = "checkpoint"
        self._compile = compile
        self._groups_met = 0  # that have stepped
        self._settings = settings
        if weight_decay is None:
            return 0.0 if settings["style"] == "hyperball" else self.default_weight_decay
        return weight_decay

    @property
    def on_resume(self) -> str:
        """Which side wins when a loaded state differs from the configuration.

        ``checkpoint`` (the default; a difference warns), ``config`` or ``error``. Only ``config`` takes the state of
        another decay style: it keeps the moments, continues in the configured style, and warns. The moments of an L2
        run contain its penalty for about ``1 / (1 - beta2)`` more steps.
        """
        return self._on_resume

    @on_resume.setter
    def on_resume(self, value: str) -> None:
        choice("on_resume", value, ON_RESUME)
        self._on_resume = value

    @disable_dynamo
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch does; its ``base_lr`` is its own ``lr`` unless given.

        In an optimizer of :func:`lightning_wd.configure_optimizers`, parameters without names get theirs, and a group
        without ``weight_decay`` is split by the mask.

        Raises:
            ConfigError: an unknown key, a value out of range, no parameters, or no amount where the style needs one.
        """
        if self.admit is not None and isinstance(param_group, dict):
            self.admit(self, param_group)
        else:
            self.append_group(param_group)

    def stepper_of(self, group: dict[str, Any]) -> Any:
        """Return the optimizer that steps a group of this one: itself, except in a MultiOptimizer."""
        return self

    def append_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as it is."""
        if "_settings" in vars(self):  # Optimizer.__init__ has made `defaults` and adds its first group
            self.defaults.update(vars(self).pop("_settings"))
            self._check(self.defaults, self.defaults)
        if isinstance(param_group, dict) and not isinstance(param_group.get("params", set()), set):  # else torch raises
            params = param_group["params"]
            param_group["params"] = [params] if isinstance(params, Tensor) else list(params)
            self._complete(param_group, group_label(param_group, len(self.param_groups)))
        super().add_param_group(param_group)
        self._start(param_group, group_label(param_group, len(self.param_groups) - 1))

    def _start(self, group: dict[str, Any], label: str) -> None:
        """Keep what a group starts from: its anchors. A weight that could not stay on its hyperball is refused."""
        if pulls(group):
            self._anchors |= anchors_of(group, label)
        elif group["style"] == "hyperball":
            check_weights(group, label)

    def _check(self, given: dict[str, Any], settings: dict[str, Any], of: str = "") -> None:
        """Check settings, and keep them in ``settings`` as plain values; ``of`` says whose they are."""
        for key, value in list(given.items()):
            if key in _FLAGS:
                flag(key + of, value)
            elif key == "style":
                check_style(key + of, value)
            elif key == "toward":
                settings[key] = check_toward(key + of, value, None)
            elif key == "anchor_dtype" and value is not None:
                settings[key] = choice(key + of, str(value).removeprefix("torch."), ("bfloat16",))
            elif key == "kahan":
                flag(key + of, value, optional=True)
            elif isinstance(value, Sequence) and not isinstance(value, (str, tuple)):
                settings[key] = tuple(value)  # a ListConfig would make the checkpoint unsafe to load
            elif key in _NUMBERS and not isinstance(value, (Tensor, tuple)):  # Adafactor has two eps
                settings[key] = number(key + of, value, below=1.0 if key == "momentum" else math.inf)

    def _complete(self, group: dict[str, Any], label: str) -> None:
        """Check what a group sets differently from the constructor, and fill in the keys that are derived."""
        renamed = {old: new for old, new in _RENAMED.items() if new in self.defaults}
        keys(label, [k for k in group if k not in _SCHEDULER_KEYS], [*self.defaults, *_LABELS], renamed=renamed)
        if not group["params"]:
            raise ConfigError(f"{label} has no parameters.", fix="remove the group")
        for key in ("weight_decay", "base_lr"):  # None is the default
            if group.get(key, "") is None:
                del group[key]
        defaults = {**self.defaults, "base_lr": self.defaults["lr"]}
        own = {key: group[key] for key in defaults if key in group and not _same(group[key], defaults[key])}
        self._check(own, group, of=f" of {label}")
        settings = {**self.defaults, **group}
        style = settings["style"]
        self._check_together(style, group, settings, label)
        group["style"], group["weight_decay"] = style, settings["weight_decay"]
        peak = settings.get("base_lr", settings["lr"])
        # A float of its own: a Tensor lr must not alias it.
        group["base_lr"] = number(f"base_lr of {label}", peak.item()) if isinstance(peak, Tensor) else peak
        if "decoupled_weight_decay" in self.defaults:  # torch tells Adam from AdamW by this key
            group["decoupled_weight_decay"] = style != "l2"
        group["base_weight_decay"] = as_float(group["weight_decay"])
        if (fraction := peak_fraction(group)) >= 1:
            warn(
                f"a step of {label} decays weights by d_t = {fraction:.3g} of themselves: 1 erases "
                "them, more flips their sign.",
                found=f"style={style}, weight_decay={group['base_weight_decay']!r}, base_lr={group['base_lr']!r}",
                fix="lower weight_decay, or check which unit the style wants",
                stacklevel=3,
            )

    def _check_together(self, style: str, group: dict[str, Any], settings: dict[str, Any], label: str) -> None:
        """Refuse settings that rule each other out, and ``compile`` on a machine that cannot."""
        if style not in self.styles:
            raise ConfigError(
                f"{type(self).__name__} does not do style {style!r} of {label}.",
                valid=self.styles,
                fix="use lightning_wd.AdamW or lightning_wd.SGDW, which take every style in every group",
            )
        if style in _NEED_AMOUNT and "weight_decay" not in group and not self._amount_given:
            raise ConfigError(
                f"style '{style}' of {label} needs a weight_decay of its own: the default "
                f"{self.default_weight_decay:g} is in the unit of style 'decoupled'.",
                fix="write weight_decay=<lambda>: the fraction of the weights that a step at the peak learning "
                "rate removes, for example 1e-5",
            )
        if style in ("l2", "hyperball") and settings["cautious_wd"]:
            raise ConfigError(
                f"cautious_wd has no meaning with style {style!r} of {label}: there is no decay step to hold back.",
                fix="write cautious_wd=False in that group, or a decoupled style",
            )
        check_toward(f"toward of {label}", settings["toward"], style)
        if style == "hyperball":
            check_settings(settings, label)
        check_decoupled(group.get("decoupled_weight_decay"), style, f" of {label}")
        if not self._compile:
            return
        for key in ("fused", "foreach", "differentiable", "kahan"):
            if settings.get(key):
                fix = f"leave out {key}, or write compile=False"
                raise ConfigError(f"compile=True does not go with {key}=True of {label}.", fix=fix)
        params = [p[-1] if isinstance(p, tuple) else p for p in group["params"]]  # torch refuses what is no tensor
        check_compiler({p.device.type for p in params if isinstance(p, Tensor)})

    def _meet_groups(self) -> None:
        """Look at the groups that have not stepped yet: at their precision, and at anchors that are no longer init."""
        if self._groups_met < len(self.param_groups) and not torch.compiler.is_compiling():
            new = [*enumerate(self.param_groups)][self._groups_met :]
            self._groups_met = len(self.param_groups)
            meet_low_precision(new, compiled=bool(self._compile))
            for index, group in new if self._anchors and not _is_capturing() and not self._only_makes_state() else ():
                read_here = {p: anchor for p, anchor in self._anchors.items() if p not in self._resumed}
                tell_of_moved(group, group_label(group, index), read_here)

    def __getstate__(self) -> dict[str, Any]:
        # Optimizer.__getstate__ keeps three attributes only; copies and pickles would lose ours.
        ours = ("_amount_given", "_anchors", "_resumed", "_on_resume", "_compile", "_groups_met")
        return {**super().__getstate__(), **{key: vars(self)[key] for key in ours}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if any(group.get("kahan", False) is None for group in self.param_groups):  # saved before a step decided
            self._groups_met = 0
        for group in self.param_groups:
            if "decoupled_weight_decay" in self.defaults:
                group["decoupled_weight_decay"] = group["style"] != "l2"  # torch's AdamW sets True in every group
        if "fused" in self.defaults and tells_scaler_when_fused(type(self)):
            # torch sets this in the constructor only: a copy, or a load that changes `fused`, would leave it wrong.
            self._step_supports_amp_scaling = not self._compile and all(group["fused"] for group in self.param_groups)

    @disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """Return the state, as torch does. It has every anchor, those of weights that have not stepped yet included."""
        saved = super().state_dict()
        for group, packed in zip(self.param_groups, saved["param_groups"], strict=True):
            stepper = self.stepper_of(group)
            for p, key in zip(group["params"], packed["params"], strict=True) if pulls(group) else ():
                if "anchor" not in self.state.get(p, {}):
                    anchor = stepper._anchors[p] = stepper._anchor(group, p)
                    saved["state"][key] = {**saved["state"].get(key, {}), "anchor": anchor}
        return saved

    @disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that fits; nothing is changed by one that does not.

        Settings that the state lacks (plain torch.optim states) keep their configured values. Where settings
        differ, :attr:`on_resume` says which side wins.

        States of this package name their style in every torch version. Plain states of torch < 2.7 do not say whether
        Adam or AdamW saved them: styles ``l2`` and ``decoupled`` load either, the other styles neither.

        Raises:
            CheckpointMismatchError: the state is of another optimizer, of other groups or parameters, or (unless
                :attr:`on_resume` is "config") of another decay style.
        """
        load = super().load_state_dict
        fitted: dict[str, Any] = {}
        anchors: dict[Tensor, Tensor] = {}

        def fit(_: Optimizer, adapted: dict[str, Any]) -> dict[str, Any]:
            fitted.update(fit_checkpoint(self, adapted))
            anchors.update(self._take_anchors(fitted))
            return fitted

        with as_typed(self.typed):
            if load.__func__ is not Optimizer.load_state_dict:  # type: ignore[attr-defined]
                load(fit(self, state_dict))  # the class has its own, which may run no hooks: bitsandbytes
            else:
                # As a hook it runs after the user's own, which may rename parameters, and before anything is written.
                handle = self.register_load_state_dict_pre_hook(fit)
                try:
                    load(state_dict)
                finally:
                    handle.remove()
                keep_numbers(self, fitted)
            for group in self.param_groups:
                stepper = self.stepper_of(group)
                for p in group["params"]:
                    stepper._anchors.pop(p, None)
                stepper._anchors |= {p: anchors[p] for p in group["params"] if p in anchors}

    def _take_anchors(self, fitted: dict[str, Any]) -> dict[Tensor, Tensor]:
        """Take the anchors of weights that had not stepped out of a state, and return them.

        torch's classes make their state where they find none at all. Where a state has no anchors, as torch's own,
        those that the weights have go on.
        """
        state, anchors = {**fitted["state"]}, {}
        for group, saved in zip(self.param_groups, fitted["param_groups"], strict=True):
            stepper = self.stepper_of(group)
            for p, key in zip(group["params"], saved["params"], strict=True) if pulls(saved) else ():
                held = state.get(key, {})
                if "anchor" not in held:
                    anchors[p] = stepper._anchor(group, p)
                    continue
                stepper._resumed.add(p)
                if len(held) == 1:
                    anchors[p] = state.pop(key)["anchor"]
        fitted["state"] = state
        return anchors

    def _initialises_state(self) -> bool:
        """Whether this step must not decay at rate 0, as style ``constant`` does, since it only creates state."""
        return any(group["style"] == "constant" for group in self.param_groups) and self._only_makes_state()

    def _only_makes_state(self) -> bool:
        """Whether there is no state yet, and all learning rates and gradients are 0.

        torch.distributed.checkpoint fills an empty optimizer by such a step, and relies on lr 0 changing nothing.
        """
        if any(p in self.state for group in self.param_groups for p in group["params"]):  # others share a state
            return False
        if _is_capturing():
            return False
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        return all(group["lr"] == 0 for group in self.param_groups) and not any(g.any() for g in grads)

    def _fraction(self, group: dict[str, Any]) -> Any:
        """Return ``d_t`` of a group for this step."""
        style, lam = group["style"], group["weight_decay"]
        if style == "constant" and self._initialising:
            return 0.0
        return step_fraction(style, weight_decay=lam, lr=group["lr"], base_lr=group["base_lr"])

    def _anchor(self, group: dict[str, Any], p: Tensor) -> Tensor:
        """Return what a weight decays towards, in the dtype asked for and where the weight is now.

        One whose group got its ``toward`` by hand starts from here.
        """
        anchor: Tensor | None = self.state.get(p, {}).get("anchor", self._anchors.get(p))
        dtype = torch.bfloat16 if group["anchor_dtype"] else p.dtype
        if anchor is not None and (anchor.dtype, anchor.device) == (dtype, p.device):
            return anchor
        return torch.empty_like(p, dtype=dtype, requires_grad=False).copy_(p.detach() if anchor is None else anchor)

    def _keep_own_state(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        kinds: Mapping[Any, Tensor],
        states: list[dict[str, Any]] | None = None,
    ) -> list[dict[str, Any]]:
        """Make what a step needs beside the kernel's own state, where the weights are; return all states."""
        states = states or [self.state[p] for p in params]
        if pulls(group):
            dtype = torch.bfloat16 if group["anchor_dtype"] else None
            wanted = {(p.device, dtype or p.dtype) for p in kinds.values()}
            anchors = [state["anchor"] for state in states if "anchor" in state]
            found = {(anchor.device, anchor.dtype) for anchor in kinds_of(anchors).values()}
            if len(anchors) < len(params) or len(wanted) > 1 or found != wanted:
                for p, state in zip(params, states, strict=True):
                    state["anchor"] = self._anchor(group, p)
                    self._anchors.pop(p, None)
        for p, state in zip(params, states, strict=True) if group["style"] == "hyperball" else ():
            if "radius" not in state and turns(group, p):
                state["radius"] = radius_of(p, "a weight")
        for p, state in zip(params, states, strict=True) if group.get("kahan") else ():
            if "kahan" not in state:
                state["kahan"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return states

    def _run_closure(self, closure: Callable[[], Any] | None) -> Any:
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()


def check_decoupled(flag: Any, style: str, of: str = "") -> None:
    """Refuse a ``decoupled_weight_decay`` that contradicts the style; None says nothing."""
    if flag is not None and flag != (style != "l2"):
        raise ConfigError(
            f"decoupled_weight_decay={flag!r}{of} contradicts style {style!r}.",
            fix="leave it out: the style says it (style='l2' is not decoupled)",
        )


def _is_capturing() -> bool:
    """Whether a CUDA graph is recorded, which may read nothing from the device."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _name_toward(params: Any) -> bool:
    """Whether a group of a constructor's ``params`` says itself what it decays towards."""
    groups = params if isinstance(params, (list, tuple)) else ()
    return any(isinstance(group, dict) and "toward" in group for group in groups)


def _same(value: Any, default: Any) -> bool:
    """Whether a value is the constructor's, which was checked. True is not 1 here."""
    return value is default or (type(value) is type(default) and not isinstance(value, Tensor) and value == default)


def _all_l2(params: Any, style: str) -> bool:
    """Whether every group of a constructor's ``params`` has style ``l2``. An iterator is not consumed to find out."""
    if isinstance(params, (list, tuple)) and params and isinstance(params[0], dict):
        return all(isinstance(group, dict) and group.get("style", style) == "l2" for group in params)
    return params is not None and style == "l2"
