"""``lightning-wd identify``: what the ``weight_decay`` of an optimizer class means."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from lightning_wd.cli.shell import reader_may_leave, see_working_directory
from lightning_wd.errors import ConfigError

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Print what the weight_decay of a class means."""
    from lightning_wd.optimizers.dotted_path import import_optimizer
    from lightning_wd.optimizers.identify import identify

    keywords = _read_keywords(options.keywords)
    see_working_directory()
    with redirect_stdout(sys.stderr):  # keep what a package prints when it is imported out of our output
        found = identify(import_optimizer(options.optimizer), **keywords)
    with reader_may_leave():
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
        if key in read:
            raise ConfigError(f"{key!r} is given twice.", fix=f"write {key}= once")
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
