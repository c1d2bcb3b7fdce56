"""What a mask's rules set for the optimizers that step their parameters, checked before training."""

from __future__ import annotations

import warnings
from typing import Any

from lightning_wd.configure.hyperparameters import check_hyperparameter
from lightning_wd.configure.optimizer_config import OptimizerConfig, styles_of
from lightning_wd.errors import ConfigError, MaskError, as_typed, listed, nearest, spelled
from lightning_wd.mask import DecayPlan
from lightning_wd.mask.plan import Row
from lightning_wd.mask.rules import PROPERTIES
from lightning_wd.optimizers.anchors import no_anchor
from lightning_wd.optimizers.base import DecayGroups
from lightning_wd.optimizers.by_name import OPTIMIZERS, REQUIRED, entry, hyperparameters_of, optimizer_class, steppers
from lightning_wd.optimizers.constructor import keywords_of

__all__ = ["check_rules"]


def check_rules(plan: DecayPlan, config: OptimizerConfig, *, unfrozen_later: bool) -> None:
    """Check what the rules of a config's mask set, against a plan of it.

    Frozen parameters count for an optimizer where they may be ``unfrozen_later``.

    Raises:
        MaskError: a hyperparameter that the optimizer of its parameters does not take or refuses, a style that it does
            not do, a rule whose ``optimizer`` steps nothing.
        ConfigError: a hyperparameter out of range, or a config whose own optimizer steps nothing.
    """
    stepped = [row for row in plan if unfrozen_later or not row.frozen]
    for i, rule in enumerate(config.mask.rules):
        named = f"mask rule {i + 1} ({rule})"
        if rule.optimizer is not None:
            _check_optimizer(named, rule.optimizer, [r for r in plan if r.by.get("optimizer") == i], stepped)
        for key, value in rule.hyperparameters.items():
            rows = [row for row in plan if row.by.get(key) == i]
            if key == "anchor_dtype" and {row.toward for row in rows} == {"zero"}:
                raise no_anchor(f"anchor_dtype={value} of {named}", "toward: init", MaskError)
            for optimizer in dict.fromkeys(row.optimizer for row in rows):
                default = _default(named, key, [row for row in rows if row.optimizer == optimizer])
                where = f"optimizer.mask.rules[{i}].{key}"
                check_hyperparameter(where, value, default, of_ours=optimizer in OPTIMIZERS)
    _check_together(config, stepped)
    _check_styles(config, stepped)
    _check_own(config, plan, stepped)


def _class_of(row: Row) -> Any:
    return optimizer_class(row.optimizer, str(row.style))


def _check_optimizer(named: str, optimizer: str, rows: list[Row], stepped: list[Row]) -> None:
    """Refuse an optimizer that steps nothing, that lacks a keyword, or that cannot step what it gets."""
    if not rows:
        raise MaskError(
            f"{named} gives nothing to {optimizer}: earlier rules give all that it matches an optimizer.",
            fix="write the narrower rule first, or remove optimizer from this one",
        )
    if not any(row.optimizer == optimizer for row in stepped):
        raise MaskError(
            f"{named} leaves {optimizer} without parameters: all that it matches are frozen.",
            found=listed(row.name for row in rows),
            fix="set requires_grad=True on what should train, unfreeze it with MaskedFinetuning, or remove the rule",
        )
    known = hyperparameters_of(_class_of(rows[0]))
    missing = [k for k, default in known.items() if default is REQUIRED and any(k not in r.settings for r in rows)]
    if missing:
        raise MaskError(
            f"{named} gives parameters to {optimizer}, which needs {listed(missing)}.",
            found=listed(row.name for row in rows),
            fix=f"write {', '.join(f'{key}: <value>' for key in missing)} into the rule",
        )
    if optimizer == "muon" and (flat := [row.name for row in rows if len(row.shape) < 2]):
        raise MaskError(
            f"{named} gives muon what is no matrix.",
            found=listed(flat),
            fix="write ndim: 2 into the rule, or narrow its other conditions",
        )


def _default(named: str, key: str, rows: list[Row]) -> Any:
    """Return the default of a hyperparameter of the optimizer of these parameters, which must take it."""
    optimizer, known = rows[0].optimizer, hyperparameters_of(_class_of(rows[0]))
    if key in known:
        return known[key]
    close = nearest(key, [*PROPERTIES, *known])
    others = [each for each in OPTIMIZERS if key in hyperparameters_of(entry(each).cls)]
    fixes = [f"write {close}"] if close else []
    fixes += [f"give the rule an optimizer that takes it ({', '.join(others)})"] if others else []
    raise MaskError(
        f"{named} sets {key}, which {optimizer} does not take.",
        found=f"{optimizer} steps {listed(row.name for row in rows)}",
        valid=[*PROPERTIES, *known],
        nearest=close,
        fix=", or ".join([*fixes, f"remove {key}"]),
    )


def _check_together(config: OptimizerConfig, stepped: list[Row]) -> None:
    """Let the constructor of an optimizer see what rules set for it, as if its parameters were all it has."""
    alike: dict[str, tuple[list[Row], dict[str, Any]]] = {}
    for row in stepped:
        if any(key in row.by for key in row.settings):
            own = {key: value for key, value in row.settings.items() if key not in ("lr", "weight_decay")}
            alike.setdefault(repr((row.optimizer, row.style == "l2", own)), ([], own))[0].append(row)
    for rows, settings in alike.values():
        row = rows[0]
        cls: Any = getattr(_class_of(row), "base", _class_of(row))
        keywords = {"lr": config["lr"], **config.hyperparameters_for(str(row.optimizer)), **settings}
        keywords = {key: tuple(value) if isinstance(value, list) else value for key, value in keywords.items()}
        keywords |= {"weight_decay": 0.0} if "weight_decay" in keywords_of(cls) else {}
        group: Any = [row.param for row in rows]
        if not issubclass(cls, DecayGroups):
            keywords.pop("anchor_dtype", None)  # decoupled() has it, and is given no anchors here
        else:
            named = [(row.name, row.param) for row in rows]
            group = [{"params": named, "name": row.group or "frozen", "toward": "zero"}]  # no anchors are made here
        rules = f"{spelled('optimizer')}.mask.rules"
        try:
            with warnings.catch_warnings(), as_typed({k: f"{rules}[{row.by[k]}].{k}" for k in settings if k in row.by}):
                warnings.simplefilter("ignore")  # what it warns of, it does when it is built
                cls(group, **keywords)
        except ConfigError:
            raise
        except Exception as error:  # the class's own checks
            i = row.by[next(key for key in settings if key in row.by)]
            raise MaskError(
                f"mask rule {i + 1} ({config.mask.rules[i]}) has settings that {row.optimizer} refuses: "
                f"{str(error).rstrip('.')}.",
                found=", ".join(f"{key}={value!r}" for key, value in settings.items()),
                fix="correct these settings, or give the rule another optimizer",
            ) from error


def _check_styles(config: OptimizerConfig, stepped: list[Row]) -> None:
    """Refuse a style that a rule's optimizer does not do; what does not decay has one in name only."""
    asked: dict[tuple[int, str, str], list[Row]] = {}
    for row in stepped:
        if row.wd_mult and "optimizer" in row.by:
            asked.setdefault((row.by["optimizer"], str(row.optimizer), str(row.style)), []).append(row)
    for (i, optimizer, style), rows in asked.items():
        styles, found = styles_of(optimizer, style, config.hyperparameters_for(optimizer))
        if style not in styles:
            raise MaskError(
                f"mask rule {i + 1} ({config.mask.rules[i]}) gives parameters of style {style!r} to {optimizer}, which "
                "does not do that style.",
                found=listed(row.name for row in rows) + (f"; {found}" if found else ""),
                valid=styles,
                fix=f"write style: {styles[0]} into the rule, with a weight_decay in its unit, or another optimizer",
            )


def _check_own(config: OptimizerConfig, plan: DecayPlan, stepped: list[Row]) -> None:
    """Refuse a config none of whose parameters are left to its own optimizer."""
    own = config["name"]
    if own == "muon" and stepped and not any(row.optimizer == own for row in plan):
        raise ConfigError(
            "optimizer=muon leaves Muon without parameters: no hidden matrix is left to it.",
            found=listed(f"{row.name} ({row.reason})" for row in plan if row.kind == "weight") or "no weight",
            fix="write optimizer=adamw" + ", or narrow the rules" * any("optimizer" in row.by for row in plan),
        )
    if stepped and not any(row.optimizer in steppers(own) for row in stepped):
        others = dict.fromkeys(str(row.optimizer) for row in stepped)
        raise ConfigError(
            f"optimizer.name {own} steps no parameter: the rules of optimizer.mask give all to {', '.join(others)}.",
            fix=f"write optimizer.name={next(iter(others))}, without optimizer in its rules, or narrow the rules",
        )
