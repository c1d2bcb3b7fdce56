"""The command ``lightning-wd``: one subcommand for each thing to know outside a training run.

Each subcommand is a function that adds its own parser and names the function that runs it, so that
``lightning-wd --help`` loads neither torch nor the models it would look at.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_wd.errors import ConfigError, MaskError, explain, nearest

if TYPE_CHECKING:
    from torch import nn

    from lightning_wd.mask import DecayPlan, Difference, Row

__all__ = ["main"]

_UNITS = ("decoupled", "independent", "normalized", "timescale_epochs", "sgd_l2")
_STATES = ("decayed", "excluded", "frozen")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit status: 0, 1 where ``--fail-on`` found something, 2 for any error.

    >>> main(["convert", "0.1", "--from", "decoupled", "--to", "independent", "--lr", "1e-3"])
    0.0001
    0
    """
    about = "Weight decay: look at a plan, convert amounts, draw sweeps and runs."
    parser = argparse.ArgumentParser(prog="lightning-wd", description=about)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_audit, _add_convert, _add_heatmap, _add_curves):
        add(commands)
    options = parser.parse_args(argv)
    try:
        return int(options.run(options))
    except (ConfigError, MaskError) as error:
        print(f"{parser.prog} {options.command}: {error}", file=sys.stderr)
    except Exception:  # the user's own code failed, whose traceback helps; Python's status for it is --fail-on's
        traceback.print_exc()
    return 2


def _add_audit(commands: Any) -> None:
    parser = commands.add_parser(
        "audit",
        help="show which parameters of a model decay, and why",
        description="Build a model, plan its decay and print the plan, its totals and how another policy differs.",
        epilog="Example: lightning-wd audit my_pkg.module:Model --against timm --fail-on decayed:norm",
    )
    parser.add_argument("model", metavar="MODULE:NAME", help="a class or function without arguments, or a module")
    parser.add_argument(
        "--mask", default="standard", help="a preset, a YAML file, or a mapping '{base: ..., rules: [...]}'"
    )
    parser.add_argument("--style", help="the decay style; 'corrected' leaves the output layer decoupled")
    parser.add_argument("--against", metavar="POLICY", help="also print the difference to timm, transformers or ndim")
    parser.add_argument("--json", action="store_true", help="print plain data instead of tables")
    parser.add_argument(
        "--fail-on",
        action="append",
        default=[],
        metavar="STATE:KIND",
        help="exit with 1 if a parameter of this kind is decayed, excluded or frozen; repeatable. norm includes the "
        "biases of norm layers, and a tied tensor is of the kind of each of its names",
    )
    parser.set_defaults(run=_audit)


def _audit(options: argparse.Namespace) -> int:
    from lightning_wd.mask import peer_plan, plan_decay

    conditions = [_condition(text) for text in options.fail_on]
    with redirect_stdout(sys.stderr):  # what the model's own code prints must not get between our lines
        try:
            model = _model(options.model)
        except SystemExit as error:
            raise ConfigError(
                explain(
                    f"{options.model!r} ends the program when it is imported or built, with status {error.code!r}.",
                    fix="put what it runs behind if __name__ == '__main__':, and name what returns a model",
                )
            ) from error
        plan = plan_decay(model, _mask(options.mask), options.style)
        differences = _against(plan, peer_plan(model, options.against)) if options.against else ()
    kinds = _kinds(model)
    found = {
        text: [row.name for row in plan if kind in kinds[id(row.param)] and _state(row) == state]
        for text, (state, kind) in zip(options.fail_on, conditions, strict=True)
    }
    failures = {text: names for text, names in found.items() if names}
    with _reader_may_leave():
        if options.json:
            data = plan.to_dict()
            if options.against:
                data["against"] = {"policy": options.against, "differences": [_side_by_side(d) for d in differences]}
            print(json.dumps({**data, "failures": failures}, indent=2))
        else:
            _print_plan(plan, options.against, differences)
    for text, names in failures.items():
        print(f"--fail-on {text}: {len(names)} parameters: {', '.join(names)}", file=sys.stderr)
    return 1 if failures else 0


def _kinds(model: nn.Module) -> dict[int, set[str]]:
    """Return the kinds of each tensor by its id: of all its names, and norm for what a norm layer owns."""
    from lightning_wd.mask.evidence import classify, is_norm
    from lightning_wd.mask.names import walk

    kinds: dict[int, set[str]] = {}
    for found in walk(model).tensors:
        mine = kinds.setdefault(id(found.param), set())
        mine.add(classify(found))
        if is_norm(type(found.module)):  # type: ignore[arg-type]  # classes are hashable
            mine.add("norm")
    return kinds


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Let ``| head`` close the pipe: what was found is still the exit status."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:  # rich ends the program, with the status of a finding
        if not isinstance(error.__context__ or error, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _against(plan: DecayPlan, peers: DecayPlan) -> list[Difference]:
    """Return what a peer decays and this plan does not, or the other way round; a peer knows no rates or styles."""
    return [
        difference
        for difference in plan.diff(peers)
        if not (difference.this and difference.other) or _state(difference.this) != _state(difference.other)
    ]


def _print_plan(plan: DecayPlan, policy: str | None, differences: Sequence[Difference]) -> None:
    from rich.console import Console

    from lightning_wd.report import totals_table

    # A pipe has no width: wide enough for names not to be folded.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    data = plan.to_dict()
    console.print(plan.table())
    kinds = Counter(f"{_state(row)} {row.kind}" for row in plan)
    console.print(totals_table(data))
    console.print("Tensors by kind: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    if policy:
        console.print(f"\n{len(differences)} parameters are treated differently by {policy} (this plan / {policy}):")
        for difference in differences:
            console.print(f"  {difference}", highlight=False, soft_wrap=True, markup=False)


def _side_by_side(difference: Difference) -> dict[str, Any]:
    sides = {"this": difference.this, "other": difference.other}
    return {"name": difference.name, **{side: row.to_dict() if row else None for side, row in sides.items()}}


def _state(row: Row) -> str:
    if row.group is None:
        return "frozen"
    return "decayed" if row.decay and row.style != "none" else "excluded"


def _condition(text: str) -> tuple[str, str]:
    from lightning_wd.mask.evidence import KINDS

    state, _, kind = text.partition(":")
    closest = tuple(
        value if value in valid else nearest(value, valid) or example
        for value, valid, example in ((state, _STATES, "decayed"), (kind, KINDS, "norm"))
    )
    for value, valid in ((state, _STATES), (kind, KINDS)):
        if value not in valid:
            raise ConfigError(
                explain(
                    f"--fail-on {text!r} is not STATE:KIND: {value!r} is unknown.",
                    valid=valid,
                    nearest=nearest(value, valid),
                    fix=f"write {':'.join(closest)}",
                )
            )
    return state, kind


def _mask(text: str) -> Any:
    """Read ``--mask``: a preset's name, a YAML file, or a mapping typed on the command line."""
    if text.lstrip().startswith("["):
        raise MaskError(explain(f"mask {text!r} is a list.", fix=f"write {{rules: {text.strip()}}}"))
    if not text.endswith((".yaml", ".yml")) and not text.lstrip().startswith("{"):
        return text
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    typed = text.lstrip().startswith("{")
    if not typed and not Path(text).is_file():
        raise MaskError(explain(f"mask file {text!r} does not exist.", fix="correct the path, or name a preset"))
    try:
        return OmegaConf.to_container(OmegaConf.create(text) if typed else OmegaConf.load(text), resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        raise MaskError(
            explain(
                f"mask {text!r} cannot be read as YAML.",
                found=" ".join(str(error).split()),
                fix="write {base: standard, rules: [{name: '*.head.weight', decay: 0.1}]}, or a file that holds this",
            )
        ) from error


def _model(target: str) -> nn.Module:
    """Import ``package.module:name`` from the working directory or the environment, and build the model."""
    from torch import nn

    path, _, name = target.partition(":")
    if not path or not name or path.startswith("."):
        raise ConfigError(
            explain(f"model {target!r} is not MODULE:NAME.", fix="write my_pkg.module:Model, as in an entry point")
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise ConfigError(
            explain(
                f"module {path!r} cannot be imported: {error}",
                found=f"working directory {Path.cwd()}",
                fix="run it where the package can be imported, or install the package",
            )
        ) from error
    made: Any = found
    for part in name.split("."):
        if not hasattr(made, part):
            close = nearest(part, dir(made))
            raise ConfigError(
                explain(f"{path!r} has no {part!r}.", nearest=close, fix=f"write {path}:{close or '<name of a model>'}")
            )
        made = getattr(made, part)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise ConfigError(
                explain(f"{target!r} is a {type(made).__name__}, no model.", fix="name a class, a function or a module")
            )
        try:
            made = made()
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # it was called, and failed inside
            raise ConfigError(
                explain(
                    f"{target!r} cannot be built without arguments: {error}",
                    fix="write a function without arguments that returns the model, and name that",
                )
            ) from error
    if not isinstance(made, nn.Module):
        raise ConfigError(
            explain(f"{target!r} built a {type(made).__name__}, no torch.nn.Module.", fix="return the model itself")
        )
    if callable(configure := getattr(made, "configure_model", None)):  # a LightningModule may build layers here
        configure()
    if next(made.parameters(), None) is None:
        raise ConfigError(
            explain(
                f"{target!r} has no parameters.",
                found=type(made).__name__,
                fix="name a function that returns the model with its layers built",
            )
        )
    return made


def _add_convert(commands: Any) -> None:
    units = ", ".join(_UNITS)
    parser = commands.add_parser(
        "convert",
        help="convert an amount of decay between units",
        description="Convert an amount of decay between units; exact at the peak learning rate.",
        epilog="Example: lightning-wd convert 0.1 --from decoupled --to independent --lr 1e-3",
    )
    parser.add_argument("value", type=float, help="the amount")
    parser.add_argument("--from", dest="from_", required=True, metavar="UNIT", help=units)
    parser.add_argument("--to", metavar="UNIT", help=f"{units}; without it the amount in all of them")
    parser.add_argument("--lr", type=float, required=True, help="peak learning rate")
    parser.add_argument("--momentum", type=float, default=0.0, help="SGD's momentum, for sgd_l2")
    parser.add_argument("--total-steps", type=int, help="optimizer steps of the run, for normalized")
    parser.add_argument("--steps-per-epoch", type=float, help="optimizer steps of an epoch, for timescale_epochs")
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    from lightning_wd.decay import convert

    known = {key: getattr(options, key) for key in ("from_", "lr", "momentum", "total_steps", "steps_per_epoch")}
    if options.to is not None:
        print(convert(options.value, to=options.to, **known))
        return 0
    for unit in _UNITS:
        needed = {"normalized": "total_steps", "timescale_epochs": "steps_per_epoch"}.get(unit)
        if needed and known[needed] is None:
            print(f"{unit:<16} needs --{needed.replace('_', '-')}")
        else:
            print(f"{unit:<16} {convert(options.value, to=unit, **known):.6g}")
    return 0


def _add_heatmap(commands: Any) -> None:
    parser = commands.add_parser(
        "heatmap",
        help="draw the error of a sweep over learning rate and weight decay",
        description="Write heatmap.png, heatmap.svg, heatmap.csv and separability.csv into the folder of a sweep.",
        epilog="Example: lightning-wd heatmap multirun/lr_wd_grid",
    )
    parser.add_argument("folder", metavar="DIR", help="the folder of a sweep, or one that holds several sweeps")
    parser.add_argument("--metric", help="a column of metrics.csv; test/acc unless the runs have none")
    parser.set_defaults(run=_heatmap)


def _heatmap(options: argparse.Namespace) -> int:
    from lightning_wd.heatmap import write_heatmap

    made, metric, unfinished = write_heatmap(options.folder, options.metric)
    for grid in made:
        i, j = grid.best
        s = grid.separability
        print(f"{grid.title}: best {grid.mean[i, j]:.4g} at lr {grid.lr[i]:g}, {grid.unit} {grid.amount[j]:g}")
        print(
            f"  separability {s.figure:.2f} [{s.interval[0]:.2f}, {s.interval[1]:.2f}] (95 %, {s.resampled} resampled)"
        )
        if s.at_edge:
            print(f"  {s.at_edge} of {s.rows} rows are best at an edge of the grid: widen it")
        missing = int((grid.errors != grid.errors).sum())
        if missing:
            print(f"  {missing} cells are missing")
    if unfinished:
        print(f"{unfinished} runs have no value of {metric} yet")
    print(f"written: {Path(options.folder) / 'heatmap'}.png, .svg, .csv")
    return 0


def _add_curves(commands: Any) -> None:
    parser = commands.add_parser(
        "curves",
        help="draw the metrics of several runs over each other",
        description="Draw one panel for each metric, one line for each run.",
        epilog="Example: lightning-wd curves multirun/*/*/* --out curves.png",
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", help="runs' folders, or folders that hold runs")
    parser.add_argument(
        "--metric", action="append", help="a column of metrics.csv; repeatable; all losses and accuracies"
    )
    parser.add_argument("--out", default="curves.png", help="the picture: .png, .svg or .pdf")
    parser.set_defaults(run=_curves)


def _curves(options: argparse.Namespace) -> int:
    from lightning_wd.overlay import overlay

    print(f"written: {overlay(options.folders, options.out, options.metric)}")
    return 0
