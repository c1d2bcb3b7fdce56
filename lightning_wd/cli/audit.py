"""``lightning-wd audit``: which parameters of a model decay, and why."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_wd.cli.shell import reader_may_leave
from lightning_wd.cli.user_model import build_model, import_target
from lightning_wd.errors import ConfigError, MaskError, choice, nearest

if TYPE_CHECKING:
    from torch import nn

    from lightning_wd.mask import DecayPlan, Difference, Row

__all__ = ["run"]

_STATES = ("decayed", "excluded", "frozen")


def run(options: argparse.Namespace) -> int:
    """Print a model's decay plan; return 1 where a tensor is in a state that ``--fail-on`` forbids."""
    from lightning_wd.mask import plan_decay
    from lightning_wd.mask.peers import POLICIES, peer_plan

    conditions = {text: _read_condition(text) for text in options.fail_on}
    with redirect_stdout(sys.stderr):  # keep what the model's own code prints out of our output
        try:
            model = build_model(options.model)
        except SystemExit as error:
            raise ConfigError(
                f"{options.model!r} exits with status {error.code!r} when it is imported or built.",
                fix="move what it runs under if __name__ == '__main__':, and name what returns a model",
            ) from error
        shares = {} if options.batch is None else _scale_invariance(model, options.batch)
        plan = plan_decay(model, _read_mask(options.mask), options.style)
        other = peer_plan(model, choice("--against", options.against, POLICIES)) if options.against else plan
    # peers have neither rates nor styles to compare
    differences = [each for each in plan.diff(other) if _state(each.this) != _state(each.other)]
    kinds = _kinds_of_tensors(model)
    failures = {
        text: names
        for text, (state, kind) in conditions.items()
        if (names := [row.name for row in plan if kind in kinds[id(row.param)] and _state(row) == state])
    }
    data = plan.to_dict()
    for row in data["parameters"] if shares else ():
        share = shares.get(row["name"], math.nan)
        row["scale_invariance"] = None if math.isnan(share) else share
    with reader_may_leave():
        if options.json:
            if options.against:
                sides = [each._asdict() for each in differences]
                data["against"] = {"policy": options.against, "differences": sides}
            print(json.dumps({**data, "failures": failures}, indent=2, default=lambda row: row.to_dict()))
        else:
            _print_plan(plan, data, options.against, differences)
    for text, names in failures.items():
        print(f"--fail-on {text}: {len(names)} parameter{'s' * (len(names) > 1)}: {', '.join(names)}", file=sys.stderr)
    return 1 if failures else 0


def _kinds_of_tensors(model: nn.Module) -> dict[int, set[str]]:
    """Return the kinds of each tensor by its id: the kind of each of its names, and norm if a norm layer owns it."""
    from lightning_wd.mask.evidence import classify, is_norm
    from lightning_wd.mask.module_tree import walk

    kinds: dict[int, set[str]] = {}
    for found in walk(model).tensors:
        mine = kinds.setdefault(id(found.param), set())
        mine.add(classify(found))
        if is_norm(type(found.module)):  # type: ignore[arg-type]  # classes are hashable
            mine.add("norm")
    return kinds


def _scale_invariance(model: nn.Module, source: str) -> dict[str, float]:
    """Return what ``scale_invariant`` finds by the loss of a training step; ``source`` names its data."""
    from lightning_wd.scale_invariance import training_shares

    data = import_target(source, "--batch") if source else None
    return training_shares(model, data() if callable(data) else data)


def _print_plan(plan: DecayPlan, data: dict[str, Any], policy: str | None, differences: Sequence[Difference]) -> None:
    from rich.console import Console

    from lightning_wd.mask.tables import plan_table, totals_table
    from lightning_wd.scale_invariance import INVARIANT

    # In a pipe rich assumes 80 columns and would fold names.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(plan_table(data), totals_table(data), sep="\n")
    kinds = Counter(f"{_state(row)} {row.kind}" for row in plan)
    console.print("Tensors by kind: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    shares = {row["name"]: row["scale_invariance"] for row in data["parameters"] if "scale_invariance" in row}
    if shares:
        known = {name: share for name, share in shares.items() if share is not None}
        flat = [row.name for row in plan if _state(row) == "decayed" and known.get(row.name, 1.0) < INVARIANT]
        print(f"\nTensors that decay only as a learning rate (scale_invariance below {INVARIANT:g}): {len(flat)}")
        for name in flat:
            print(f"  {name}")
    if policy:
        print(f"\nParameters treated differently by {policy} (this plan / {policy}): {len(differences)}")
        for difference in differences:
            print(f"  {difference}")


def _state(row: Row | None) -> str:
    if row is None:
        return "absent"
    if row.group is None:
        return "frozen"
    return "decayed" if row.wd_mult and row.style != "none" else "excluded"


def _read_condition(text: str) -> tuple[str, str]:
    from lightning_wd.mask.evidence import KINDS

    state, _, kind = text.partition(":")
    fix = f"write {nearest(state, _STATES) or 'decayed'}:{nearest(kind, KINDS) or 'norm'}"
    for part, valid in ((state, _STATES), (kind, KINDS)):
        if part not in valid:
            raise ConfigError(
                f"--fail-on {text!r} is not STATE:KIND: {part!r} is unknown.",
                valid=valid,
                nearest=nearest(part, valid),
                fix=fix,
            )
    return state, kind


def _read_mask(text: str) -> Any:
    """Read ``--mask``: a preset's name, a YAML file, or a mapping typed on the command line."""
    text = text.strip()
    typed = text.startswith("{")
    if text.startswith("["):
        raise MaskError(f"mask {text!r} is a list.", fix=f"write {{rules: {text}}}")
    if not typed and not text.endswith((".yaml", ".yml")):
        return text
    if not typed and not Path(text).is_file():
        raise MaskError(f"mask file {text!r} does not exist.", fix="correct the path, or name a preset")
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        return OmegaConf.to_container(OmegaConf.create(text) if typed else OmegaConf.load(text), resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        raise MaskError(
            f"mask {text!r} cannot be read as YAML.",
            found=" ".join(str(error).split()),
            fix="write {base: standard, rules: [{name: '*.head.weight', wd_mult: 0.1}]}, or a file that holds this",
        ) from error
