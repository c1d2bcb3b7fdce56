"""Import what the user names as ``MODULE:NAME``, and build the model."""

from __future__ import annotations

import importlib
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_wd.cli.shell import see_working_directory
from lightning_wd.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_model", "import_target"]


def build_model(target: str) -> nn.Module:
    """Import ``package.module:name`` from the working directory or the environment, and build the model."""
    from torch import nn

    made = import_target(target)
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


def import_target(target: str, what: str = "model") -> Any:
    """Import ``MODULE:NAME``; ``what`` it is stands in the errors."""
    path, _, name = target.partition(":")
    if not path or not name or path.startswith("."):
        raise ConfigError(
            f"{what} {target!r} is not MODULE:NAME.",
            fix=f"write {'my_pkg.module:Model' if what == 'model' else 'my_pkg.data:batch'}, as in an entry point",
        )
    see_working_directory()
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
