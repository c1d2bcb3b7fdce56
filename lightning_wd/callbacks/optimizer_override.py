"""``OptimizerOverride``: another optimizer for a LightningModule, none of whose lines are edited."""

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
from lightning_wd.decay import check_number
from lightning_wd.errors import ConfigError, explain

__all__ = ["OptimizerOverride"]


class OptimizerOverride(L.Callback):
    """Replace the optimizer and the learning-rate schedule that a module configures, and say so.

    The module's own ``configure_optimizers`` still runs, to learn which parameters it trains: the new optimizer gets
    the same ones, split by the mask, except those that are frozen: a warning says where the module unfreezes them
    later. The module's own schedule of that optimizer is replaced by ``lr_scheduler``, or by none. Where the method
    returns None, all parameters that are not frozen are trained. Lightning itself refuses a module without the method,
    before any callback runs.

    Args:
        optimizer: what :func:`lightning_wd.configure_optimizers` takes.
        lr_scheduler: likewise; None trains at a constant learning rate.
        index: which of the module's optimizers to replace, where it has several, or where it steps them itself.

    Raises:
        ConfigError: at once where a setting cannot be honoured; when training starts where the module has several
            optimizers or manual optimization and ``index`` is not given.

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
        ScheduleRequest.of(lr_scheduler)  # refuse now what cannot be built later
        self.lr_scheduler = lr_scheduler
        self.index = None if index is None else int(check_number("index", index))
        self._frozen: dict[str, Tensor] = {}  # what the replaced optimizer holds, and ours does not

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stand in for the module's ``configure_optimizers`` until the strategy has called it, once."""
        if stage != "fit":
            return
        earlier = vars(pl_module).get("configure_optimizers")
        if getattr(earlier, "__self__", None) is self:  # left by a fit that failed before it configured anything
            del pl_module.configure_optimizers
            earlier = None
        self._module, self._earlier, self._own = pl_module, earlier, pl_module.configure_optimizers
        pl_module.configure_optimizers = self._configure  # type: ignore[method-assign]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Warn of parameters that the module has unfrozen and no optimizer trains."""
        unfrozen = {name: p for name, p in self._frozen.items() if p.requires_grad}
        if not unfrozen:
            return
        trained = {
            id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]
        }
        lost = [name for name, p in unfrozen.items() if id(p) not in trained]
        self._frozen = {} if lost else {name: p for name, p in self._frozen.items() if name not in unfrozen}
        if lost:
            rank_zero_warn(
                explain(
                    f"{type(pl_module).__name__} has unfrozen parameters that no optimizer trains: they were frozen "
                    "when OptimizerOverride made its optimizer.",
                    found=f"{', '.join(lost[:3])}{f', and {len(lost) - 3} more' if len(lost) > 3 else ''}",
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
            rank_zero_info(_replacement(type(module).__name__, "no optimizer", [], built, self.optimizer))
            return built
        optimizers, schedules = _read(configured)
        index = self._index(module, optimizers)
        replaced = optimizers[index]
        held = {id(p) for group in replaced.param_groups for p in group["params"]}
        self._frozen = {n: p for n, p in module.named_parameters() if id(p) in held and not p.requires_grad}
        with _only(module, replaced) as hidden:
            built = configure_optimizers(module, self.optimizer, self.lr_scheduler)
        for row in built["optimizer"].decay_plan:
            if id(row.param) in hidden:
                row.reason = f"not trained by the {type(replaced).__name__} that is replaced"
        kept = [schedule for schedule in schedules if _scheduled(schedule) is not replaced]
        dropped = [type(_scheduler(schedule)).__name__ for schedule in schedules if _scheduled(schedule) is replaced]
        rank_zero_info(_replacement(type(module).__name__, type(replaced).__name__, dropped, built, self.optimizer))
        optimizers[index] = built["optimizer"]
        return optimizers, [*kept, *([built["lr_scheduler"]] if "lr_scheduler" in built else [])]

    def _index(self, module: L.LightningModule, optimizers: list[Optimizer]) -> int:
        name, names = type(module).__name__, [f"{i}: {type(o).__name__}" for i, o in enumerate(optimizers)]
        if not optimizers:
            raise ConfigError(
                explain(
                    f"OptimizerOverride has nothing to replace: {name}.configure_optimizers returns no optimizer.",
                    fix="return one there (which, does not matter), or remove the callback",
                )
            )
        if self.index is None and (len(optimizers) > 1 or not module.automatic_optimization):
            why = f"{len(optimizers)} optimizers" if len(optimizers) > 1 else "manual optimization"
            raise ConfigError(
                explain(
                    f"OptimizerOverride must be told which optimizer of {name} to replace: the module has {why}.",
                    found=", ".join(names),
                    fix="write OptimizerOverride(..., index=0), and check that the module's own calls suit it",
                )
            )
        index = self.index or 0
        if index >= len(optimizers):
            raise ConfigError(
                explain(
                    f"OptimizerOverride(index={index}) names no optimizer of {name}.",
                    found=", ".join(names),
                    fix=f"write an index below {len(optimizers)}",
                )
            )
        return index


def _read(configured: Any) -> tuple[list[Optimizer], list[Any]]:
    """Return the optimizers and the schedules in any form that ``configure_optimizers`` may return."""
    if configured is None:
        return [], []
    if isinstance(configured, dict):
        configured = [configured]
    if isinstance(configured, (list, tuple)):
        if len(configured) == 2 and isinstance(configured[0], (list, tuple)):
            optimizers, schedules = configured
            return list(optimizers), list(schedules) if isinstance(schedules, (list, tuple)) else [schedules]
        entries = [entry if isinstance(entry, dict) else {"optimizer": entry} for entry in configured]
        return (
            [entry["optimizer"] for entry in entries],
            [entry["lr_scheduler"] for entry in entries if "lr_scheduler" in entry],
        )
    return [configured], []


def _scheduler(schedule: Any) -> Any:
    return schedule["scheduler"] if isinstance(schedule, dict) else schedule


def _scheduled(schedule: Any) -> Any:
    """Return the optimizer that a schedule drives; SequentialLR and ChainedScheduler name it too."""
    return getattr(_scheduler(schedule), "optimizer", None)


@contextmanager
def _only(module: L.LightningModule, optimizer: Optimizer) -> Iterator[set[int]]:
    """Hide from the plan the parameters that an optimizer does not train, by freezing them meanwhile; yield their ids.

    Raises:
        ConfigError: the optimizer trains tensors that are not the module's.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    strangers = trained - {id(p) for p in module.parameters()}
    if strangers:
        raise ConfigError(
            explain(
                f"the {type(optimizer).__name__} of {type(module).__name__} trains {len(strangers)} tensors that are "
                "not parameters of the module, so no mask can place them.",
                fix="register them on the module, or use lightning_wd.AdamW in its configure_optimizers",
            )
        )
    hidden = [p for p in module.parameters() if p.requires_grad and id(p) not in trained]
    for p in hidden:
        p.requires_grad_(False)
    try:
        yield {id(p) for p in hidden}
    finally:
        for p in hidden:
            p.requires_grad_(True)


def _replacement(name: str, replaced: str, schedules: list[str], built: dict[str, Any], config: OptimizerConfig) -> str:
    schedule = built["lr_scheduler"]["scheduler"] if "lr_scheduler" in built else None
    shown = "no lr_scheduler" if schedule is None else getattr(schedule, "shape", type(schedule).__name__)
    own = ", ".join([replaced, *(schedules or ["no lr_scheduler"])])
    return (
        f"OptimizerOverride: what {name} configures itself ({own}) is replaced by {type(built['optimizer']).__name__} "
        f"(lr {config['lr']:g}, decay {config['decay']['style']}), {shown}."
    )
