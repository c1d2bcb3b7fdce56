r"""Several optimizers in one: each group is stepped by the optimizer that it names, with that optimizer's own settings.

One ``state_dict``, one schedule, one AMP scaler and one checkpoint serve them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_wd.errors import ConfigError, keys, listed
from lightning_wd.optimizers.base import DecayGroups
from lightning_wd.optimizers.by_name import DOTTED_PATH, OPTIMIZERS, hyperparameters_of, optimizer_class
from lightning_wd.optimizers.decoupled import schedule_free
from lightning_wd.optimizers.identify_twins import unhooked

__all__ = ["MultiOptimizer"]


class _Stepper(NamedTuple):
    """An optimizer within, on the groups of one class and one set of hyperparameters."""

    cls: type[Optimizer]
    hyperparameters: dict[str, Any]
    optimizer: Any  # its `state` is that of the whole, its `param_groups` are dicts of the whole


class MultiOptimizer(DecayGroups):
    """One optimizer whose groups are stepped by different optimizers, each as if it were alone.

    A group names its optimizer under ``optimizer``: a name of this package, or the dotted path of a class, which gets
    decoupled decay by :func:`lightning_wd.decoupled`. Its other settings are that optimizer's own keywords, and go
    through its constructor. A checkpoint's ``optimizer`` is compared, and never imported. ``use_muon`` in each group
    tells those of Muon.

    GradScaler unscales the gradients before the step, also those of fused optimizers, since the others cannot. A
    closure runs once, before any of them steps.

    Args:
        params: groups as dicts, each with ``params`` and ``optimizer``.
        lr: peak learning rate of the groups without their own.
        weight_decay: ``lam >= 0``, in the unit of each group's style, of the groups without their own; None is the
            default of each group's optimizer.
        style: decay style of the groups that do not name their own.
        cautious_wd: decay a coordinate only where ``u * w >= 0``.
        toward: what weights decay towards, as in :class:`lightning_wd.AdamW`.
        hyperparameters: optimizer -> its keywords, for its groups without their own.

    Raises:
        ConfigError: a group without ``optimizer``, with a keyword that its optimizer does not take, or with a style
            that it does not do.

    Example:
        >>> import torch
        >>> weight, bias = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
        >>> groups = [{"params": [weight], "optimizer": "adamw", "betas": (0.9, 0.95)},
        ...           {"params": [bias], "optimizer": "sgdw", "lr": 0.1, "weight_decay": 0.0}]
        >>> optimizer = MultiOptimizer(groups, lr=0.01, weight_decay=0.5)
        >>> weight.grad, bias.grad = torch.zeros(1), torch.ones(1)
        >>> optimizer.step()
        >>> weight.detach(), bias.detach()
        (tensor([0.9950]), tensor([0.9000]))
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Any = 1e-3,
        weight_decay: float | None = None,
        *,
        style: str = "decoupled",
        cautious_wd: bool = False,
        toward: str = "zero",
        hyperparameters: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._hyperparameters = {name: dict(keywords) for name, keywords in (hyperparameters or {}).items()}
        for name, keywords in self._hyperparameters.items():
            keys(
                f"hyperparameters of {name}",
                keywords,
                hyperparameters_of(optimizer_class(name, style, "hyperparameters")),
            )
        self._steppers: list[_Stepper] = []
        self._owners: list[int] = []  # position of a group -> position of its stepper
        self._begin(weight_decay=weight_decay, style=style)
        amount = {} if weight_decay is None else {"weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, **amount, "style": style, "cautious_wd": cautious_wd, "toward": toward})

    def append_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as it is, to the optimizer that it names."""
        try:
            super().append_group(param_group)
            self.state.update(self._steppers[self._owners[-1]].optimizer.state)  # what its constructor made
        finally:  # torch may have refused it after its stepper took it
            del self._owners[len(self.param_groups) :]
            del self._steppers[max(self._owners, default=-1) + 1 :]
            self._bind()

    def _complete(self, group: dict[str, Any], label: str) -> None:
        """Let the optimizer that a group names check and complete it."""
        name = group.get("optimizer")
        if name is None:
            raise ConfigError(
                f"{label} names no optimizer.",
                found=f"keys {listed(group)}",
                valid=[*OPTIMIZERS, DOTTED_PATH],
                fix="give a list of groups that each name theirs: [{'params': [...], 'optimizer': 'adamw'}]",
            )
        own = {**self.defaults, **{key: value for key, value in group.items() if key != "optimizer"}}
        cls = optimizer_class(name, own["style"], f"optimizer of {label}")
        if getattr(cls, "base", cls).load_state_dict not in (Optimizer.load_state_dict, DecayGroups.load_state_dict):
            raise ConfigError(
                f"{name} of {label} loads its state in a way of its own, which one of several optimizers cannot.",
                fix="use it alone, as optimizer.name, or write another optimizer",
            )
        known = hyperparameters_of(cls)
        named = {key: own.pop(key) for key in [*own] if key in known}
        keywords = {**self._hyperparameters.get(name, {}), **named}
        keywords = {key: tuple(value) if isinstance(value, list) else value for key, value in keywords.items()}
        positions = range(len(self._steppers))
        at = next((i for i in positions if self._steppers[i][:2] == (cls, keywords)), len(self._steppers))
        if at in positions:
            self._steppers[at].optimizer.append_group(own)
        else:
            defaults = {key: self.defaults[key] for key in ("lr", "weight_decay") if key in self.defaults}
            both = {key: own[key] for key in ("style", "cautious_wd", "toward")}
            self._steppers.append(_Stepper(cls, keywords, cls([own], **defaults, **both, **keywords)))
        self._owners.append(at)
        group.clear()
        group.update(own, optimizer=name, use_muon=name == "muon")

    def _start(self, group: dict[str, Any], label: str) -> None:
        """Leave it to the stepper of the group."""

    def _bind(self) -> None:
        """Let each stepper have the groups, the very dicts, and the state of the whole."""
        for position, stepper in enumerate(self._steppers):
            owned = [group for group, owner in zip(self.param_groups, self._owners, strict=True) if owner == position]
            stepper.optimizer.param_groups, stepper.optimizer.state = owned, self.state

    def stepper_of(self, group: dict[str, Any]) -> Any:
        """Return the optimizer that steps a group of this one."""
        owner = next(owner for mine, owner in zip(self.param_groups, self._owners, strict=True) if mine is group)
        return self._steppers[owner].optimizer

    def train(self) -> None:
        """Switch the schedule-free optimizers within to train mode; without one nothing happens."""
        for optimizer in schedule_free(self):
            optimizer.train()

    def eval(self) -> None:
        """Switch the schedule-free optimizers within to eval mode; without one nothing happens."""
        for optimizer in schedule_free(self):
            optimizer.eval()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure, once, then each optimizer's step on its groups; hooks run around the whole."""
        loss = self._run_closure(closure)
        evaluated = None if closure is None else lambda: loss
        for stepper in self._steppers:
            unhooked(type(stepper.optimizer))(stepper.optimizer, evaluated)
        return loss

    def __getstate__(self) -> dict[str, Any]:
        ours = ("_hyperparameters", "_steppers", "_owners")
        return {**super().__getstate__(), **{key: vars(self)[key] for key in ours}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bind()
        for stepper in self._steppers:  # as torch does when it loads one: it may bring an old state up to date
            stepper.optimizer.__setstate__({key: vars(stepper.optimizer)[key] for key in ("state", "param_groups")})
