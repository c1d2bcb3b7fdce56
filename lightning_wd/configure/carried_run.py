"""``optimizer.reference``: a learning rate and decay that were tuned elsewhere, at the batch and steps of this run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_wd.configure.budget import Budget
from lightning_wd.configure.late_groups import base_values
from lightning_wd.configure.optimizer_config import OptimizerConfig, family_of
from lightning_wd.decay import AMOUNTS
from lightning_wd.errors import ConfigError
from lightning_wd.mask import DecayPlan
from lightning_wd.optimizers.param_groups import as_float
from lightning_wd.reference import DECAY_EQUATIONS, EQUATIONS, LR_RULES, Reference, carried_weight_decay, check_tested

__all__ = ["CarriedRun"]

_NEEDED_BY = "optimizer.reference"
_TPP_EXPONENT = -0.527  # of the best timescale, as a part of the run, in tokens per parameter (2505.13738)


class CarriedRun:
    """What a reference makes of the tuned numbers: always from those numbers, so nothing is carried over twice.

    Args:
        config: what the user asks for.
        reference: the config's.
        lr: ``lr0``, the tuned peak.
        budget: says the batch and the steps of this run whenever they are needed.
    """

    def __init__(self, config: OptimizerConfig, reference: Reference, lr: float, budget: Budget) -> None:
        self._config, self._decay, self._reference = config, config.decay, reference
        self._lr, self._budget = lr, budget
        self._own: dict[str, Any] = {}  # parameter -> the settings of its own, as its rule has them

    def lr(self, tuned: float | None = None) -> float:
        """Return a tuned learning rate, by default the configured one, as it is here."""
        batch = self._budget.global_batch(_NEEDED_BY)
        return self._reference.lr(self._lr if tuned is None else tuned, batch)

    def weight_decay(self, coefficient: float, lr: float) -> float:
        """Return the coefficient that goes with the peak ``lr`` here; a relative amount is resolved here already."""
        if self._decay.weight_decay is None:
            return coefficient
        return self._carried(self._decay.style, coefficient, self._lr, lr)

    def _carried(self, style: str, weight_decay: float, tuned: float, lr: float) -> float:
        before, now = self._reference.steps, self._budget.total_steps(_NEEDED_BY)
        return carried_weight_decay(style, weight_decay, reference_lr=tuned, lr=lr, reference_steps=before, steps=now)

    def halves(self, lr: float) -> dict[str, dict[str, float]]:
        """Return the ``lr`` and ``weight_decay`` of their own that optimizers within have; ``lr`` is the peak here."""
        return {name: self._own_here(self._decay.style, own, lr) for name, own in self._config.halves.items()}

    def _own_here(self, style: str, own: Mapping[str, Any], lr: float) -> dict[str, Any]:
        """Return settings that replace the configured ones, as they are here."""
        carried, tuned, here = dict(own), self._lr, lr
        if "lr" in own:
            tuned = own["lr"]
            here = carried["lr"] = self.lr(tuned)
        if "weight_decay" in own:
            carried["weight_decay"] = self._carried(style, own["weight_decay"], tuned, here)
        return carried

    def carry_rules(self, plan: DecayPlan, lr: float) -> None:
        """Carry over each ``lr`` and ``weight_decay`` that rules set in place of the configured ones.

        ``lr`` is the peak here. A finder's does not touch the rates that rules set.

        Raises:
            ConfigError: a rule asks for a style of decay that has no tested rule, or for an optimizer whose learning
                rate follows the batch by another rule.
        """
        for row in plan:
            if row.frozen:  # it has no settings yet
                continue
            style = str(row.style)
            family = self._config.family if row.optimizer is None else family_of(row.optimizer)
            if family != self._config.family and self._config["reference"].get("lr_rule") is None:
                raise ConfigError(
                    f"{_NEEDED_BY} carries lr over by the rule for {self._config['name']}, which is not that of "
                    f"{row.optimizer}, the optimizer of {row.name}.",
                    valid=LR_RULES,
                    fix=f"write {_NEEDED_BY}.lr_rule=sqrt, the one rule for both, or remove {_NEEDED_BY}",
                )
            if row.wd_mult:
                check_tested(style, family, _NEEDED_BY)
            row.settings = self._own_here(style, self._own.setdefault(row.name, row.settings), lr)

    def check_end(self, weight_decay: float) -> None:
        """Refuse an absolute amount that a schedule of decay ends at, unless it would be the same number here."""
        style, lr, tuned = self._decay.style, self.lr(), self._decay.weight_decay
        here = self._carried(style, weight_decay, self._lr, lr)
        if here != weight_decay:
            multiple = f"{weight_decay / tuned:g}" if tuned else "<end over start>"
            raise ConfigError(
                f"DecaySchedule ends at a weight_decay of {weight_decay:g}, which {_NEEDED_BY} does not carry over.",
                found=f"{weight_decay:g} there is {here:.4g} here",
                fix=f"write end_weight_decay=null and end={multiple}: a multiple of an amount that is carried over",
            )

    def describe(self, optimizer: Any) -> dict[str, Any]:
        """Return what was carried over in an optimizer's run, as plain data: from, to, by which rule, and remarks."""
        reference, style = self._reference, self._decay.style
        batch, steps = self._budget.global_batch(_NEEDED_BY), self._budget.total_steps(_NEEDED_BY)
        lr, lam = (as_float(optimizer.defaults[key]) for key in ("lr", "weight_decay"))
        reading, whose = getattr(optimizer, "first_step", None), "a finder's"
        if reading is not None and reading.goes_on:
            (lr, lam), whose = base_values(optimizer, optimizer.decay_plan), "the checkpoint's"
        before: dict[str, Any] = {"global_batch": reference.global_batch, "steps": reference.steps, "lr": self._lr}
        rules = {"lr": EQUATIONS[reference.lr_rule]}
        remarks = []
        if not math.isclose(lr, self.lr()):
            rules["lr"] = f"{whose}, not the rule's {self.lr():.4g}"
        if self._decay.weight_decay is not None and style != "none":
            before["weight_decay"], rules["weight_decay"] = self._decay.weight_decay, DECAY_EQUATIONS[style]
            if not math.isclose(lam, rule := self.weight_decay(self._decay.weight_decay, lr)):
                rules["weight_decay"] = f"{whose}, not the rule's {rule:.4g}"
        elif style != "none":
            unit = next(name for name in AMOUNTS if getattr(self._decay, name) is not None)
            rules["weight_decay"] = f"{unit} {getattr(self._decay, unit):g}, taken as it stands"
            if unit == "normalized" and steps != reference.steps:
                part = math.sqrt(reference.steps / steps)
                remarks.append(
                    f"normalized has a rule of its own: its timescale, in runs, is {part:.3g} x as long here"
                )
        rows = batch * steps / (reference.global_batch * reference.steps)
        if round(rows, 2) != 1 and style != "none":  # else the steps of an epoch are only rounded up at another batch
            seen = f"{rows:.3g} x the reference's rows are seen: "
            decays = lam or any(own.get("weight_decay") for own in self._own.values())
            if self._config.family == "adam" and decays:
                remarks.append(
                    f"{seen}the best timescale, in runs, of language models of 0.1 to 3.3 B parameters falls as "
                    f"(tokens per parameter)^{_TPP_EXPONENT} (arXiv 2505.13738), here x {rows**_TPP_EXPONENT:.3g}; "
                    "not applied"
                )
            if self._decay.weight_decay:
                by_epochs = rows * self.weight_decay(self._decay.weight_decay, lr)
                remarks.append(
                    f"{seen}if they are epochs of the same data, weight_decay {by_epochs:.4g} here keeps the timescale "
                    "in epochs, as arXiv 2405.13698 measures it; not applied"
                )
        here = {"global_batch": batch, "steps": steps, "lr": lr, "weight_decay": lam}
        return {"reference": before, "here": here, "rules": rules, "remarks": remarks}
