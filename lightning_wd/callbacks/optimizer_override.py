"""``OptimizerOverride``: another optimizer for a LightningModule, without editing its code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_info, rank_zero_warn  # type: ignore[attr-defined]
from torch import Tensor
from torch.optim import Optimizer

from lightning_wd.configure import OptimizerConfig, configure_optimizers
from lightning_wd.configure.lr_scheduler import ScheduleRequest
from lightning_wd.errors import ConfigError, explain, listed, number

__all__ = ["OptimizerOverride"]


class OptimizerOverride(L.Callback):
    """Replace the optimizer and the learning-rate schedule that a module configures, and say so.

    The module's own ``configure_optimizers`` still runs, because it says which parameters are trained. The new
    optimizer gets the same ones, split by the mask, without those that are frozen; a warning follows where the module
    unfreezes them later. The optimizer's own schedule is replaced by ``lr_scheduler``, or by none. Where the method
    returns None, all parameters that are not frozen are trained. A module without the method is refused by Lightning
    itself.

    Args:
        optimizer: what :func:`lightning_wd.configure_optimizers` takes.
        lr_scheduler: what that function takes as its schedule; None trains at a constant learning rate.
        index: which of the module's optimizers to replace; needed where it has several, or steps them itself.

    Raises:
        ConfigError: a setting is invalid; when training starts: ``index`` is missing although the module has several
            optimizers or manual optimization, or is out of range.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> override = OptimizerOverride({"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}, "constant")
        >>> trainer = L.Trainer(
        ...     callbacks=[override], fast_dev_run=1, accelerator="cpu", enable_progress_bar=False,
        ...     enable_model_summary=False,
        ... )
        >>> trainer.fit(BoringModel())
        >>> [(group["name"], group["weight_decay"]) for group in trainer.optimizers[0].param_groups]
        [('decay', 0.1), ('no_decay', 0.0)]
    """

    def __init__(self, optimizer: Any = None, lr_scheduler: Any = None, *, index: int | None = None) -> None:
        self.optimizer = OptimizerConfig.of(optimizer)
        ScheduleRequest.of(lr_scheduler)  # refuse invalid settings now
        self.lr_scheduler = lr_scheduler
        self.index = None if index is None else int(number("index", index, whole=True))
        self._frozen: dict[str, Tensor] = {}  # held by the replaced optimizer, not by ours

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stand in for the module's ``configure_optimizers`` until the strategy has called it, once."""
        if stage != "fit":
            return
        earlier = vars(pl_module).get("configure_optimizers")
        if getattr(earlier, "__self__", None) is self:  # left by a fit that failed early
            del pl_module.configure_optimizers
            earlier = None
        self._module, self._earlier, self._own = pl_module, earlier, pl_module.configure_optimizers
        pl_module.configure_optimizers = self._configure  # type: ignore[method-assign]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Warn of parameters that the module has unfrozen but no optimizer trains."""
        unfrozen = {name: p for name, p in self._frozen.items() if p.requires_grad}
        if not unfrozen:
            return
        trained = {id(p) for optimizer in trainer.optimizers for p in _parameters(optimizer)}
        lost = [name for name, p in unfrozen.items() if id(p) not in trained]
        self._frozen = {} if lost else {name: p for name, p in self._frozen.items() if name not in unfrozen}
        if lost:
            rank_zero_warn(
                explain(
                    f"{type(pl_module).__name__} has unfrozen parameters that no optimizer trains: they were frozen "
                    "when OptimizerOverride built its optimizer.",
                    found=listed(lost, 3),
                    fix="let MaskedFinetuning(freeze=[...], unfreeze={epoch: [...]}) freeze and unfreeze them",
                )
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore(pl_module)
        self._frozen = {}

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore(pl_module)

    def _restore(self, module: L.LightningModule) -> None:
        """Give the module its own method back."""
        if getattr(vars(module).get("configure_optimizers"), "__self__", None) is self:
            if self._earlier is None:
                del module.configure_optimizers
            else:
                module.configure_optimizers = self._earlier  # type: ignore[method-assign]

    def _configure(self) -> Any:
        """Return what Lightning takes: the module's own optimizers with one of them replaced."""
        module, own = self._module, self._own
        self._restore(module)
        configured = own()
        if configured is None and module.automatic_optimization:
            built = configure_optimizers(module, self.optimizer, self.lr_scheduler)
            self._tell("no optimizer", built)
            return built
        optimizers, schedules = _read(configured)
        index = self._index(module, optimizers)
        replaced = optimizers[index]
        held = {id(p) for p in _parameters(replaced)}
        self._frozen = {name: p for name, p in module.named_parameters() if id(p) in held and not p.requires_grad}
        with _only(module, replaced) as hidden:
            built = configure_optimizers(module, self.optimizer, self.lr_scheduler)
        for row in built["optimizer"].decay_plan:
            if id(row.param) in hidden:
                row.reason = f"not trained by the {type(replaced).__name__} that is replaced"
        # A schedule names the optimizer that it drives; SequentialLR and ChainedScheduler do too.
        dropped = [entry for entry in schedules if getattr(_scheduler(entry), "optimizer", None) is replaced]
        kept = [entry for entry in schedules if entry not in dropped]
        self._tell(" and ".join(type(old).__name__ for old in (replaced, *map(_scheduler, dropped))), built)
        optimizers[index] = built["optimizer"]
        return optimizers, [*kept, *([built["lr_scheduler"]] if "lr_scheduler" in built else [])]

    def _tell(self, replaced: str, built: dict[str, Any]) -> None:
        schedule = built["lr_scheduler"]["scheduler"] if "lr_scheduler" in built else None
        shown = "no lr_scheduler" if schedule is None else getattr(schedule, "shape", type(schedule).__name__)
        rank_zero_info(
            f"OptimizerOverride replaces the {replaced} of {type(self._module).__name__} with "
            f"{type(built['optimizer']).__name__} (lr {self.optimizer['lr']:g}, "
            f"decay {self.optimizer['decay']['style']}), {shown}."
        )

    def _index(self, module: L.LightningModule, optimizers: list[Optimizer]) -> int:
        name, names = type(module).__name__, [f"{i}: {type(o).__name__}" for i, o in enumerate(optimizers)]
        if not optimizers:
            raise ConfigError(
                f"OptimizerOverride has nothing to replace: {name}.configure_optimizers returns no optimizer.",
                fix="return any optimizer there, or remove the callback",
            )
        if self.index is None and (len(optimizers) > 1 or not module.automatic_optimization):
            why = f"{len(optimizers)} optimizers" if len(optimizers) > 1 else "manual optimization"
            raise ConfigError(
                f"OptimizerOverride must be told which optimizer of {name} to replace: the module has {why}.",
                found=", ".join(names),
                fix="write OptimizerOverride(..., index=0), and check that the module's own calls fit the new "
                "optimizer",
            )
        index = self.index or 0
        if index >= len(optimizers):
            raise ConfigError(
                f"OptimizerOverride(index={index}) is out of range for the optimizers of {name}.",
                found=", ".join(names),
                fix=f"write an index below {len(optimizers)}",
            )
        return index


def _read(configured: Any) -> tuple[list[Optimizer], list[Any]]:
    """Return the optimizers and the schedules from any form that ``configure_optimizers`` may return."""
    if isinstance(configured, (list, tuple)) and len(configured) == 2 and isinstance(configured[0], (list, tuple)):
        optimizers, schedules = configured
        return list(optimizers), list(schedules) if isinstance(schedules, (list, tuple)) else [schedules]
    if not isinstance(configured, (list, tuple)):
        configured = [] if configured is None else [configured]
    entries = [entry if isinstance(entry, dict) else {"optimizer": entry} for entry in configured]
    schedules = [entry["lr_scheduler"] for entry in entries if "lr_scheduler" in entry]
    return [entry["optimizer"] for entry in entries], schedules


def _scheduler(schedule: Any) -> Any:
    return schedule["scheduler"] if isinstance(schedule, dict) else schedule


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


@contextmanager
def _only(module: L.LightningModule, optimizer: Optimizer) -> Iterator[set[int]]:
    """Freeze for a while the parameters that an optimizer does not train, so no plan has them; yield their ids."""
    trained = {id(p) for p in _parameters(optimizer)}
    strangers = trained - {id(p) for p in module.parameters()}
    if strangers:
        raise ConfigError(
            f"the {type(optimizer).__name__} of {type(module).__name__} trains {len(strangers)} tensors that are "
            "not parameters of the module, so no mask can place them.",
            fix="register them on the module, or use lightning_wd.AdamW in its configure_optimizers",
        )
    hidden = [p for p in module.parameters() if p.requires_grad and id(p) not in trained]
    for p in hidden:
        p.requires_grad_(False)
    try:
        yield {id(p) for p in hidden}
    finally:
        for p in hidden:
            p.requires_grad_(True)
