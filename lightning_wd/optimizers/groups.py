"""What every optimizer of this package shares: the keys of its groups, pickling, and the check of a loaded state."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_wd.decay import STYLES, check_number, check_style, step_fraction
from lightning_wd.errors import ConfigError, explain, nearest
from lightning_wd.optimizers.compiled import check_compiler
from lightning_wd.optimizers.loading import fit_checkpoint

__all__ = ["ON_RESUME", "DecayGroups", "all_l2", "group_label"]

ON_RESUME = ("checkpoint", "config", "error")
_NEED_AMOUNT = ("independent", "constant")  # styles for which the default of torch's own style makes no sense
# Keys that are no setting of an optimizer: ours and torch's names, and what schedulers keep in a group.
_LABELS = ("params", "name", "param_names", "base_lr", "base_weight_decay", "lr_scheduler")
_SCHEDULER_KEYS = ("initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum", "lr_scale")


def group_label(group: dict[str, Any], index: int) -> str:
    """Return how errors call a group: by its name, else by its position."""
    return f"group {group['name']!r}" if "name" in group else f"group {index}"


def all_l2(params: Any, style: str) -> bool:
    """Whether every group of a constructor's ``params`` has style ``l2``. An iterator is not consumed to find out."""
    if isinstance(params, (list, tuple)) and params and isinstance(params[0], dict):
        return all(isinstance(group, dict) and group.get("style", style) == "l2" for group in params)
    return params is not None and style == "l2"


class DecayGroups(Optimizer):
    """Mixin over a torch optimizer: groups with ``style``, ``base_lr`` and ``cautious``, and a checked load.

    Each group holds, beside the keys of the torch class:

    =================== ===================================================================================
    key                 meaning
    =================== ===================================================================================
    weight_decay        ``lam`` in the unit of ``style``; a schedule may write it
    style               a name of :data:`lightning_wd.decay.STYLES`
    base_lr             ``lr0``, the group's peak learning rate; a Python float
    cautious            decay only where ``u * w >= 0``
    kahan               sum the updates with compensation
    base_weight_decay   ``lam`` as configured: what a load compares, so that a schedule raises no false alarm
    lr_scheduler        which schedule :func:`lightning_wd.configure_optimizers` made; likewise compared
    =================== ===================================================================================
    """

    # What a class accepts and expects; subclasses narrow it.
    styles: ClassVar[tuple[str, ...]] = STYLES
    default_weight_decay: ClassVar[float] = 0.0
    state_keys: ClassVar[frozenset[str] | None] = None  # names of its state tensors; None: unknown
    plain_style: ClassVar[str | None] = "l2"  # of the torch class's own states, which name no style; None: unknown
    rates_restored_by: str = ""  # a schedule that brings the checkpoint's learning rates back, whatever on_resume says
    _initialising = False

    def _begin(self, *, weight_decay: Any, compile: bool, **settings: Any) -> Any:
        """Note what torch's constructor does not know, and return the ``weight_decay`` to hand to it."""
        self._amount_given = weight_decay is not None
        self._on_resume = "checkpoint"
        self._compile = compile
        self._warned_lost = False
        self._settings = settings
        return self.default_weight_decay if weight_decay is None else weight_decay

    @property
    def on_resume(self) -> str:
        """What wins where a loaded state and the configuration differ in learning rate, decay or another setting.

        ``checkpoint`` (the default; a difference warns), ``config`` or ``error``. Only ``config`` takes the state of
        another decay style: the configured style goes on with its moments, and warns. Those of an L2 run hold its
        penalty until new gradients have replaced it, after some ``1 / (1 - beta2)`` steps.
        """
        return self._on_resume

    @on_resume.setter
    def on_resume(self, value: str) -> None:
        if value not in ON_RESUME:
            close = nearest(value, ON_RESUME)
            raise ConfigError(
                explain(
                    f"on_resume must be one of the valid names but got {value!r}.",
                    valid=ON_RESUME,
                    nearest=close,
                    fix=f"write on_resume={close or 'checkpoint'}",
                )
            )
        self._on_resume = value

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch does; its ``base_lr`` is its own ``lr`` unless given.

        Raises:
            ConfigError: an unknown key, a value out of range, a group without parameters, or a style that needs an
                amount and has none.
        """
        # Optimizer.__init__ makes `defaults` and then adds the groups: our settings join in between.
        self.defaults.update(vars(self).pop("_settings", {}))
        if isinstance(param_group, dict):
            if not isinstance(param_group.get("params"), (Tensor, set)) and "params" in param_group:
                param_group["params"] = list(param_group["params"])
            self._complete(param_group, group_label(param_group, len(self.param_groups)))
        super().add_param_group(param_group)

    def _complete(self, group: dict[str, Any], label: str) -> None:
        """Check a group's settings and fill in the keys that are derived."""
        known = [*self.defaults, *_LABELS, *_SCHEDULER_KEYS]
        for key in group:
            if key not in known:
                close = nearest(key, known)
                raise ConfigError(
                    explain(
                        f"{label} has an unknown key {key!r}.",
                        found=f"{key}={group[key]!r}",
                        valid=[*self.defaults, "name", "base_lr"],
                        nearest=close,
                        fix=f"write {close!r}, or remove it" if close else "remove it",
                    )
                )
        if isinstance(group.get("params"), list) and not group["params"]:
            raise ConfigError(explain(f"{label} has no parameters.", fix="remove the group"))
        for key, value in {**self.defaults, **group}.items():
            if key in self.defaults and isinstance(value, Sequence) and not isinstance(value, (str, tuple)):
                group[key] = tuple(value)  # OmegaConf's ListConfig would make the checkpoint unsafe to load
        get = {**self.defaults, **group}.__getitem__
        style = get("style")
        self._check_style(style, label)
        group["weight_decay"] = self._amount(group, style, label)
        for key in ("lr", "eps", "momentum"):
            if key in self.defaults and not isinstance(get(key), (Tensor, tuple)):  # Adafactor has two eps
                group[key] = check_number(f"{key} of {label}", get(key))
        base_lr = group.get("base_lr")
        group["base_lr"] = check_number(f"base_lr of {label}", _as_float(get("lr") if base_lr is None else base_lr))
        for key in ("cautious", "kahan"):
            if key in self.defaults and not isinstance(get(key), bool):
                raise ConfigError(
                    explain(f"{key} of {label} must be True or False but got {get(key)!r}.", fix=f"write {key}=True")
                )
        if style == "l2" and get("cautious"):
            raise ConfigError(
                explain(
                    f"cautious has no meaning with style 'l2' of {label}: there is no decay step to hold back.",
                    fix="write cautious=False in that group, or a decoupled style",
                )
            )
        if self._compile and isinstance(group.get("params"), list):
            self._check_compile({**self.defaults, **group}, label)
        flag = "decoupled_weight_decay"  # Adam and AdamW tell themselves apart by it
        if flag in self.defaults and group.setdefault(flag, style != "l2") != (style != "l2"):
            raise ConfigError(
                explain(
                    f"{flag}={group[flag]!r} of {label} contradicts style {style!r}.",
                    fix="leave it out: the style says it (style='l2' is not decoupled)",
                )
            )
        group["base_weight_decay"] = _as_float(group["weight_decay"])
        _warn_sign_flip(group, style, label)

    def _check_compile(self, group: dict[str, Any], label: str) -> None:
        """Refuse what a compiled step does not do, and a machine that cannot compile."""
        for key in ("fused", "foreach", "differentiable", "kahan"):
            if group.get(key):
                raise ConfigError(
                    explain(
                        f"compile=True does not go with {key}=True of {label}.",
                        fix=f"leave out {key}, or write compile=False",
                    )
                )
        check_compiler({p.device.type for p in _tensors(group["params"])})

    def _check_style(self, style: object, label: str) -> None:
        check_style(style, where=f"style of {label}" if label else "style")
        if style not in self.styles:
            raise ConfigError(
                explain(
                    f"{type(self).__name__} does not do style {style!r} of {label}.",
                    valid=self.styles,
                    fix="use lightning_wd.AdamW or lightning_wd.SGDW, which take every style in every group",
                )
            )

    def _amount(self, group: dict[str, Any], style: str, label: str) -> Any:
        """Return the group's ``weight_decay``: its own, the constructor's, or the class's where that has a meaning."""
        amount = group.get("weight_decay")
        if amount is None:
            if style in _NEED_AMOUNT and not self._amount_given:
                raise ConfigError(
                    explain(
                        f"style '{style}' of {label} needs a weight_decay of its own: the default "
                        f"{self.default_weight_decay:g} is in the unit of style 'decoupled'.",
                        fix="write weight_decay=<lambda>: the fraction of the weights that a step at the peak learning "
                        "rate removes, for example 1e-5",
                    )
                )
            amount = self.defaults["weight_decay"]
        return amount if isinstance(amount, Tensor) else check_number(f"weight_decay of {label}", amount)

    def _warn_lost_decay(self) -> None:
        """Warn, once, of groups whose decay is too small to change a weight of their dtype."""
        if self._warned_lost or torch.compiler.is_compiling():
            return
        self._warned_lost = True
        for index, group in enumerate(self.param_groups):
            if group.get("kahan") or isinstance(group["weight_decay"], Tensor):
                continue
            fraction = _peak_fraction(group, group["style"])
            for dtype in {p.dtype for p in group["params"] if p.is_floating_point()}:
                half_step = torch.finfo(dtype).eps / 4  # the smallest relative change that can move a weight
                if 0 < fraction < half_step:
                    warnings.warn(
                        explain(
                            f"the decay of {group_label(group, index)} is lost in {str(dtype).removeprefix('torch.')}: "
                            f"a step removes d_t = {fraction:.3g} of a weight, less than the dtype's half step "
                            f"{half_step:.3g}, so the weight rounds back.",
                            fix="write kahan=True, or keep the weights in float32 (Lightning: precision=bf16-mixed)",
                        ),
                        UserWarning,
                        stacklevel=4,
                    )

    def __getstate__(self) -> dict[str, Any]:
        # Optimizer.__getstate__ keeps three attributes only; copies and pickles would lose ours.
        ours = {key: vars(self)[key] for key in ("_amount_given", "_on_resume", "_compile", "_warned_lost")}
        return {**super().__getstate__(), **ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            if "decoupled_weight_decay" in self.defaults:
                group["decoupled_weight_decay"] = group["style"] != "l2"  # torch's AdamW sets True in every group
        if "fused" in self.defaults and _scales_when_fused(type(self)):
            # torch sets this in the constructor only: a copy, or a load that changes `fused`, would leave it wrong.
            self._step_supports_amp_scaling = not self._compile and all(group["fused"] for group in self.param_groups)

    @torch._disable_dynamo  # type: ignore[attr-defined]
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

        def fit(_: Optimizer, adapted: dict[str, Any]) -> dict[str, Any]:
            return fit_checkpoint(
                self,
                adapted,
                on_resume=self._on_resume,
                state_keys=self.state_keys,
                plain_style=self.plain_style,
                rates_restored_by=self.rates_restored_by,
            )

        # As a hook it runs after the user's own, which may rename parameters, and before anything is written.
        handle = self.register_load_state_dict_pre_hook(fit)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def _initialises_state(self) -> bool:
        """Whether this step only makes state: no state yet, learning rates and gradients all 0.

        torch.distributed.checkpoint prepares an empty optimizer by such a step, trusting that lr 0 moves nothing.
        """
        if self.state or not any(group["style"] == "constant" for group in self.param_groups):
            return False
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return False
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        return all(group["lr"] == 0 for group in self.param_groups) and not any(g.any() for g in grads)

    def _fraction(self, group: dict[str, Any]) -> Any:
        """Return ``d_t`` of a group for this step."""
        if group["style"] == "constant" and self._initialising:
            return 0.0
        return step_fraction(
            group["style"], weight_decay=group["weight_decay"], lr=group["lr"], base_lr=group["base_lr"]
        )

    def _run_closure(self, closure: Callable[[], Any] | None) -> Any:
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()


def _scales_when_fused(cls: type) -> bool:
    """Whether a constructor of the class tells GradScaler that fused steps unscale; torch 2.6's Adagrad does not."""
    codes = [getattr(vars(base).get("__init__"), "__code__", None) for base in cls.__mro__]
    return any("_step_supports_amp_scaling" in code.co_names for code in codes if code is not None)


def _tensors(params: list[Any]) -> list[Tensor]:
    """Return the tensors of a list of tensors or (name, tensor) pairs; what else is in it is torch's to refuse."""
    pairs = [p[-1] if isinstance(p, tuple) else p for p in params]
    return [p for p in pairs if isinstance(p, Tensor)]


def _as_float(value: Any) -> Any:
    """Return a 0-dim tensor as a float (a Tensor lr must not alias ``base_lr``), and anything else as it is."""
    return value.item() if isinstance(value, Tensor) else value


def _peak_fraction(group: dict[str, Any], style: str) -> float:
    peak = group["base_lr"]
    return float(step_fraction(style, weight_decay=_as_float(group["weight_decay"]), lr=peak, base_lr=peak))


def _warn_sign_flip(group: dict[str, Any], style: str, label: str) -> None:
    fraction = _peak_fraction(group, style)
    if fraction >= 1:
        warnings.warn(
            explain(
                f"a step of {label} decays weights by d_t = {fraction:.3g} of themselves: at 1 they are erased, above "
                "it they change sign.",
                found=f"style={style}, weight_decay={_as_float(group['weight_decay'])!r}, base_lr={group['base_lr']!r}",
                fix="lower weight_decay, or check which unit the style wants",
            ),
            UserWarning,
            stacklevel=4,
        )
