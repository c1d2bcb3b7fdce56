"""The command ``lightning-wd``.

Each subcommand imports what it needs when it runs: ``lightning-wd --help`` does not load torch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import textwrap
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning_wd
from lightning_wd.decay import UNITS
from lightning_wd.errors import ConfigError, MaskError, as_typed, choice, nearest

if TYPE_CHECKING:
    from torch import nn

    from lightning_wd.mask import DecayPlan, Difference, Row

__all__ = ["main"]

_STATES = ("decayed", "excluded", "frozen")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit status: 0; 1 if ``--fail-on`` found something; 2 after an error.

    >>> main(["convert", "0.1", "--from", "decoupled", "--to", "independent", "--lr", "1e-3"])
    0.0001
    0
    """
    options = _parser().parse_args(argv)
    try:
        with as_typed(options.typed):
            return int(options.run(options))
    except (ConfigError, MaskError) as error:
        print(f"lightning-wd {options.command}: {error}", file=sys.stderr)
    except Exception:  # from the user's own code: the traceback helps, and Python's status 1 would mean a finding
        traceback.print_exc()
    return 2


def _parser() -> argparse.ArgumentParser:
    about = "Weight decay: look at a plan, convert amounts, identify optimizers, draw sweeps and runs."
    plain = argparse.RawDescriptionHelpFormatter  # leaves a command on its line
    more = "lightning-wd COMMAND --help shows examples"
    parser = argparse.ArgumentParser(prog="lightning-wd", description=about, epilog=more)
    parser.add_argument("--version", action="version", version=f"lightning-wd {lightning_wd.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], int], about: str, *examples: str) -> Callable[..., Any]:
        name, wrapped = run.__name__.removeprefix("_"), textwrap.fill(about, 78)
        shown = "\n".join(["examples:", *(f"  lightning-wd {name} {example}" for example in examples)])
        made = commands.add_parser(name, help=about, description=wrapped, epilog=shown, formatter_class=plain)
        # How messages spell a setting: from_ as --from. They call a mask a mask.
        typed = {"mask": "mask", "mask.base": "--mask", "value": "the amount", "weight_decay": "the amount"}
        typed |= {
            "reference.global_batch": "--from-batch",
            "reference.steps": "--from-steps",
            "reference.lr_rule": "--lr-rule",
            "global_batch": "--batch",
        }
        made.set_defaults(run=run, typed=typed)

        def add(*names: str, **settings: Any) -> None:
            action = made.add_argument(*names, **settings)
            if action.option_strings:
                typed.setdefault(action.dest, action.option_strings[0])

        return add

    add = command(
        _audit,
        "show which parameters of a model decay, and why, and how another policy differs",
        "my_pkg.module:Model",
        "my_pkg.module:Model --against timm --fail-on decayed:norm",
    )
    add("model", metavar="MODULE:NAME", help="a class or function without arguments, or a module")
    add("--mask", default="standard", help="a preset, a YAML file, or a mapping '{base: ..., rules: [...]}'")
    add("--style", help="the decay style; 'corrected' leaves the output layer decoupled")
    add("--against", metavar="POLICY", help="also print the difference to timm, transformers or ndim")
    add("--json", action="store_true", help="print plain data instead of tables")
    batch = (
        "also show which tensors decay only as a learning rate, by the loss of training_step on one batch: the first "
        "of the model's train_dataloader, or what MODULE:NAME returns, a batch or a LightningDataModule; put it last"
    )
    add("--batch", nargs="?", const="", metavar="MODULE:NAME", help=batch)
    findings = (
        "exit with 1 if a parameter of this kind is decayed, excluded or frozen; repeatable. 'norm' includes the "
        "biases of norm layers; a tied tensor has the kind of each of its names"
    )
    add("--fail-on", action="append", default=[], metavar="STATE:KIND", help=findings)

    add = command(
        _convert,
        "convert an amount of decay between units, exact at the peak learning rate; with --batch and --steps, carry lr "
        "and the amount over to them first",
        "0.1 --from decoupled --to independent --lr 1e-3",
        "0.1 --from decoupled --lr 1e-3 --total-steps 10000",
    )
    add("value", type=float, help="the amount")
    add("--from", dest="from_", required=True, metavar="UNIT", help=", ".join(UNITS))
    add("--to", metavar="UNIT", help="one of the same, or angle; without it, the amount in every unit")
    add("--lr", type=float, required=True, help="peak learning rate")
    add("--momentum", type=float, help="SGD's momentum for sgd_l2, b1 of AdamW for angle")
    add("--total-steps", type=int, help="optimizer steps of the run, for normalized and timescale_runs")
    add("--steps-per-epoch", type=float, help="optimizer steps of an epoch, for timescale_epochs")
    add("--from-batch", type=int, help="rows of an optimizer step where lr and the amount were tuned")
    add("--from-steps", type=int, help="optimizer steps of the run where they were tuned")
    add("--batch", type=int, help="rows of an optimizer step here")
    add("--steps", type=int, help="optimizer steps of the run here")
    add("--family", metavar="FAMILY", help="adam: lr follows the square root of the batch; sgd: lr follows the batch")
    add("--lr-rule", metavar="RULE", help="sqrt, linear or none, in place of the family's")

    add = command(
        _identify,
        "step an optimizer class to find what its weight_decay means",
        "torch.optim.Adam",
        "torch.optim.NAdam decoupled_weight_decay=true",
    )
    add("optimizer", metavar="DOTTED.PATH", help="a torch.optim.Optimizer class")
    add("keywords", nargs="*", metavar="KEY=VALUE", help="keywords of its constructor, values as in YAML")

    add = command(
        _heatmap,
        "draw the error of a sweep over learning rate and weight decay: heatmap.png, .svg and .csv, separability.csv",
        "multirun/lr_wd_grid",
        "multirun/lr_wd_grid --metric val/loss",
    )
    add("folder", metavar="DIR", help="the folder of a sweep, or one that holds several sweeps")
    add("--metric", help="a column of metrics.csv; test/acc unless the runs have none")

    add = command(
        _curves,
        "draw the metrics of several runs over each other, one panel each",
        "outputs",
        "multirun/*/*/* --metric val/loss --out curves.png",
    )
    add("folders", metavar="DIR", nargs="+", help="runs' folders, or folders that hold runs")
    add("--metric", action="append", help="a column of metrics.csv; repeatable; all losses and accuracies")
    add("--out", default="curves.png", help="the picture: .png, .svg or .pdf")
    return parser


def _audit(options: argparse.Namespace) -> int:
    from lightning_wd.mask import plan_decay
    from lightning_wd.mask.peers import POLICIES, peer_plan

    conditions = {text: _read_condition(text) for text in options.fail_on}
    with redirect_stdout(sys.stderr):  # keep what the model's own code prints out of our output
        try:
            model = _build_model(options.model)
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
    with _reader_may_leave():
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


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Let ``| head`` close the pipe without changing the exit status."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:  # rich exits with status 1, which would mean a finding
        if not isinstance(error.__context__ or error, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _scale_invariance(model: nn.Module, source: str) -> dict[str, float]:
    """Return what ``scale_invariant`` finds by the loss of a training step; ``source`` names its data."""
    from lightning_wd.scale_invariance import training_shares

    data = _import_target(source, "--batch") if source else None
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


def _build_model(target: str) -> nn.Module:
    """Import ``package.module:name`` from the working directory or the environment, and build the model."""
    from torch import nn

    made = _import_target(target)
    problem, fix = f"{target!r} is not a model.", "name a class, function or module"
    if callable(made) and not isinstance(made, nn.Module):
        try:
            made = made()
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise  # the call itself was right, and failed inside
            raise ConfigError(
                f"{target!r} cannot be built without arguments: {error}",
                fix="write a function without arguments that returns the model, and name that",
            ) from error
        problem, fix = f"{target!r} built no torch.nn.Module.", "return the model itself"
    if isinstance(made, nn.Module):
        if callable(configure := getattr(made, "configure_model", None)):  # a LightningModule may build layers here
            configure()
        if next(made.parameters(), None) is not None:
            return made
        problem = f"{target!r} has no parameters."
        fix = "name a function that returns the model with its layers built"
    raise ConfigError(problem, found=type(made).__name__, fix=fix)


def _see_working_directory() -> None:
    """Let modules of the working directory be imported, as ``python -m`` does."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _import_target(target: str, what: str = "model") -> Any:
    path, _, name = target.partition(":")
    if not path or not name or path.startswith("."):
        raise ConfigError(
            f"{what} {target!r} is not MODULE:NAME.",
            fix=f"write {'my_pkg.module:Model' if what == 'model' else 'my_pkg.data:batch'}, as in an entry point",
        )
    _see_working_directory()
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"module {path!r} cannot be imported: {error}",
            found=f"working directory {Path.cwd()}",
            fix="run this where the package can be imported, or install the package",
        ) from error
    try:
        return attrgetter(name)(module)
    except AttributeError as error:
        close = nearest(error.name, dir(error.obj))
        fix = f"write {path}:{close or '<name of a model>'}"
        raise ConfigError(f"{path!r} has no {error.name!r}.", nearest=close, fix=fix) from error


# option -> the units that need it
_NEEDS = {
    "momentum": ("sgd_l2", "angle"),
    "total_steps": ("normalized", "timescale_runs"),
    "steps_per_epoch": ("timescale_epochs",),
}


_CARRY = ("from_batch", "from_steps", "batch", "steps", "family")  # all needed, lr_rule beside them
_STYLE_OF = {"decoupled": "decoupled", "independent": "independent", "sgd_l2": "l2"}  # others are taken as they stand


def _convert(options: argparse.Namespace) -> int:
    from lightning_wd.decay import convert

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


def _identify(options: argparse.Namespace) -> int:
    from lightning_wd.optimizers.dotted_path import import_optimizer
    from lightning_wd.optimizers.identify import identify

    keywords = _read_keywords(options.keywords)
    _see_working_directory()
    with redirect_stdout(sys.stderr):  # keep what a package prints when it is imported out of our output
        found = identify(import_optimizer(options.optimizer), **keywords)
    with _reader_may_leave():
        print(found)
    return 0


def _read_keywords(typed: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    read: dict[str, Any] = {}
    for text in typed:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"{text!r} is not KEY=VALUE.", fix="write for example momentum=0.9 or betas=[0.9,0.99]")
        try:
            made: Any = OmegaConf.to_container(OmegaConf.create(f"value: {value}"))
        except (YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(
                f"the value of {text!r} cannot be read as YAML.",
                found=" ".join(str(error).split()),
                fix=f"write {key}=<a number, true, false, text or [a, list]>",
            ) from error
        read[key] = tuple(made["value"]) if isinstance(made["value"], list) else made["value"]
    return read


def _heatmap(options: argparse.Namespace) -> int:
    from lightning_wd.runs.heatmap import write_heatmap

    made, metric, unfinished = write_heatmap(options.folder, options.metric)
    for grid in made:
        i, j = grid.best
        s = grid.separability
        print(f"{grid.title}: best {grid.mean[i, j]:.4g} at lr {grid.lr[i]:g}, {grid.unit} {grid.amount[j]:g}")
        print(f"  separability {s} (95 %, {s.resampled} resampled)")
        if s.at_edge:
            print(f"  {s.at_edge} of {s.rows} rows are best at an edge of the grid: widen it")
        if missing := int((grid.errors != grid.errors).sum()):
            print(f"  {missing} cells are missing")
    if unfinished:
        print(f"{unfinished} runs have no value of {metric} yet")
    print(f"written: {Path(options.folder) / 'heatmap'}.png, .svg, .csv")
    return 0


def _curves(options: argparse.Namespace) -> int:
    from lightning_wd.runs.curves import overlay

    print(f"written: {overlay(options.folders, options.out, options.metric)}")
    return 0
