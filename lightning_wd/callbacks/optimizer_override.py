"""``OptimizerOverride``: another optimizer for a LightningModule, without editing its code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_info, rank_zero_warn  # type: ignore[attr-defined]
from torch import Tensor
from torch.optim import Optimizer

from lightning_wd._lightning import Callback
from lightning_wd.configure import LRSchedulerConfig, OptimizerConfig
from lightning_wd.configure.budget import Budget
from lightning_wd.configure.configure_optimizers import build
from lightning_wd.configure.schedule_request import ScheduleRequest
from lightning_wd.errors import ConfigError, checked_keywords, explain, listed, number
from lightning_wd.optimizers.param_groups import as_float, group_name, group_style, peak_lr

__all__ = ["OptimizerOverride"]


@checked_keywords()
class OptimizerOverride(Callback):
    """Replace the optimizer and the learning-rate schedule that a module configures, and log both, old and new.

    The module's own ``configure_optimizers`` still runs, because it says which parameters are trained. The new
    optimizer gets the same ones, split by the mask, without those that are frozen; a warning follows where the module
    unfreezes them later. Learning rates and amounts of the module's own groups are replaced too, with a warning where
    its rates differ and the new ones do not. The optimizer's own schedule is replaced by ``lr_scheduler``, or by none.
    Where the method returns None, all parameters that are not frozen are trained. A module without the method is
    refused by Lightning itself.

    Args:
        optimizer: what :func:`lightning_wd.configure_optimizers` takes.
        lr_scheduler: what that function takes as its schedule; None trains at a constant learning rate.
        index: which of the module's optimizers to replace; needed where it has several, or steps them itself.
        total_steps, steps_per_epoch, global_batch: optimizer steps of the run and of an epoch, and the rows of a step;
            read from the trainer where it knows them.

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

    def __init__(
        self,
        optimizer: OptimizerConfig | Mapping[str, Any] | str | None = None,
        lr_scheduler: LRSchedulerConfig | Mapping[str, Any] | str | Callable[..., Any] | None = None,
        *,
        index: int | None = None,
        total_steps: int | None = None,
        steps_per_epoch: float | None = None,
        global_batch: int | None = None,
    ) -> None:
        self.optimizer = OptimizerConfig.of(optimizer)
        ScheduleRequest.of(lr_scheduler)  # refuse invalid settings now
        self._budget = partial(
            Budget,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            global_batch=global_batch,
            where_to_pass="OptimizerOverride(..., {})",
        )
        self._budget(None)
        self.lr_scheduler = lr_scheduler
        self._finder: Any = None
        self._found: float | None = None
        self.index = None if index is None else int(number("index", index, whole=True))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stand in for the module's ``configure_optimizers`` until the strategy has called it, once."""
        if stage != "fit":
            return
        self._take_found_rate(trainer)
        earlier = vars(pl_module).get("configure_optimizers")
        if getattr(earlier, "__self__", None) is self:  # left by a fit that failed early
            del pl_module.configure_optimizers
            earlier = None
        self._module, self._earlier, self._own = pl_module, earlier, pl_module.configure_optimizers
        pl_module.configure_optimizers = self._configure  # type: ignore[method-assign]

    def _take_found_rate(self, trainer: L.Trainer) -> None:
        """Train at the rate that ``Tuner.lr_find`` has found; the module's attribute that it sets is not read here."""
        finders = [callback for callback in trainer.callbacks if hasattr(callback, "optimal_lr")]  # type: ignore[attr-defined]
        if finders:  # it searches in this fit; the optimizer takes a rate that is found within it
            self._finder = finders[0]
            return
        finder, self._finder = self._finder, None
        found = None if finder is None or finder.optimal_lr is None else finder.optimal_lr.suggestion()
        if found is None:
            return
        request = ScheduleRequest.of(self.lr_scheduler)
        if request is not None and request.peak() is not None:
            rank_zero_warn(f"OptimizerOverride keeps lr_scheduler.max_lr, not the {found:.3g} that lr_find has found.")
            return
        rank_zero_info(f"OptimizerOverride takes the learning rate {found:.3g} that lr_find has found.")
        self._found = float(found)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore(pl_module)

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
            built = self._build(module)
            self._tell("none", built)
            return built
        optimizers, schedules = _read(configured)
        index = self._index(module, optimizers)
        replaced = optimizers[index]
        with _only(module, replaced) as hidden:
            built = self._build(module)
        for row in built["optimizer"].decay_plan:
            if id(row.param) in hidden:
                row.reason = f"not trained by the {type(replaced).__name__} that is replaced"
        # A schedule names the optimizer that it drives; SequentialLR and ChainedScheduler do too.
        dropped = [entry for entry in schedules if getattr(_scheduler(entry), "optimizer", None) is replaced]
        kept = [entry for entry in schedules if entry not in dropped]
        self._tell(_described(replaced, map(_scheduler, dropped)), built)
        self._warn_of_lost_rates(replaced, built["optimizer"])
        optimizers[index] = built["optimizer"]
        return optimizers, [*kept, *([built["lr_scheduler"]] if "lr_scheduler" in built else [])]

    def _build(self, module: L.LightningModule) -> dict[str, Any]:
        return build(module, self.optimizer, self.lr_scheduler, self._budget(module), self._found)

    def _tell(self, old: str, built: dict[str, Any]) -> None:
        schedules = [built["lr_scheduler"]["scheduler"]] if "lr_scheduler" in built else []
        rank_zero_info(
            f"OptimizerOverride replaces the optimizer of {type(self._module).__name__}:\n"
            f"  old: {old}\n  new: {_described(built['optimizer'], schedules)}"
        )

    def _warn_of_lost_rates(self, old: Optimizer, new: Optimizer) -> None:
        """Warn where the module trains parameters at a lower rate than others and the new optimizer does not."""
        before, after = _relative_rates(old), _relative_rates(new)
        names = {id(p): name for name, p in self._module.named_parameters()}
        lost = {names[key]: part for key, part in before.items() if part < 1.0 <= after.get(key, 0.0)}
        if not lost:
            return
        groups = [
            f"{group_name(group, i)} (lr {peak_lr(group):g}: {listed([names[id(p)] for p in group['params']], 2)})"
            for i, group in enumerate(old.param_groups)
        ]
        rules = listed(_rules(lost, {names[key]: part for key, part in before.items()}), 12)
        rank_zero_warn(
            explain(
                f"OptimizerOverride trains {len(lost)} parameters of {type(self._module).__name__} at the full rate, "
                f"{max(map(peak_lr, new.param_groups)):g}, where its own {type(old).__name__} has a lower one.",
                found=listed(groups, 4),
                fix=f"give rates by rules, optimizer.mask.rules=[{rules}], or by depth with optimizer.mask.layer_decay "
                "where the model has numbered layers",
            )
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


def _relative_rates(optimizer: Optimizer) -> dict[int, float]:
    """Return the peak rate of each parameter as a part of the largest, by id."""
    largest = max(map(peak_lr, optimizer.param_groups)) or 1.0
    return {id(p): peak_lr(group) / largest for group in optimizer.param_groups for p in group["params"]}


def _rules(lost: dict[str, float], every: dict[str, float]) -> list[str]:
    """Return rules that give parameters their parts of the rate: one for a child module where all of it has one."""
    patterns: dict[str, float] = {}
    for name, part in lost.items():
        child = f"{name.partition('.')[0]}."
        whole = "." in name and all(other == part for key, other in every.items() if key.startswith(child))
        patterns[f"{child}*" if whole else name] = part
    return [f"{{name: '{pattern}', lr_mult: {part:g}}}" for pattern, part in patterns.items()]


def _described(optimizer: Optimizer, schedulers: Iterable[Any]) -> str:
    """Return an optimizer in words: its class, its groups with peak rates and amounts, and its schedules."""
    groups = []
    for i, group in enumerate(optimizer.param_groups):
        amount = f", weight_decay {as_float(group['weight_decay']):g}" if "weight_decay" in group else ""
        style = group_style(optimizer, group)
        groups.append(f"{group_name(group, i)} (lr {peak_lr(group):g}{amount}{f', {style}' if style else ''})")
    named = [getattr(scheduler, "shape", type(scheduler).__name__) for scheduler in schedulers]
    return f"{type(optimizer).__name__}, groups {listed(groups, 8)}, lr_scheduler {' and '.join(named) or 'none'}"


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
