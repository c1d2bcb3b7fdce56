"""The errors of the package, how their messages are built, and the four checks that every door calls.

A door is where a setting enters: the config, a constructor, the command line. There it is checked, once, by
:func:`number`, :func:`choice`, :func:`flag` or :func:`keys`; inside, it is trusted. A door that knows how its user
spells a setting says so with :func:`as_typed`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, TypeVar

__all__ = [
    "CheckpointMismatchError",
    "ConfigError",
    "ExplainedError",
    "MaskError",
    "as_typed",
    "checked_keywords",
    "choice",
    "explain",
    "flag",
    "keys",
    "listed",
    "nearest",
    "number",
    "spelled",
    "warn",
    "written",
]


_T = TypeVar("_T", bound=Callable[..., Any])
# Name in our messages -> as the user typed it.
_TYPED: ContextVar[Mapping[str, str]] = ContextVar("typed", default=MappingProxyType({}))


class ExplainedError(Exception):
    """An error whose message :func:`explain` builds from its parts.

    >>> print(ConfigError("lr is negative.", found="-0.1", fix="write lr=0.1"))
    lr is negative.
      found: -0.1
      fix: write lr=0.1
    """

    def __init__(self, problem: str, **parts: Any) -> None:
        super().__init__(explain(problem, **parts) if parts else problem)  # a pickle brings the whole message

    def __repr__(self) -> str:
        """Return name and message, line by line: what Hydra shows of an error inside ``instantiate``."""
        return f"{type(self).__name__}: {self}"


class ConfigError(ExplainedError, ValueError):
    """A setting that cannot be honoured: an unknown key, a value out of range, two amounts at once."""


class MaskError(ExplainedError, ValueError):
    """A mask that does not fit the model: a rule that matches nothing, a parameter that no rule places."""


class CheckpointMismatchError(ExplainedError, RuntimeError):
    """A saved state that does not fit: another style, another optimizer, other groups or members."""


def nearest(name: object, valid: Iterable[str]) -> str | None:
    """Return the valid name closest to ``name``, else the first that it begins with, or None when nothing is close.

    >>> nearest("weight_decy", ["lr", "weight_decay", "betas"])
    'weight_decay'
    >>> nearest("end_value", ["start", "end"])
    'end'
    >>> nearest("zzz", ["lr", "betas"]) is None
    True
    """
    names = list(valid)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return next(iter(close or (each for each in names if str(name).startswith(f"{each}_"))), None)


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
    lines = [problem, *(f"{part}: {text}" for part, text in parts.items() if text is not None)]
    return "\n  ".join(map(_spell, lines))


@contextmanager
def as_typed(names: Mapping[str, str]) -> Iterator[None]:
    """Within, messages spell the names of settings as the user typed them: name in our messages -> spelling.

    A name stands at the start of a line, or before ``.`` or ``=``. One that ends with a sign is replaced as it is.

    >>> with as_typed({"optimizer": "model.optimizer", "optimizer=": "optimizer@model.optimizer="}):
    ...     print(explain("optimizer.lr is negative.", fix="write optimizer.lr=0.1, or optimizer=sgdw"))
    model.optimizer.lr is negative.
      fix: write model.optimizer.lr=0.1, or optimizer@model.optimizer=sgdw
    """
    token = _TYPED.set({**_TYPED.get(), **names})
    try:
        yield
    finally:
        _TYPED.reset(token)


def spelled(name: str) -> str:
    """Return a name as messages spell it here: what ends in it can then be spelled, too."""
    return _TYPED.get().get(name, name)


def _spell(line: str) -> str:
    names = _TYPED.get()
    if not names:
        return line
    forms = [(re.escape(name), name[-1].isidentifier()) for name in sorted(names, key=len, reverse=True)]
    either = "|".join(rf"{name}(?=\.\S|=)|\A{name}(?= )" if word else name for name, word in forms)
    return re.sub(rf"(?<![\w.@/+-])(?:{either})", lambda match: names[match[0]], line)


def warn(problem: str, *, stacklevel: int | None = None, **parts: Any) -> None:
    """Warn with a message that :func:`explain` builds, at the caller outside of this package and torch.

    A ``stacklevel`` counts from the caller instead, as in ``warnings``.
    """
    if stacklevel is None:
        stacklevel, frame = 0, inspect.currentframe()
        # torch, since its wrapper of add_param_group stands between ours and the optimizer's constructor
        while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("lightning_wd", "torch"):
            stacklevel, frame = stacklevel + 1, frame.f_back
    warnings.warn(explain(problem, **parts), UserWarning, stacklevel=stacklevel + 1)


def listed(names: Iterable[object], limit: int = 5) -> str:
    """Return names as text, the first few and how many more there are.

    >>> listed("abcdefg")
    'a, b, c, d, e, and 2 more'
    """
    every = [str(name) for name in names]
    return ", ".join(every[:limit]) + (f", and {len(every) - limit} more" if len(every) > limit else "")


def written(name: str, value: object) -> str:
    """Return how to set a key; an element of a list has no override of Hydra's.

    >>> written("optimizer.lr", 0.1), written("optimizer.betas[1]", 0.99)
    ('write optimizer.lr=0.1', 'set optimizer.betas[1] to 0.99')
    """
    return f"set {name} to {value}" if "[" in name else f"write {name}={value}"


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
    bounds = [(">" if exclusive else ">=", minimum), ("<", below), ("<=", at_most)]
    bound = " and ".join(f"{sign} {limit:g}" for sign, limit in bounds if math.isfinite(limit))
    valid = f"a {'' if infinite or whole else 'finite '}{kind} {bound}".rstrip()
    fix = written(name, f"<{valid}>")
    if given < 0 and fits(-given):
        fix = written(name, f"{-given:g}") + ", without the sign"
    elif whole and math.isfinite(given) and fits(round(given)):
        fix = written(name, round(given))
    elif isinstance(value, str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", value):
        fix += "; in YAML read without OmegaConf 1e-4 is text: write 1.0e-4"
    problem = f"{name} must be a {kind} {bound}".rstrip()
    raise error(f"{problem} but got {value!r}.", found=type(value).__name__, valid=valid, fix=fix)


def choice(
    name: str,
    value: object,
    valid: Collection[str],
    *,
    also: str | None = None,
    aliases: Mapping[str, str] | None = None,
    error: type[ExplainedError] = ConfigError,
) -> str:
    """Return ``value`` if it is one of the valid names, or raise an error that lists them.

    ``also`` says in words what else is valid, which the caller has looked for. ``aliases`` says what to write for names
    of other libraries, which it has in lower case.

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
    fix = alias or (written(name, close) if close else f"write one of the valid names{f', or {also}' * bool(also)}")
    every = [*valid, also] if also else valid
    raise error(f"{name} {value!r} is unknown.", valid=every, nearest=close, fix=fix)


def flag(name: str, value: object, *, optional: bool = False) -> Any:
    """Return ``value`` if it is True or False (or None, where ``optional``), or raise a ConfigError.

    >>> flag("optimizer.fused", "yes")
    Traceback (most recent call last):
    ...
    lightning_wd.errors.ConfigError: optimizer.fused must be true or false but got 'yes'.
      fix: write optimizer.fused=true
    """
    if isinstance(value, bool) or (optional and value is None):
        return value
    valid = "true, false or null" if optional else "true or false"
    raise ConfigError(f"{name} must be {valid} but got {value!r}.", fix=written(name, "true"))


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
            raise error(f"{what} has no key {key!r}.", valid=valid or "none", nearest=close, fix=fix)


def checked_keywords(error: type[ExplainedError] = ConfigError) -> Callable[[_T], _T]:
    """Decorate a class or function: an unknown keyword is refused by :func:`keys`, not by a bare TypeError.

    >>> @checked_keywords()
    ... def convert(value, lr): ...
    >>> convert(0.1, lrr=0.1)
    Traceback (most recent call last):
    ...
    lightning_wd.errors.ConfigError: convert has no key 'lrr'.
      valid: value, lr
      nearest: 'lr'
      fix: write lr, or remove lrr
    """

    def decorate(made: Any) -> Any:
        is_class = isinstance(made, type)
        call: Callable[..., Any] = made.__init__ if is_class else made
        own = [] if call is object.__init__ else list(inspect.signature(call).parameters)[is_class:]

        @functools.wraps(call)
        def checked(*args: Any, **settings: Any) -> Any:
            keys(made.__name__, settings, own, error=error)
            return call(*args, **settings)

        if not is_class:
            return checked
        made.__init__ = checked
        return made

    return decorate
