"""Fits a saved state to this optimizer, or refuses it, before anything is loaded.

torch matches groups and members by position and size alone. It lets AdamW's state turn Adam into AdamW, lets reordered
groups swap their decay and reordered parameters their moments, and lets a checkpoint's decay replace the configured
one, all in silence. Here names match where both sides have them; a match by position is said.

Three things resume: the optimizer, the learning-rate schedule and the decay schedule. Each compares its own state with
its own settings, and :func:`settle` decides for all three whether the checkpoint or the configuration wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_wd.errors import CheckpointMismatchError, warn
from lightning_wd.optimizers.pairing import Difference, Pair, paired, tell_of_positions
from lightning_wd.optimizers.param_groups import configured_weight_decay, peak_lr
from lightning_wd.optimizers.saved_state import (
    DECAY_SETTINGS,
    OURS,
    REBUILD,
    VERSIONED,
    check_optimizer,
    check_states,
    check_structure,
    check_values,
    plain,
    refusal,
)

__all__ = ["ON_RESUME", "Difference", "carry_on", "fit_checkpoint", "keep_numbers", "settle"]

ON_RESUME = ("checkpoint", "config", "error")
_KINDS = {"l2": "an L2 penalty", "decoupled": "decoupled decay"}


def settle(what: str, differences: Sequence[Difference], on_resume: str, *, choosable: bool = True) -> bool:
    """Decide whether the checkpoint or the configuration wins where they differ; return True for the configuration.

    ``checkpoint`` warns and uses the checkpoint's settings, or raises where one is lost; ``config`` warns and uses the
    configured ones; ``error`` raises. Without a difference nothing is said. An optimizer of another library has no
    ``on_resume`` to choose by: it is not ``choosable``, and the checkpoint wins.

    >>> settle("the schedule", [], "config")
    True
    >>> settle("the schedule", [Difference("warmup_steps is 10 in the checkpoint, 5 configured")], "error")
    Traceback (most recent call last):
    ...
    lightning_wd.errors.CheckpointMismatchError: the schedule: the checkpoint and the configuration differ.
      found: warmup_steps is 10 in the checkpoint, 5 configured
      fix: write on_resume=config to use the configured values, or write on_resume=checkpoint to use the checkpoint's
    """
    configured = on_resume == "config"
    if not differences:
        return configured
    problem = f"{what}: the checkpoint and the configuration differ"
    found = "; ".join(difference.line for difference in differences)
    lost = next((difference.lost for difference in differences if difference.lost), "")
    use_config = "write on_resume=config to use the configured values"
    if not choosable:
        use_config = "configure what the run had; or start a new run from its weights, to use the configured values"
    fixes = [difference.fix for difference in differences]
    choose = [] if all(fixes) else ["write on_resume=checkpoint to use the checkpoint's"]
    use_checkpoint = " and ".join([*dict.fromkeys(filter(None, fixes)), *choose])
    if not configured and (lost or on_resume == "error"):
        problem += f", and {lost}" if lost else ""
        raise CheckpointMismatchError(f"{problem}.", found=found, fix=f"{use_config}, or {use_checkpoint}")
    or_else = ", or ".join(dict.fromkeys([use_config, *filter(None, fixes)]))
    side, advice = ("configured", use_checkpoint) if configured else ("checkpoint's", or_else)
    warn(f"{problem}; the {side} values are used.", found=found, fix=advice, stacklevel=3)
    return configured


def carry_on(what: str, saved: float, steps: float, on_resume: str) -> None:
    """Say that a schedule of ``saved`` steps is carried on to the end of a run of ``steps``; ``error`` refuses that."""
    line = f"total_steps is {saved} in the checkpoint, {steps} in this run"
    fix = "train with the max_epochs or max_steps of the saved run"
    if on_resume == "error":
        fix += ", or write on_resume=checkpoint to carry it on"
        raise CheckpointMismatchError(f"{what} of the checkpoint ends elsewhere than this run.", found=line, fix=fix)
    warn(
        f"{what} is carried on: it ends where this run ends, not where the saved one did.",
        found=line,
        fix=f"{fix} if that is not meant",
    )


def fit_checkpoint(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict that is safe to load, with the settings it lacks filled in from the optimizer's groups.

    Neither argument is changed.

    Raises:
        CheckpointMismatchError: another optimizer, group or parameter; another decay style, or a learning-rate schedule
            on one side only, unless ``on_resume`` is "config"; or a difference under "error".
    """
    check_structure(optimizer, state_dict)
    check_optimizer(optimizer, state_dict)
    pairs = paired(optimizer, state_dict)
    check_values(optimizer, pairs)
    switched = [_style_difference(optimizer, pair) for pair in pairs]
    check_states(optimizer, pairs, state_dict["state"])
    tell_of_positions(optimizer, pairs, state_dict["state"])
    rescheduled = _schedule_difference(optimizer, pairs[0])
    groups, differences = [], [rescheduled]
    for pair, switch in zip(pairs, switched, strict=True):
        _, mine, theirs, unkept = pair
        filled = {**mine, **theirs, "base_lr": peak_lr(theirs)}
        if getattr(optimizer, "scheduled", None) is False and "initial_lr" not in theirs:
            filled.pop("initial_lr", None)  # a learning-rate finder's
        if "weight_decay" in theirs:
            filled["base_weight_decay"] = configured_weight_decay(theirs)
        if switch:  # the saved number is in another unit, so it cannot replace the configured one
            filled.update({key: mine[key] for key in ("style", "weight_decay", "base_weight_decay")})
        keys = _compared(optimizer.stepper_of(mine), theirs)
        found = _differences(pair, filled, keys)
        if found and optimizer.on_resume == "config":
            _keep_configured(optimizer, pair, filled, keys)
        if "name" in mine and mine["name"] != filled["name"]:
            if not (found or switch):
                problem = f"{pair.label} had another name, by a rule's setting that groups do not hold."
                raise refusal(optimizer, problem, found=f"group {filled['name']!r}", fix=REBUILD)
            filled["name"] = mine["name"]  # as the plan calls it
        if rescheduled:  # a learning rate within a discarded schedule is meaningless
            filled["lr"] = mine["lr"]
        differences += [switch, *unkept, *found]
        groups.append(filled)
    settle(f"the settings of {type(optimizer).__name__}", [*filter(None, differences)], optimizer.on_resume)
    state = state_dict["state"]
    for filled, pair in zip(groups, pairs, strict=True):
        # Where the configured one holds, so do its own anchors; a hyperball that is left and entered has a new radius.
        kept_by = {"anchor": "toward", "radius": "style"}
        gone = [name for name, key in kept_by.items() if filled.get(key) != pair.theirs.get(key)]
        own = {key: state[key] for key in pair.theirs["params"] if key in state and gone}
        state = {**state, **{key: {k: v for k, v in held.items() if k not in gone} for key, held in own.items()}}
    return {**state_dict, "param_groups": groups, "state": state}


def keep_numbers(optimizer: Any, loaded: dict[str, Any]) -> None:
    """Give back their dtype to the single numbers of a state, such as NAdam's product of momenta.

    torch has cast them to the dtype of the weights, which has more digits or fewer: a resumed run would be another one.
    """
    for group, saved in zip(optimizer.param_groups, loaded["param_groups"], strict=True):
        for p, key in zip(group["params"], saved["params"], strict=True):
            for name, value in loaded["state"].get(key, {}).items():
                held = optimizer.state[p].get(name)
                if name != "step" and isinstance(held, Tensor) and held.ndim == 0 and held.dtype != value.dtype:
                    optimizer.state[p][name] = value.to(held.device, copy=True)


def _style_difference(optimizer: Any, pair: Pair) -> Difference | None:
    """Return a difference where the saved group had another decay style and the configured one holds, else refuse it.

    The configured style wins under ``on_resume="config"``, or when the state names no style.
    """
    label, mine, theirs, _ = pair
    configured, style, plain_style = mine["style"], theirs.get("style"), optimizer.stepper_of(mine).plain_style
    if style is None and "decoupled_weight_decay" in theirs:
        style = "decoupled" if theirs["decoupled_weight_decay"] else "l2"
    if style is None and plain_style == "l2":
        if configured == "l2" or not theirs.get("weight_decay"):
            return None
        return Difference(
            f"{label}: weight_decay is an L2 penalty of {theirs['weight_decay']!r} in the checkpoint of a plain "
            f"optimizer; style {configured!r} keeps {mine['weight_decay']!r}",
            fix=f"write style='l2' and weight_decay={theirs['weight_decay']!r}",
        )
    style = style or plain_style
    if style == configured or (style is None and configured in _KINDS):
        return None
    if style is None:
        found, old = "a state of torch.optim.Adam or AdamW before torch 2.7, so style 'l2' or 'decoupled'", ""
    else:
        found = f"style {style!r}" + (f" ({_KINDS[style]})" if style in _KINDS else "")
        old = f"write style={style!r} to continue that run{' (AdamL2 or SGDL2)' * (style == 'l2')}"
    if optimizer.on_resume == "config":
        amounts = f"{theirs.get('weight_decay')!r} in the checkpoint, {configured!r} with {mine['weight_decay']!r}"
        line = f"{label}: {found} with weight_decay {amounts} in the configuration"
        return Difference(line, fix=old or "write the style that the run had")
    amount = "weight_decay from lightning_wd.convert"
    if configured == "hyperball":  # what it has in place of an amount
        amount = "lr from lightning_wd.convert(..., to='angle')"
    elif style == "hyperball":
        amount = "the lr and weight_decay of that style"
    fix = f"to switch on purpose, write on_resume=config, with {amount}; the moments stay"
    fix = f"{old}; {fix}" if old else fix
    problem = f"{label} was trained with another decay style."
    raise refusal(
        optimizer, problem, found=f"{found} in the checkpoint, style {configured!r} in the configuration", fix=fix
    )


def _schedule_difference(optimizer: Any, pair: Pair) -> Difference | None:
    """Return a difference where one side alone has a learning-rate schedule: Lightning would drop or start it silently.

    Schedulers leave ``initial_lr`` in a saved group. A schedule compares its own settings when it loads its state. Only
    :func:`lightning_wd.configure_optimizers` says whether its optimizer is ``scheduled``.
    """
    here, there = getattr(optimizer, "scheduled", None), "initial_lr" in pair.theirs
    of_its_own = not here and "initial_lr" in pair.mine  # some classes keep one without a schedule
    if here in (None, there) or "base_lr" not in pair.theirs or of_its_own:
        return None
    ours, theirs = (("no lr_scheduler", "an lr_scheduler")[side] for side in (here, there))
    found = f"{theirs} in the checkpoint, {ours} in the configuration"
    if optimizer.on_resume == "config":
        return Difference(found, fix="write lr_scheduler as it was")
    fix = "write lr_scheduler as it was, or on_resume=config to start with the configured learning rate"
    raise refusal(optimizer, f"the run had {theirs}.", found=found, fix=fix)


def _compared(optimizer: Any, saved: dict[str, Any]) -> list[str]:
    """Return the settings that are compared: the optimizer's own, except what steps or the saved schedule change."""
    driven = {"momentum", "betas"} if "max_momentum" in saved else set()
    own = [key for key in optimizer.defaults if key not in {*VERSIONED, *OURS, *driven, *optimizer.counters, "lr"}]
    return ["base_lr", "base_weight_decay", *DECAY_SETTINGS, *own]


def _differences(pair: Pair, saved: dict[str, Any], keys: list[str]) -> list[Difference]:
    """Return the configured settings that differ."""
    shown = {"base_lr": "lr (base_lr)", "base_weight_decay": "weight_decay"}
    label, mine, *_ = pair
    line = "{}: {} is {!r} in the checkpoint, {!r} in the configuration"
    return [
        Difference(line.format(label, shown.get(key, key), saved[key], mine[key]))
        for key in keys
        if key in mine and key in saved and plain(mine[key]) != plain(saved[key])
        if key != "kahan" or None not in (mine[key], saved[key])  # None: not decided yet, so it differs from nothing
    ]


def _keep_configured(optimizer: Any, pair: Pair, filled: dict[str, Any], keys: list[str]) -> None:
    """Put the configured settings into a loaded group; its learning rate stays at its place in the schedule."""
    label, mine, *_ = pair
    if mine.get("amsgrad") and not filled.get("amsgrad"):
        problem = f"{label} has amsgrad, whose maximum the run did not keep."
        fix = "write amsgrad=False to continue that run"
        raise refusal(optimizer, problem, found="amsgrad=False", valid="amsgrad=True", fix=fix)
    peak = filled["base_lr"]
    filled["lr"] = mine["base_lr"] * (filled["lr"] / peak) if peak else mine["lr"]
    decided = [key for key in (*keys, "initial_lr", "weight_decay") if key != "kahan" or mine.get(key) is not None]
    filled.update({key: mine[key] for key in decided if key in mine})
