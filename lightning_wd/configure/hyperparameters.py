"""The keywords of optimizers as a config has them: values in the form of their defaults, and types for LightningCLI."""

from __future__ import annotations

import math
from typing import Any

from lightning_wd.errors import ConfigError, choice, flag, number, written
from lightning_wd.optimizers.by_name import OPTIMIZERS, hyperparameters_of

__all__ = ["check_hyperparameter", "hyperparameter_types"]

_BELOW_ONE = ("momentum", "alpha", "betas[0]", "betas[1]")
_TYPES: dict[type, Any] = {
    bool: bool | None,
    type(None): bool | None,
    int: float | None,
    float: float | None,
    str: str | None,
    tuple: tuple[float, ...] | None,
}


def check_hyperparameter(where: str, value: Any, default: Any, *, of_ours: bool = True) -> Any:
    """Return a keyword's value in the form of its default, or raise a ConfigError; ``where`` is how it was typed.

    What another's class takes where its default is None, or which numbers, it must say itself.
    """
    key = where.rpartition(".")[2]
    if isinstance(default, (tuple, list)):
        if not isinstance(value, (list, tuple)) or len(value) != len(default):
            raise ConfigError(
                f"{where} must be {len(default)} numbers but got {value!r}.", fix=f"write '{where}={list(default)}'"
            )
        pairs = enumerate(zip(value, default, strict=True))
        return [check_hyperparameter(f"{where}[{i}]", *pair, of_ours=of_ours) for i, pair in pairs]
    if where.endswith(".anchor_dtype") and of_ours:
        return choice(where, value, ("bfloat16",))
    if not of_ours and not isinstance(default, (bool, int, float, str)):
        return value
    if isinstance(default, bool) or (default is None and "[" not in key):
        return flag(where, value, optional=default is None)
    if value is None and default is None:
        return value
    if isinstance(default, str):
        if not isinstance(value, str):
            raise ConfigError(f"{where} must be text but got {value!r}.", fix=written(where, default))
        return value
    minimum = -math.inf if (default or 0) < 0 or not of_ours else 0.0
    below = 1.0 if of_ours and key in _BELOW_ONE else math.inf
    checked = number(where, value, minimum=minimum, below=below, infinite=default == math.inf)
    return int(checked) if isinstance(default, int) and checked.is_integer() else checked


def hyperparameter_types() -> dict[str, Any]:
    """Return every keyword of an optimizer with its type; Any where the optimizers differ."""
    types: dict[str, Any] = {}
    for named in OPTIMIZERS.values():
        for key, default in {**hyperparameters_of(named.l2), **hyperparameters_of(named.cls)}.items():
            kind = str | None if key == "anchor_dtype" else _TYPES[type(default)]
            types[key] = kind if types.get(key, kind) == kind else Any
    return types
