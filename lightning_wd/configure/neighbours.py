"""What else in a run acts on the weights and the optimizer: the module's own hooks, and callbacks of others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_wd._lightning import either
from lightning_wd._private import attached_trainer
from lightning_wd.errors import ConfigError, explain, listed
from lightning_wd.mask.module_tree import walk
from lightning_wd.optimizers.param_groups import as_float, group_label
from lightning_wd.styles import step_fraction

__all__ = ["check_neighbours", "may_unfreeze", "watch", "watch_all"]

_LIGHTNING = ("lightning", "pytorch_lightning")
_BY_PEAK = ("independent", "corrected")  # styles whose d_t depends on lr_t / lr0
_MORE = 1.0 + 1e-6
_EVERY = 100  # steps between two looks for untrained parameters within an epoch
_HOOKS: WeakKeyDictionary[Optimizer, Any] = WeakKeyDictionary()
_NAMED: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()  # warned of already


def check_neighbours(module: nn.Module, scheduled: bool) -> None:
    """Refuse BackboneFinetuning, and warn of a module that steps the optimizer or the schedule in its own way.

    Raises:
        ConfigError: the module's trainer has Lightning's BackboneFinetuning.
    """
    callbacks = getattr(attached_trainer(module), "callbacks", [])
    for cls in (type(callback) for callback in callbacks):
        if any(base.__name__ == "BackboneFinetuning" for base in cls.__mro__):
            backbone = getattr(module, "backbone", None)  # perhaps a property, whose parameters have other names
            pattern = f"{next((name for name, each in module.named_modules() if each is backbone), 'backbone')}.*"
            raise ConfigError(
                f"{cls.__name__} adds the backbone as one group and then writes the learning rate of the last group "
                "only, but the mask splits the backbone into groups that decay and groups that do not.",
                fix=f"write MaskedFinetuning(freeze=[{pattern!r}], unfreeze={{<epoch>: [{pattern!r}]}}) in its place",
            )
    name = type(module).__name__
    automatic = getattr(module, "automatic_optimization", False)  # else Lightning calls neither method
    if automatic and scheduled and _overrides(module, "lr_scheduler_step"):
        _warn(
            f"{name}.lr_scheduler_step replaces Lightning's, and may step lr_scheduler otherwise than configured.",
            fix="remove it where it does what Lightning's own does: scheduler.step(), or scheduler.step(metric) for "
            "ReduceLROnPlateau",
        )
    if automatic and _overrides(module, "optimizer_step"):
        _warn(
            f"{name}.optimizer_step replaces Lightning's, and may skip steps or set a learning rate of its own.",
            fix="remove it where it only calls optimizer.step(closure=optimizer_closure), and leave learning rates to "
            "lr_scheduler",
        )


def may_unfreeze(callbacks: Iterable[Any]) -> bool:
    """Whether one of the callbacks may add frozen parameters to the optimizer: Lightning's finetuning, or ours."""
    finetuning = either("lightning.pytorch.callbacks.BaseFinetuning")
    return any(isinstance(c, finetuning) or getattr(c, "unfreezes", False) for c in callbacks)


def _overrides(module: nn.Module, method: str) -> bool:
    """Whether a LightningModule, of either of Lightning's packages, has a method of its own."""
    own = getattr(getattr(module, method, None), "__module__", None)
    return own is not None and own.partition(".")[0] not in _LIGHTNING


def watch(optimizer: Optimizer, module: nn.Module) -> None:
    """Warn, once, of parameters of the module that have gradients and are in no optimizer of its run.

    They are looked for after the first step of each epoch, and after every hundredth step.
    """
    if (earlier := _HOOKS.get(optimizer)) is not None:
        earlier.remove()
    _HOOKS[optimizer] = optimizer.register_step_post_hook(_Watch(module))


def watch_all(trainer: Any, module: nn.Module) -> None:
    """Watch every optimizer of a run."""
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, Optimizer):
            watch(optimizer, module)


def _warn(problem: str, **parts: Any) -> None:
    from lightning.fabric.utilities.rank_zero import rank_zero_warn  # type: ignore[attr-defined]

    rank_zero_warn(explain(problem, **parts))


class _Watch:
    """The hook of :func:`watch`."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._steps, self._epoch = module, 0, -1
        self._first: list[float] = []  # the rate of each group at the first step
        self._told = False

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        trainer = attached_trainer(self._module)
        epoch = getattr(trainer, "current_epoch", 0)
        due = self._steps % _EVERY == 0 or epoch != self._epoch
        self._steps, self._epoch = self._steps + 1, epoch
        if due:
            _warn_of_untrained(self._module, [*getattr(trainer, "optimizers", []), optimizer])
            reading = getattr(optimizer, "first_step", None)
            if not self._told and hasattr(optimizer, "decay_config") and (reading is None or reading.settled):
                self._told = self._warn_of_rates(optimizer)

    def _warn_of_rates(self, optimizer: Any) -> bool:
        """Warn of a rate above the peak that the decay is computed from, or of one that stays below it unscheduled."""
        rates = [as_float(group["lr"]) for group in optimizer.param_groups]
        self._first, first = self._first or rates, self._first
        for index, (group, rate) in enumerate(zip(optimizer.param_groups, rates, strict=True)):
            peak = group["base_lr"]
            stays = index < len(first) and rate == first[index] and not optimizer.scheduled
            decays = group["style"] in _BY_PEAK and group["weight_decay"]
            if decays and (rate > peak * _MORE or (stays and rate < peak / _MORE)):
                removed = step_fraction(group["style"], weight_decay=group["weight_decay"], lr=rate, base_lr=peak)
                _warn(
                    f"{group_label(group, index)} runs at a learning rate of {rate:.3g}, but its decay is that of the "
                    f"peak lr0 = {peak:.3g}: a step removes {as_float(removed):.3g} of a weight.",
                    found=f"style '{group['style']}', weight_decay {as_float(group['weight_decay']):.3g}",
                    fix="configure the largest learning rate of the run as optimizer.lr (StochasticWeightAveraging: "
                    "swa_lrs not above it), or use optimizer/decay=decoupled",
                )
                return True
        return False


def _warn_of_untrained(module: nn.Module, optimizers: list[Optimizer]) -> None:
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    every = {id(p): p for p in module.parameters()}
    lost = {key for key, p in every.items() if p.requires_grad and p.grad is not None and key not in held}
    if not lost or not held & every.keys():  # it trains copies, as DeepSpeed's do
        return
    known = _NAMED.setdefault(module, set())
    first = {id(found.param): found.name for found in reversed(walk(module).tensors) if id(found.param) in lost}
    names = [name for name in reversed(first.values()) if name not in known]
    known.update(names)
    if names:
        _warn(
            f"{type(module).__name__} has parameters with gradients that no optimizer trains.",
            found=listed(names, 3),
            fix="to unfreeze them in a later epoch, let MaskedFinetuning(freeze=[...], unfreeze={epoch: [...]}) do "
            "it, or call optimizer.add_param_group({'params': [...]}); to leave them as they are, freeze them with "
            "requires_grad_(False)",
        )
