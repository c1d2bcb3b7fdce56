"""An optimizer class by its dotted path."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from importlib.metadata import packages_distributions
from types import ModuleType
from typing import Any

from torch.optim import Optimizer

from lightning_wd.errors import ConfigError, nearest

__all__ = ["import_optimizer"]

_TYPO = 0.8  # what lies in a package is not looked up: only a slip of the pen makes it the one that was meant


def import_optimizer(path: str) -> type[Optimizer]:
    """Import ``package.module.Class``.

    Raises:
        ConfigError: nothing there, or no optimizer class; with the nearest path that exists.

    >>> import_optimizer("torch.optim.Adam").__name__
    'Adam'
    >>> import_optimizer("torch.optim.Adamm")
    Traceback (most recent call last):
    ...
    lightning_wd.errors.ConfigError: 'torch.optim.Adamm' does not exist: torch.optim has no 'Adamm'.
      nearest: 'torch.optim.Adam'
      fix: write torch.optim.Adam
    """
    names = path.split(".")
    if len(names) < 2 or not all(name.isidentifier() for name in names):
        raise ConfigError(
            f"{path!r} is not the dotted path of a class.", fix="write package.module.Class, as in torch.optim.Adam"
        )
    found: Any = _import(names[0], path)
    for i, name in enumerate(names[1:], 1):
        here = ".".join(names[:i])
        if hasattr(found, name):
            found = getattr(found, name)
        elif isinstance(found, ModuleType) and name in _submodules(found):
            found = _import(f"{here}.{name}", path)
        else:
            close = nearest(name, [*vars(found), *_submodules(found)])
            written = ".".join([here, close, *names[i + 1 :]]) if close else None
            raise ConfigError(
                f"{path!r} does not exist: {here} has no {name!r}.",
                nearest=written,
                fix=f"write {written}" if written else f"correct {name!r}: the class is not in {here}",
            )
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        classes = [
            key
            for key, value in (vars(found) if isinstance(found, ModuleType) else {}).items()
            if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
        ]
        raise ConfigError(
            f"{path!r} is no torch.optim.Optimizer class.",
            found=type(found).__name__,
            valid=[f"{path}.{key}" for key in sorted(classes)] or None,
            fix="name a subclass of torch.optim.Optimizer, as in torch.optim.Adam",
        )
    return found


def _import(module: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a module may fail in any way when it runs
        absent = isinstance(error, ModuleNotFoundError) and error.name == module
        close = get_close_matches(module, packages_distributions(), n=1, cutoff=_TYPO) if absent else []
        written = close[0] + path.removeprefix(module) if close else None
        fix = "run this where it can be imported, or install the package" if absent else f"mend `import {module}` first"
        raise ConfigError(
            f"{path!r} cannot be imported: {error}",
            found=f"{type(error).__name__} from `import {module}`",
            nearest=written,
            fix=f"write {written}" if written else fix,
        ) from error


def _submodules(found: Any) -> list[str]:
    return [module.name for module in pkgutil.iter_modules(getattr(found, "__path__", []))]
