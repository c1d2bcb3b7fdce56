"""``lightning-wd convert``: an amount of decay in other units, or carried over to another batch and budget."""

from __future__ import annotations

import argparse

from lightning_wd.conversions import UNITS, convert
from lightning_wd.errors import ConfigError

__all__ = ["run"]

# option -> the units that need it
_NEEDS = {
    "momentum": ("sgd_l2", "angle"),
    "total_steps": ("normalized", "timescale_runs"),
    "steps_per_epoch": ("timescale_epochs",),
}
_CARRY = ("from_batch", "from_steps", "batch", "steps", "family")  # all needed, lr_rule beside them
_STYLE_OF = {"decoupled": "decoupled", "independent": "independent", "sgd_l2": "l2"}  # others are taken as they stand


def run(options: argparse.Namespace) -> int:
    """Print an amount of decay in the units asked for, carried over first where that is asked."""
    lines = []
    if any(getattr(options, name) is not None for name in (*_CARRY, "lr_rule")):
        _carry_over(options)
        lines.append(f"{'lr':<16} {options.lr:.6g}")
    known = {name: getattr(options, name) for name in ("lr", *_NEEDS)}
    missing = {unit: name for name, units in _NEEDS.items() if known[name] is None for unit in units}
    for unit in (options.from_, options.to):
        if unit in missing:
            option = options.typed[missing[unit]]
            raise ConfigError(f"unit '{unit}' needs {option}.", fix=f"add {option} <number>")
    if options.to is not None:
        lines.append(str(convert(options.value, from_=options.from_, to=options.to, **known)))
    else:
        lines += [
            f"{unit:<16} needs {options.typed[missing[unit]]}"
            if unit in missing
            else f"{unit:<16} {convert(options.value, from_=options.from_, to=unit, **known):.6g}"
            for unit in UNITS
        ]
    print(*lines, sep="\n")
    return 0


def _carry_over(options: argparse.Namespace) -> None:
    """Replace lr and the amount by those at another batch and number of steps."""
    from lightning_wd.reference import carry_over

    missing = [options.typed[name] for name in _CARRY if getattr(options, name) is None]
    if missing:
        raise ConfigError(
            f"nothing can be carried over without {', '.join(missing)}.",
            fix="add --from-batch, --from-steps, --batch and --steps <number>, and --family adam or sgd",
        )
    if options.total_steps is not None:
        raise ConfigError("--steps and --total-steps are one number.", fix="remove --total-steps")
    carried = carry_over(
        options.lr,
        options.value,
        reference={"global_batch": options.from_batch, "steps": options.from_steps, "lr_rule": options.lr_rule},
        global_batch=options.batch,
        steps=options.steps,
        family=options.family,
        style=_STYLE_OF.get(options.from_, "none"),
    )
    options.lr, options.value, options.total_steps = *carried, options.steps
