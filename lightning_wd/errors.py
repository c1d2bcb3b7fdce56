"""The errors of the package, how their messages are built, and the four checks that every door calls.

A door is where a setting enters: the config, a constructor, the command line. There it is checked, once, by
:func:`number`, :func:`choice`, :func:`flag` or :func:`keys`; inside, it is trusted.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

__all__ = [
    "CheckpointMismatchError",
    "ConfigError",
    "ExplainedError",
    "MaskError",
    "choice",
    "explain",
    "flag",
    "keys",
    "listed",
    "nearest",
    "number",
    "warn",
]


class ExplainedError(Exception):
    """An error whose message :func:`explain` builds from its parts.

    >>> print(ConfigError("lr is negative.", found="-0.1", fix="write lr=0.1"))
    lr is negative.
      found: -0.1
      fix: write lr=0.1
    """

    def __init__(self, problem: str, **parts: Any) -> None:
        super().__init__(explain(problem, **parts) if parts else problem)  # a pickle brings the whole message


class ConfigError(ExplainedError, ValueError):
    """A setting that cannot be honoured: an unknown key, a value out of range, two amounts at once."""


class MaskError(ExplainedError, ValueError):
    """A mask that does not fit the model: a rule that matches nothing, a parameter that no rule places."""


class CheckpointMismatchError(ExplainedError, RuntimeError):
    """A saved state that does not fit: another style, another optimizer, other groups or members."""


def nearest(name: object, valid: Iterable[str]) -> str | None:
    """Return the valid name closest to ``name``, or None when nothing is close.

    >>> nearest("weight_decy", ["lr", "weight_decay", "betas"])
    'weight_decay'
    >>> nearest("zzz", ["lr", "betas"]) is None
    True
    """
    found = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.6)
    return found[0] if found else None


def explain(
    problem: str,
    *,
    found: str | None = None,
    valid: Iterable[str] | str | None = None,
    nearest: str | None = None,
    fix: str,
) -> str:
    """Build a message: the problem in one sentence, then an indented line for each part that is known.

    ``nearest`` is put in quotes unless it begins with one.

    >>> print(explain("name 'adamx' is unknown.", valid=["adamw", "sgdw"], nearest="adamw", fix="write adamw"))
    name 'adamx' is unknown.
      valid: adamw, sgdw
      nearest: 'adamw'
      fix: write adamw
    """
    names = valid if valid is None or isinstance(valid, str) else ", ".join(valid)
    quoted = nearest if nearest is None or nearest.startswith("'") else f"'{nearest}'"
    parts = {"found": found, "valid": names, "nearest": quoted, "fix": fix}
    return "\n  ".join([problem, *(f"{part}: {text}" for part, text in parts.items() if text is not None)])


def warn(problem: str, *, stacklevel: int = 2, **parts: Any) -> None:
    """Warn with a message that :func:`explain` builds; ``stacklevel`` counts from the caller, as in ``warnings``."""
    warnings.warn(explain(problem, **parts), UserWarning, stacklevel=stacklevel + 1)


def listed(names: Iterable[object], limit: int = 5) -> str:
    """Return names as text, the first few and how many more there are.

    >>> listed("abcdefg")
    'a, b, c, d, e, and 2 more'
    """
    every = [str(name) for name in names]
    return ", ".join(every[:limit]) + (f", and {len(every) - limit} more" if len(every) > limit else "")


def number(
    name: str,
    value: object,
    *,
    minimum: float = 0.0,
    exclusive: bool = False,
    below: float = math.inf,
    at_most: float = math.inf,
    infinite: bool = False,
    whole: bool = False,
    error: type[ExplainedError] = ConfigError,
) -> float:
    """Return ``value`` as a float (an int where ``whole``), or raise an error that says what is valid.

    A bool, a string, NaN and (unless ``infinite``) inf are refused; ``exclusive`` refuses the minimum itself. ``name``
    is how the user knows the value.

    >>> number("optimizer.lr", 1e-3)
    0.001
    >>> number("optimizer.momentum", 1.5, below=1)
    Traceback (most recent call last):
    ...
    lightning_wd.errors.ConfigError: optimizer.momentum must be a number >= 0 and < 1 but got 1.5.
      found: float
      valid: a finite number >= 0 and < 1
      fix: write optimizer.momentum=<a finite number >= 0 and < 1>
    """

    def fits(given: float) -> bool:
        above = given > minimum if exclusive else given >= minimum
        finite = infinite or math.isfinite(given)
        return above and finite and given <= at_most and (given < below or below == math.inf)

    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    given = float(value) if real else math.nan  # type: ignore[arg-type]
    if fits(given) and (not whole or given.is_integer()):
        return int(given) if whole else given
    kind = "whole number" if whole else "number"
    bound = f"{'>' if exclusive else '>='} {minimum:g}" if minimum > -math.inf else ""
    bound += f" and < {below:g}" * (below < math.inf) + f" and <= {at_most:g}" * (at_most < math.inf)
    valid = f"a {'' if infinite or whole else 'finite '}{kind} {bound}".rstrip()
    fix = f"write {name}=<{valid}>"
    if given < 0 and fits(-given):
        fix = f"write {name}={-given:g}, without the sign"
    elif whole and math.isfinite(given) and fits(round(given)):
        fix = f"write {name}={round(given)}"
    elif isinstance(value, str):
        fix += "; in YAML read without OmegaConf 1e-4 is text: write 1.0e-4"
    problem = f"{name} must be a {kind} {bound}".rstrip()
    raise error(f"{problem} but got {value!r}.", found=type(value).__name__, valid=valid, fix=fix)


def choice(
    name: str,
    value: object,
    valid: Collection[str],
    *,
    aliases: Mapping[str, str] | None = None,
    error: type[ExplainedError] = ConfigError,
) -> str:
    """Return ``value`` if it is one of the valid names, or raise an error that lists them.

    ``aliases`` says what to write for names of other libraries, which it has in lower case.

    >>> choice("optimizer.on_resume", "cofnig", ["checkpoint", "config", "error"])
    Traceback (most recent call last):
    ...
    lightning_wd.errors.ConfigError: optimizer.on_resume 'cofnig' is unknown.
      valid: checkpoint, config, error
      nearest: 'config'
      fix: write optimizer.on_resume=config
    """
    if isinstance(value, str) and value in valid:
        return value
    alias = (aliases or {}).get(str(value).lower())
    close = None if alias else nearest(str(value).lower(), valid)
    fix = alias or (f"write {name}={close}" if close else "write one of the valid names")
    raise error(f"{name} {value!r} is unknown.", valid=valid, nearest=close, fix=fix)


def flag(name: str, value: object, *, optional: bool = False, error: type[ExplainedError] = ConfigError) -> Any:
    """Return ``value`` if it is True or False (or None, where ``optional``), or raise an error.

    >>> flag("optimizer.fused", "yes")
    Traceback (most recent call last):
    ...
    lightning_wd.errors.ConfigError: optimizer.fused must be true or false but got 'yes'.
      fix: write optimizer.fused=true
    """
    if isinstance(value, bool) or (optional and value is None):
        return value
    valid = "true, false or null" if optional else "true or false"
    raise error(f"{name} must be {valid} but got {value!r}.", fix=f"write {name}=true")


def keys(
    what: str,
    mapping: Iterable[Any],
    valid: Collection[str],
    *,
    typed: str = "{}",
    renamed: Mapping[str, str] | None = None,
    aliases: Mapping[str, str] | None = None,
    error: type[ExplainedError] = ConfigError,
) -> None:
    """Raise an error for the first key that is not valid; ``what`` says whose keys they are.

    ``typed`` is how the user types a key, with ``{}`` for its name. ``renamed`` gives keys of other versions and
    libraries their name here, and ``aliases`` says what to write for those that are no key here.

    >>> keys("optimizer.decay", ["stile"], ["style", "cautious"], typed="optimizer.decay.{}")
    Traceback (most recent call last):
    ...
    lightning_wd.errors.ConfigError: optimizer.decay has no key 'stile'.
      valid: style, cautious
      nearest: 'style'
      fix: write optimizer.decay.style, or remove optimizer.decay.stile
    """
    for key in mapping:
        if key not in valid:
            alias, wrong = (aliases or {}).get(str(key)), typed.format(key)
            close = None if alias else (renamed or {}).get(str(key)) or nearest(key, valid)
            fix = alias or (f"write {typed.format(close)}, or remove {wrong}" if close else f"remove {wrong}")
            raise error(f"{what} has no key {key!r}.", valid=valid, nearest=close, fix=fix)
