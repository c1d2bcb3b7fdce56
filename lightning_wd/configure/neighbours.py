"""What else in a run acts on the weights and the optimizer: the module's own hooks, and callbacks of others."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_warn  # type: ignore[attr-defined]
from torch import nn
from torch.optim import Optimizer

from lightning_wd._private import attached_trainer
from lightning_wd.errors import ConfigError, explain, listed
from lightning_wd.mask.module_tree import walk

__all__ = ["check_neighbours", "watch", "watch_all"]

_LIGHTNING = ("lightning", "pytorch_lightning")
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
            raise ConfigError(
                f"{cls.__name__} adds the backbone as one group and then writes the learning rate of the last group "
                "only, but the mask splits the backbone into groups that decay and groups that do not.",
                fix="write MaskedFinetuning(freeze=['backbone.*'], unfreeze={<epoch>: ['backbone.*']}) in its place",
            )
    name = type(module).__name__
    automatic = getattr(module, "automatic_optimization", False)  # else Lightning calls neither method
    if automatic and scheduled and _overrides(module, "lr_scheduler_step"):
        rank_zero_warn(
            explain(
                f"{name}.lr_scheduler_step replaces Lightning's, and may step lr_scheduler otherwise than configured.",
                fix="remove it, or let it call scheduler.step() and nothing else (scheduler.step(metric) for "
                "ReduceLROnPlateau)",
            )
        )
    if automatic and _overrides(module, "optimizer_step"):
        rank_zero_warn(
            explain(
                f"{name}.optimizer_step replaces Lightning's, and may skip steps or set a learning rate of its own.",
                fix="remove it, or let it call optimizer.step(closure=optimizer_closure) each time and leave "
                "learning rates to lr_scheduler",
            )
        )


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


class _Watch:
    """The hook of :func:`watch`."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._steps, self._epoch = module, 0, -1

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        trainer = attached_trainer(self._module)
        epoch = getattr(trainer, "current_epoch", 0)
        due = self._steps % _EVERY == 0 or epoch != self._epoch
        self._steps, self._epoch = self._steps + 1, epoch
        if due:
            _warn_of_untrained(self._module, [*getattr(trainer, "optimizers", []), optimizer])


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
        rank_zero_warn(
            explain(
                f"{type(module).__name__} has parameters with gradients that no optimizer trains.",
                found=listed(names, 3),
                fix="to unfreeze them in a later epoch, let MaskedFinetuning(freeze=[...], unfreeze={epoch: [...]}) do "
                "it, or call optimizer.add_param_group({'params': [...]}); to leave them as they are, freeze them "
                "with requires_grad_(False)",
            )
        )
