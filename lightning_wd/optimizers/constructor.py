"""What the constructor of an optimizer class takes, also where it takes any keyword."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

__all__ = ["keywords_of", "missing_keywords", "parameters_of", "takes_any"]


def parameters_of(cls: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of a constructor without ``self``."""
    # ours define __signature__; another class's __new__ may hide that of __init__
    signature: inspect.Signature | None = getattr(cls, "__signature__", None)
    if signature is not None:
        return dict(signature.parameters)
    return dict([*inspect.signature(cls.__init__).parameters.items()][1:])  # type: ignore[misc]


def takes_any(cls: type) -> bool:
    """Whether a constructor accepts any keyword."""
    return any(p.kind is p.VAR_KEYWORD for p in parameters_of(cls).values())


def keywords_of(cls: type) -> Mapping[str, inspect.Parameter]:
    """Return the keywords of a constructor besides the parameters to train.

    Where it takes any keyword, those of its bases count, which it may hand them to, and those that the class reads by
    name, as ``kwargs.get("use_gc")`` or ``group["use_gc"]``. Nothing reads the others: they are swallowed.

    >>> class Sign(Optimizer):
    ...     def __init__(self, params, lr=1e-3, **kwargs):
    ...         super().__init__(params, {"lr": lr, **kwargs})
    >>> list(keywords_of(Sign))
    ['lr']
    """
    own = dict([*parameters_of(cls).items()][1:])
    if takes_any(cls):
        for base in cls.__mro__[1:]:
            if issubclass(base, Optimizer) and base is not Optimizer and "__init__" in vars(base):
                own = {**dict([*parameters_of(base).items()][1:]), **own}
        own.pop("defaults", None)  # torch's own constructor has it second
        read = inspect.Parameter.KEYWORD_ONLY
        own = {**{key: inspect.Parameter(key, read, default=None) for key in _read_by_name(cls)}, **own}
    return {key: p for key, p in own.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def missing_keywords(cls: type, given: Mapping[str, Any]) -> list[str]:
    """Return the keywords that a constructor needs and is not given."""
    named = keywords_of(cls)
    needed = [key for key, parameter in parameters_of(cls).items() if parameter.default is parameter.empty]
    return [key for key in needed if key in named and key not in given]


@functools.cache
def _read_by_name(cls: type) -> tuple[str, ...]:
    """Return the names that the source of a class reads from its ``**kwargs``, defaults or groups, and never writes."""
    found: list[str] = []
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in ("torch", "builtins", "lightning_wd"):
            continue
        try:
            nodes = [*ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base))))]
        except (OSError, TypeError, SyntaxError):  # without source, what it reads is not known
            continue
        any_keyword = [node.kwarg.arg for node in nodes if isinstance(node, ast.arguments) and node.kwarg]
        loops = [node for node in nodes if isinstance(node, (ast.For, ast.comprehension))]
        groups = [ast.unparse(loop.target) for loop in loops if "param_groups" in ast.unparse(loop.iter)]
        read: set[str] = set()
        written: set[str] = set()
        for node in nodes:
            match node:
                case ast.Call(func=ast.Attribute(value=owner, attr="get" | "pop"), args=[ast.Constant(value=key), *_]):
                    into = read
                case ast.Compare(left=ast.Constant(value=key), ops=[ast.In() | ast.NotIn()], comparators=[owner]):
                    into = read
                case ast.Subscript(value=owner, slice=ast.Constant(value=key), ctx=context):
                    into = read if isinstance(context, ast.Load) else written
                case _:
                    continue
            of = ast.unparse(owner)
            if isinstance(key, str) and (of in (*any_keyword, *groups) or "group" in of or "defaults" in of):
                into.add(key)
        found += sorted(read - written - {"params"})
    return tuple(found)
