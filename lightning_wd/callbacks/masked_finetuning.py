"""``MaskedFinetuning``: freeze parameters, and unfreeze them in later epochs with the right weight decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_info  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from lightning_wd._lightning import Callback
from lightning_wd.configure.first_step import read_again
from lightning_wd.configure.late_groups import unfreeze
from lightning_wd.configure.neighbours import watch_all
from lightning_wd.errors import CheckpointMismatchError, ConfigError, MaskError, checked_keywords, listed, number, warn
from lightning_wd.mask import Rule, as_mask, plan_decay
from lightning_wd.mask.dead_rules import unmatched
from lightning_wd.mask.module_tree import Tree, walk

__all__ = ["MaskedFinetuning"]

_OWN_FREEZE = "leave them at requires_grad=True: MaskedFinetuning unfreezes only what it froze"


@checked_keywords()
class MaskedFinetuning(Callback):
    """Freeze parameters before the optimizer is configured, and unfreeze them at the start of later epochs.

    Unfrozen parameters join the optimizer in new groups, named ``decay_epoch_3``, ``no_decay_epoch_3`` and so on. The
    mask splits them like all others, so their biases and norm layers do not decay. The new groups have the run's peak
    learning rate (times the mask's multiplier) and follow the schedule from where it is. A resumed run has the groups
    and ``requires_grad`` of the run it resumes.

    Parameters that the module itself has frozen stay frozen. Frozen norm layers still update their running
    statistics. DDP is rebuilt at each unfreezing, so that it averages the new gradients too.

    Args:
        freeze: patterns on parameter names, as in :class:`lightning_wd.Rule`.
        unfreeze: epoch (counted from 0) -> patterns; each must match a parameter that is still frozen then.
        mask: splits the unfrozen parameters; None is the mask of the optimizer's configuration, else ``standard``. A
            rule with ``lr_mult`` gives them another learning rate.

    Raises:
        ConfigError: an epoch is not a whole number >= 0; the module does not have exactly one optimizer.
        MaskError: a pattern matches nothing; the optimizer holds frozen parameters.
        CheckpointMismatchError: the checkpoint unfroze other parameters.

    Example:
        >>> finetuning = MaskedFinetuning(
        ...     freeze=["backbone.*"], unfreeze={3: ["backbone.layer4.*"], 6: ["backbone.*"]},
        ...     mask={"rules": [{"name": "backbone.*", "lr_mult": 0.1}]},
        ... )
    """

    unfreezes = True  # frozen parameters count for the optimizer that a rule gives them, and for `toward`

    def __init__(
        self, freeze: Sequence[str], unfreeze: Mapping[int, Sequence[str]] | None = None, mask: Any = None
    ) -> None:
        self.freeze = _rules("freeze", freeze)
        self.unfreeze = _events(unfreeze)
        self.mask = None if mask is None else as_mask(mask)
        self._frozen: set[str] = set()
        self._seen: set[str] = set()
        self._hits: dict[int, set[str]] = {}  # epoch -> what its patterns match
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
        tree = walk(pl_module)
        names = {found.name: found.param for found in tree.tensors}
        self._seen = set(names)
        mine = {name for name, p in names.items() if p.requires_grad or name in self._frozen}
        self._frozen = set()
        for rule in self.freeze:
            hits = _matches(rule, tree, "freeze")
            if not mine.intersection(hits):
                raise MaskError(
                    f"MaskedFinetuning freeze pattern {rule.name!r} matches only already frozen parameters.",
                    found=listed(hits),
                    fix=_OWN_FREEZE,
                )
            self._frozen |= mine.intersection(hits)
        left = set(self._frozen)
        self._hits = {}
        for epoch, rules in sorted(self.unfreeze.items()):
            matched = [_matches(rule, tree, f"unfreeze[{epoch}]") for rule in rules]
            for rule, hits in zip(rules, matched, strict=True):
                if not left.intersection(hits):
                    raise MaskError(
                        f"MaskedFinetuning unfreeze[{epoch}] pattern {rule.name!r} matches no parameter that is still "
                        "frozen.",
                        found=listed(hits),
                        fix=self._fix_of_unfreeze(hits, epoch, mine),
                    )
            self._hits[epoch] = set().union(*matched)
            left -= self._hits[epoch]
            if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epoch:
                warn(
                    f"MaskedFinetuning never reaches unfreeze[{epoch}]: epochs are counted from 0.",
                    found=f"a run of {trainer.max_epochs} epochs",
                    fix=f"train for {epoch + 1} epochs or more, or unfreeze in an earlier epoch",
                )
        for name in self._frozen:
            names[name].requires_grad_(False)

    def _fix_of_unfreeze(self, hits: list[str], epoch: int, mine: set[str]) -> str:
        """Return what to write where a pattern of ``unfreeze`` matches nothing that is still frozen."""
        earlier = [when for when in sorted(self._hits) if self._hits[when].intersection(hits)]
        if earlier:
            return f"remove it: unfreeze[{earlier[0]}] has unfrozen these"
        if mine.isdisjoint(hits):
            return _OWN_FREEZE
        return f"add {hits[0]!r} or a pattern for it to freeze, or remove it from unfreeze[{epoch}]"

    def state_dict(self) -> dict[str, Any]:
        """Return the names that each epoch unfroze, as plain data."""
        return {"unfrozen": [[epoch, list(names)] for epoch, names in self._done]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what the checkpoint unfroze; it is unfrozen before the optimizer loads its state."""
        self._loaded = [(int(epoch), list(names)) for epoch, names in state_dict["unfrozen"]]
        if self._waiting is not None:  # strategies that restore callbacks after on_fit_start
            self._replay(*self._waiting)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                "MaskedFinetuning needs a module with exactly one optimizer.",
                found=f"{len(trainer.optimizers)} optimizers in {type(pl_module).__name__}",
                fix="configure one optimizer, or freeze and unfreeze in the module's own code",
            )
        tensors = walk(pl_module).tensors
        new = [found for found in tensors if found.name not in self._seen and found.param.requires_grad]
        late = [found.name for found in new if any(rule.matches(*found[:3]) for rule in self.freeze)]
        if late:
            raise MaskError(
                "MaskedFinetuning cannot freeze parameters that are created after its setup.",
                found=listed(late),
                fix=f"create them in {type(pl_module).__name__}.__init__",
            )
        held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
        early = sorted(found.name for found in tensors if found.name in self._frozen and id(found.param) in held)
        if early:
            raise MaskError(
                "MaskedFinetuning cannot unfreeze into new groups what the optimizer already holds.",
                found=f"{len(early)} frozen parameters in {type(trainer.optimizers[0]).__name__}: " + listed(early),
                fix="build it with lightning_wd.configure_optimizers or OptimizerOverride, which leave out frozen "
                "parameters, or pass it only parameters with requires_grad=True",
            )
        if self.mask is not None:  # refuse it now, not at the first unfreezing
            plan_decay(pl_module, self.mask, include_frozen=True)
        self._waiting = (trainer, pl_module)
        self._replay(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._waiting = None
        watch_all(trainer, pl_module)
        strategy = trainer.strategy
        if isinstance(strategy.model, DistributedDataParallel) and not hasattr(strategy, "configure_ddp"):
            raise ConfigError(
                "MaskedFinetuning cannot rebuild DDP when it unfreezes, so the ranks would drift apart.",
                found=f"{type(strategy).__name__}, which has no configure_ddp",
                fix="use strategy='ddp', or a subclass of Lightning's DDPStrategy",
            )

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Unfreeze what is due."""
        done = {epoch for epoch, _ in self._done}
        for epoch in sorted(self.unfreeze.keys() - done):
            if epoch <= trainer.current_epoch:
                hits = self._hits[epoch] & self._frozen
                due = [found.name for found in walk(pl_module).tensors if found.name in hits]
                read_again(trainer.optimizers[0])
                groups = self._unfreeze(trainer, pl_module, epoch, due)
                if groups:
                    rank_zero_info(
                        f"MaskedFinetuning: epoch {epoch}: {len(due)} parameters unfrozen, in groups "
                        f"{', '.join(groups)}."
                    )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Unfreeze what is due: a run resumed from the end of an epoch skips the hook of the next."""
        self.on_train_epoch_start(trainer, pl_module)

    def _replay(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Unfreeze what the resumed run had unfrozen, in the same order."""
        events, self._loaded = self._loaded, []
        for epoch, unfrozen in events:
            strangers = [name for name in unfrozen if name not in self._frozen]
            if strangers:
                raise CheckpointMismatchError(
                    f"the checkpoint unfroze parameters at epoch {epoch} that are not frozen here.",
                    found=listed(strangers),
                    valid=listed(sorted(self._frozen)) or "nothing is frozen",
                    fix="configure MaskedFinetuning as in the resumed run",
                )
            self._unfreeze(trainer, module, epoch, unfrozen)
        for epoch, _ in events:
            left = sorted(self._hits.get(epoch, set()) & self._frozen)
            if left:
                raise CheckpointMismatchError(
                    f"the checkpoint is past epoch {epoch} but did not unfreeze everything in unfreeze[{epoch}].",
                    found=listed(left),
                    fix="configure MaskedFinetuning as in the resumed run, or unfreeze these in a later epoch",
                )

    def _unfreeze(self, trainer: L.Trainer, module: L.LightningModule, epoch: int, names: list[str]) -> list[str]:
        """Unfreeze parameters; return the names of their groups. A resumed run may have none left to unfreeze."""
        groups = []
        if names:
            schedulers = [entry.scheduler for entry in trainer.lr_scheduler_configs]
            groups = unfreeze(trainer.optimizers[0], schedulers, module, names, self.mask, epoch)
            _rewrap(trainer)
        self._frozen.difference_update(names)
        self._done.append((epoch, list(names)))
        return groups


def _rules(what: str, patterns: Any) -> list[Rule]:
    if isinstance(patterns, str) or not isinstance(patterns, Sequence):
        raise ConfigError(
            f"MaskedFinetuning {what} must be a list of patterns but got {patterns!r}.",
            fix=f"write {[patterns if isinstance(patterns, str) else 'head.*']}",
        )
    return [Rule(name=pattern, wd_mult=1) for pattern in patterns]


def _events(unfreeze: Any) -> dict[int, list[Rule]]:
    given = {} if unfreeze is None else unfreeze
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"MaskedFinetuning unfreeze must be a mapping of epochs to patterns but got {unfreeze!r}.",
            found=type(unfreeze).__name__,
            fix="write {3: ['backbone.*']}",
        )
    events: dict[int, list[Rule]] = {}
    for key, patterns in given.items():
        epoch = int(number("MaskedFinetuning's epoch", int(key) if str(key).isdecimal() else key, whole=True))
        if epoch in events:
            raise ConfigError(
                f"MaskedFinetuning unfreeze has epoch {epoch} twice.",
                found=", ".join(map(repr, given)),
                fix="put all patterns of an epoch into one list",
            )
        events[epoch] = _rules(f"unfreeze[{key}]", patterns)
    return events


def _matches(rule: Rule, tree: Tree, what: str) -> list[str]:
    """Return the first name of each tensor that a pattern matches; raise a MaskError where there is none."""
    hits = [tied[0].name for tied in tree.by_tensor() if any(rule.matches(*found[:3]) for found in tied)]
    if not hits:
        raise unmatched(rule, tree, f"MaskedFinetuning {what}")
    return hits


def _rewrap(trainer: L.Trainer) -> None:
    """Wrap the module in DDP again: its reducer averages only what was trainable when it was made."""
    strategy: Any = trainer.strategy
    if isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.model.module
        strategy.configure_ddp()
