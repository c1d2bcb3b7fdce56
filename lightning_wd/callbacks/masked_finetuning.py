"""``MaskedFinetuning``: freeze, and unfreeze later into groups that the mask has split."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_info  # type: ignore[attr-defined]
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_wd.callbacks.groups import as_float, group_style, peak_lr
from lightning_wd.configure.build import give_matrices_to_muon
from lightning_wd.decay import check_number
from lightning_wd.errors import CheckpointMismatchError, ConfigError, MaskError, explain
from lightning_wd.mask import DecayPlan, Row, Rule, as_mask, plan_decay
from lightning_wd.mask.names import walk
from lightning_wd.mask.strict import check_rules
from lightning_wd.optimizers.groups import DecayGroups
from lightning_wd.optimizers.muon import MuonAdamW

__all__ = ["MaskedFinetuning"]

_PER_GROUP = ("base_lrs", "max_lrs", "min_lrs", "lr_lambdas", "base_momentums", "max_momentums", "_last_lr")


class MaskedFinetuning(L.Callback):
    """Freeze parameters before the optimizer is configured, and unfreeze them at the start of later epochs.

    What is unfrozen joins the optimizer in groups of its own, named ``decay_epoch_3``, ``no_decay_epoch_3`` and so on:
    the mask is applied again, so a bias or a norm that comes late does not decay either. The new groups have the
    run's peak learning rate (times the mask's multiplier) at the schedule's present point, and the schedule drives
    them from there. A resumed run has the groups and ``requires_grad`` of the run it resumes.

    Parameters that the module itself has frozen stay frozen. Frozen norm layers still update their running
    statistics. Under DDP the module is wrapped anew, so that the gradients of what was unfrozen are averaged.

    Args:
        freeze: patterns on parameter names, as in :class:`lightning_wd.Rule`.
        unfreeze: epoch (counted from 0) -> patterns, each of which must match something that is frozen until then.
        mask: places what is unfrozen; None is the mask of the optimizer's configuration, else ``standard``. A rule
            with ``lr`` gives it another learning rate.

    Raises:
        ConfigError: an epoch that is no whole number >= 0; a module without exactly one optimizer.
        MaskError: a pattern that matches nothing; an optimizer that holds what is frozen.
        CheckpointMismatchError: a checkpoint that unfroze parameters which are not there.

    Example:
        >>> finetuning = MaskedFinetuning(
        ...     freeze=["backbone.*"], unfreeze={3: ["backbone.layer4.*"], 6: ["backbone.*"]},
        ...     mask={"rules": [{"name": "backbone.*", "lr": 0.1}]},
        ... )
    """

    def __init__(
        self,
        freeze: Sequence[str],
        unfreeze: Mapping[int, Sequence[str]] | None = None,
        mask: Any = None,
    ) -> None:
        self.freeze = _rules("freeze", freeze)
        self.unfreeze = _events(unfreeze)
        self.mask = None if mask is None else as_mask(mask)
        self._frozen: set[str] = set()
        self._seen: set[str] = set()
        self._begin()

    def _begin(self) -> None:
        self._done: list[tuple[int, list[str]]] = []
        self._loaded: list[tuple[int, list[str]]] = []
        self._waiting: tuple[L.Trainer, L.LightningModule] | None = None

    # --- hooks, in the order the trainer calls them ------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Freeze, and check every pattern, before ``configure_optimizers`` runs."""
        if stage != "fit":
            return
        self._begin()
        names = _tensors(pl_module)
        self._seen = set(names)
        mine = {name for name, p in names.items() if p.requires_grad or name in self._frozen}
        self._frozen = set()
        for rule in self.freeze:
            hits = _matches(rule, names, pl_module, "freeze")
            if not mine.intersection(hits):
                raise MaskError(
                    explain(
                        f"MaskedFinetuning freeze pattern {rule.name!r} matches only what is frozen already.",
                        found=", ".join(hits[:5]),
                        fix="leave to this callback what it shall unfreeze: set requires_grad=True",
                    )
                )
            self._frozen.update(mine.intersection(hits))
        left = set(self._frozen)
        for epoch, rules in sorted(self.unfreeze.items()):
            for rule in rules:
                hits = _matches(rule, names, pl_module, f"unfreeze[{epoch}]")
                if not left.intersection(hits):
                    raise MaskError(
                        explain(
                            f"MaskedFinetuning unfreeze[{epoch}] pattern {rule.name!r} matches nothing that is frozen "
                            "by then.",
                            found=", ".join(hits[:5]),
                            fix="freeze it first, or remove the pattern",
                        )
                    )
            left -= {name for rule in rules for name in _matches(rule, names, pl_module, "unfreeze")}
            if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epoch:
                warnings.warn(
                    f"MaskedFinetuning unfreezes at epoch {epoch}, counted from 0: a run of {trainer.max_epochs} "
                    "epochs does not reach it.",
                    UserWarning,
                    stacklevel=2,
                )
        for name in self._frozen:
            names[name].requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """Return what was unfrozen when, by name, as plain data."""
        return {"unfrozen": [[epoch, list(names)] for epoch, names in self._done]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note what a checkpoint had unfrozen; the optimizer must hold it before it loads its own state."""
        self._loaded = [(int(epoch), list(names)) for epoch, names in state_dict["unfrozen"]]
        if self._waiting is not None:  # strategies that restore callbacks after on_fit_start
            self._replay(*self._waiting)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                explain(
                    "MaskedFinetuning adds what it unfreezes to the module's one optimizer.",
                    found=f"{len(trainer.optimizers)} optimizers in {type(pl_module).__name__}",
                    fix="configure one optimizer, or unfreeze in the module's own code",
                )
            )
        names = _tensors(pl_module)
        new = {name: p for name, p in names.items() if name not in self._seen and p.requires_grad}
        late = [name for name, p in new.items() if any(rule.matches(name, p, pl_module) for rule in self.freeze)]
        if late:
            raise MaskError(
                explain(
                    "MaskedFinetuning cannot freeze what is built after its setup: it trains already.",
                    found=", ".join(late[:5]),
                    fix=f"build it in {type(pl_module).__name__}.__init__",
                )
            )
        held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
        early = sorted(name for name in self._frozen if id(names[name]) in held)
        if early:
            raise MaskError(
                explain(
                    "MaskedFinetuning cannot place what the optimizer already holds.",
                    found=f"{len(early)} frozen parameters in {type(trainer.optimizers[0]).__name__}: "
                    + ", ".join(early[:5]),
                    fix="configure it with lightning_wd.configure_optimizers or OptimizerOverride, which leave frozen "
                    "parameters out, or filter the parameters by requires_grad",
                )
            )
        if self.mask is not None:  # an error in it must not wait for the first epoch that unfreezes
            plan_decay(pl_module, self.mask, include_frozen=True)
        self._waiting = (trainer, pl_module)
        self._replay(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._waiting = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Unfreeze what is due."""
        done = {epoch for epoch, _ in self._done}
        for epoch in sorted(self.unfreeze.keys() - done):
            if epoch <= trainer.current_epoch:
                hits = self._hits(pl_module, epoch) & self._frozen
                due = [name for name in _tensors(pl_module) if name in hits]
                if not due:  # the run that is resumed unfroze it in another epoch
                    self._done.append((epoch, []))
                    continue
                groups = self._unfreeze(trainer, pl_module, epoch, due)
                rank_zero_info(
                    f"MaskedFinetuning: epoch {epoch}: {len(due)} parameters unfrozen, in groups {', '.join(groups)}."
                )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Unfreeze what is due: a run resumed from the last batch of an epoch begins the next without its hook."""
        self.on_train_epoch_start(trainer, pl_module)

    # -----------------------------------------------------------------------------------------------------------------

    def _replay(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Unfreeze again what the run that is resumed had unfrozen, in its order."""
        events, self._loaded = self._loaded, []
        for epoch, unfrozen in events:
            if not unfrozen:
                self._done.append((epoch, []))
                continue
            strangers = [name for name in unfrozen if name not in self._frozen]
            if strangers:
                raise CheckpointMismatchError(
                    explain(
                        f"the checkpoint unfroze parameters at epoch {epoch} that are not frozen here.",
                        found=", ".join(strangers[:5]),
                        valid=", ".join(sorted(self._frozen)[:5]) or "nothing is frozen",
                        fix="configure MaskedFinetuning as in the run that is resumed",
                    )
                )
            self._unfreeze(trainer, module, epoch, unfrozen)
        for epoch, _ in events:
            left = sorted(self._hits(module, epoch) & self._frozen)
            if left:
                raise CheckpointMismatchError(
                    explain(
                        f"the checkpoint is past epoch {epoch} and did not unfreeze all that is configured for it.",
                        found=", ".join(left[:5]),
                        fix="configure MaskedFinetuning as in the run that is resumed, or unfreeze these in a later "
                        "epoch",
                    )
                )

    def _hits(self, module: L.LightningModule, epoch: int) -> set[str]:
        """Return the parameters that the patterns of an epoch match."""
        names = _tensors(module)
        return {n for rule in self.unfreeze.get(epoch, ()) for n in _matches(rule, names, module, "unfreeze")}

    def _unfreeze(self, trainer: L.Trainer, module: L.LightningModule, epoch: int, unfrozen: list[str]) -> list[str]:
        """Unfreeze parameters and add their groups to the optimizer and its schedule; return the groups' names."""
        optimizer = trainer.optimizers[0]
        groups = self._groups(optimizer, module, epoch, unfrozen)
        names = _tensors(module)
        for name in unfrozen:
            names[name].requires_grad_(True)
        before = len(optimizer.param_groups)
        for group in groups:
            optimizer.add_param_group(group)
        for entry in trainer.lr_scheduler_configs:
            _extend(entry.scheduler, optimizer, before)
        _wrap_anew(trainer)
        self._frozen.difference_update(unfrozen)
        self._done.append((epoch, list(unfrozen)))
        return [group["name"] for group in optimizer.param_groups[before:]]

    def _groups(
        self, optimizer: Optimizer, module: L.LightningModule, epoch: int, unfrozen: Iterable[str]
    ) -> list[dict[str, Any]]:
        """Return the parameter groups of what is unfrozen, at the schedule's present point."""
        first = optimizer.param_groups[0]
        ours = isinstance(optimizer, DecayGroups)
        style = group_style(optimizer, first) if ours else None
        plan = getattr(optimizer, "decay_plan", None)
        if plan is not None:
            style = plan.style
        config = getattr(optimizer, "decay_config", None)
        mask = self.mask if self.mask is not None or config is None else config.mask
        whole = plan_decay(module, mask, style, include_frozen=True)
        lr, lam = _reference(optimizer, plan)
        wanted = set(unfrozen)
        rows = tuple(row for row in whole if wanted.intersection(row.names))
        groups = DecayPlan(rows, style).groups(lr=lr, weight_decay=lam)
        if isinstance(optimizer, MuonAdamW):
            groups = give_matrices_to_muon(groups, module, whole)
        peak = peak_lr(first)
        for group in groups:
            group["name"] = f"{group['name']}_epoch_{epoch}"
            ratio = group["base_lr"] / peak if peak else 1.0
            for key in ("lr", "initial_lr", "max_lr", "min_lr"):
                if key in first:
                    group[key] = as_float(first[key]) * ratio
            for key in ("momentum", "betas", "base_momentum", "max_momentum"):  # a schedule may drive these too
                if key in first:
                    group[key] = first[key]
            if not ours:
                del group["base_lr"]
                group.pop("style", None)
            if "param_names" not in first:
                group["params"] = [p for _, p in group["params"]]
        if plan is not None:
            _note(plan, rows, epoch)
        return groups


def _rules(what: str, patterns: Any) -> list[Rule]:
    if isinstance(patterns, str) or not isinstance(patterns, Sequence):
        raise ConfigError(
            explain(f"MaskedFinetuning {what} must be a list of patterns but got {patterns!r}.", fix="write ['head.*']")
        )
    return [Rule(1.0, name=pattern) for pattern in patterns]


def _events(unfreeze: Any) -> dict[int, list[Rule]]:
    given = {} if unfreeze is None else unfreeze
    if not isinstance(given, Mapping):
        raise ConfigError(
            explain(
                f"MaskedFinetuning unfreeze must be a mapping of epochs to patterns but got {unfreeze!r}.",
                found=type(unfreeze).__name__,
                fix="write {3: ['backbone.*']}",
            )
        )
    events: dict[int, list[Rule]] = {}
    for key, patterns in given.items():
        epoch = _epoch(key)
        if epoch in events:
            raise ConfigError(
                explain(
                    f"MaskedFinetuning unfreeze has epoch {epoch} twice.",
                    found=", ".join(map(repr, given)),
                    fix="put all patterns of an epoch into one list",
                )
            )
        events[epoch] = _rules(f"unfreeze[{key}]", patterns)
    return events


def _epoch(epoch: Any) -> int:
    number = check_number("an epoch of MaskedFinetuning unfreeze", int(epoch) if str(epoch).isdecimal() else epoch)
    if not number.is_integer():
        raise ConfigError(explain(f"an epoch of MaskedFinetuning unfreeze is {epoch!r}.", fix="write a whole number"))
    return int(number)


def _tensors(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the module's parameters under all their names, without the prefixes of wrappers."""
    return {found.name: found.param for found in walk(module).tensors}  # type: ignore[misc]


def _matches(rule: Rule, names: Mapping[str, nn.Parameter], module: L.LightningModule, what: str) -> list[str]:
    """Return the tensors that a pattern matches, each by its first name, or raise a MaskError with the nearest one."""
    first: dict[int, str] = {}
    for name, p in names.items():
        first.setdefault(id(p), name)
    hits = list(dict.fromkeys(first[id(p)] for name, p in names.items() if rule.matches(name, p, module)))
    if not hits:
        try:
            check_rules([rule], [0], plan_decay(module).rows, walk(module))
        except MaskError as error:
            raise MaskError(str(error).replace("mask pattern", f"MaskedFinetuning {what} pattern")) from None
    return hits


def _reference(optimizer: Optimizer, plan: DecayPlan | None) -> tuple[float, float]:
    """Return the peak learning rate and the coefficient that multipliers of 1 have in this run.

    ``plan`` is the one that made the optimizer's groups. Without one, the first group has the first, and the first
    group that decays the second.
    """
    lr, lam = optimizer.defaults["lr"], optimizer.defaults.get("weight_decay", 0.0)
    if plan is None:
        known = [(1.0, 1.0, group) for group in optimizer.param_groups if group["params"]]
    else:
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        known = [
            (row.lr, row.decay * (row.style == plan.style), groups[id(row.param)])
            for row in plan
            if id(row.param) in groups and not row.settings
        ]
    for factor, _, group in known:
        if factor:
            lr = peak_lr(group) / factor
            break
    for _, factor, group in known:
        amount = group.get("base_weight_decay", group.get("weight_decay"))
        if factor and amount:
            lam = as_float(amount) / factor
            break
    return as_float(lr), as_float(lam)


def _note(plan: DecayPlan, rows: Iterable[Row], epoch: int) -> None:
    """Bring the optimizer's plan up to date with what was unfrozen."""
    for row in rows:
        mine = plan[row.name]
        mine.decay, mine.lr, mine.style, mine.settings = row.decay, row.lr, row.style, row.settings
        mine.reason, mine.group = f"{row.reason}; unfrozen at epoch {epoch}", f"{row.group}_epoch_{epoch}"


def _extend(scheduler: Any, optimizer: Optimizer, before: int) -> None:
    """Give a schedule entries for the groups that its optimizer has beyond the first ``before``."""
    if getattr(scheduler, "optimizer", None) is not optimizer:
        return
    added = optimizer.param_groups[before:]
    for name in _PER_GROUP:
        values = getattr(scheduler, name, None)
        if isinstance(values, list) and len(values) == before:
            first = optimizer.param_groups[0]
            for group in added:
                ratio = peak_lr(group) / peak_lr(first) if peak_lr(first) else 1.0
                scaled = isinstance(values[0], (int, float)) and "momentum" not in name
                values.append(values[0] * ratio if scaled else values[0])
    for inner in getattr(scheduler, "_schedulers", ()):
        if isinstance(inner, LRScheduler):
            _extend(inner, optimizer, before)


def _wrap_anew(trainer: L.Trainer) -> None:
    """Wrap the module in DDP again: its reducer holds only what was trainable when it was made."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.model.module
        strategy.configure_ddp()
