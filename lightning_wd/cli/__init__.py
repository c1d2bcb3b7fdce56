"""The command ``lightning-wd``.

Each subcommand imports what it needs when it runs: ``lightning-wd --help`` does not load torch.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import lightning_wd
from lightning_wd.cli import audit, convert, draw, identify_class
from lightning_wd.conversions import UNITS
from lightning_wd.errors import ConfigError, MaskError, as_typed
from lightning_wd.styles import STYLES

__all__ = ["main"]


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

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str, *examples: str) -> Callable[..., Any]:
        wrapped = textwrap.fill(about, 78)
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
        "audit",
        audit.run,
        "show which parameters of a model decay, and why, and how another policy differs",
        "my_pkg.module:Model",
        "my_pkg.module:Model --against timm --fail-on decayed:norm",
    )
    add("model", metavar="MODULE:NAME", help="a class or function without arguments, or a module")
    add("--mask", default="standard", help="a preset, a YAML file, or a mapping '{base: ..., rules: [...]}'")
    add("--style", help=f"one of {', '.join(STYLES)}; 'corrected' leaves the output layer decoupled")
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
        "convert",
        convert.run,
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
        "identify",
        identify_class.run,
        "step an optimizer class to find what its weight_decay means",
        "torch.optim.Adam",
        "torch.optim.NAdam decoupled_weight_decay=true",
    )
    add("optimizer", metavar="DOTTED.PATH", help="a torch.optim.Optimizer class")
    add("keywords", nargs="*", metavar="KEY=VALUE", help="keywords of its constructor, values as in YAML")

    add = command(
        "heatmap",
        draw.heatmap,
        "draw the error of a sweep over learning rate and weight decay: heatmap.png, .svg and .csv, separability.csv",
        "multirun/lr_wd_grid",
        "multirun/lr_wd_grid --metric val/loss",
    )
    add("folder", metavar="DIR", help="the folder of a sweep, or one that holds several sweeps")
    add("--metric", help="a column of metrics.csv; test/acc unless the runs have none")

    add = command(
        "curves",
        draw.curves,
        "draw the metrics of several runs over each other, one panel each",
        "outputs",
        "multirun/*/*/* --metric val/loss --out curves.png",
    )
    add("folders", metavar="DIR", nargs="+", help="runs' folders, or folders that hold runs")
    add("--metric", action="append", help="a column of metrics.csv; repeatable; all losses and accuracies")
    add("--out", default="curves.png", help="the picture: .png, .svg or .pdf")
    return parser
