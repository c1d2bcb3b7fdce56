"""Checked mappings that may live among hyperparameters: the base of the two configs, and how a mapping is read."""

from __future__ import annotations

import copy
import functools
import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import yaml

from lightning_wd._private import instantiated_key
from lightning_wd.errors import ConfigError, as_typed, keys

__all__ = ["CheckedMapping", "as_keywords", "checked_mapping", "from_omegaconf", "is_omegaconf", "show_keys"]


class CheckedMapping(dict[str, Any]):
    """A read-only mapping, checked when it is built, whose class leaves no trace in checkpoints or loggers.

    It pickles as plain containers, so a checkpoint that holds it loads under ``weights_only=True``; ``hparams.yaml``
    shows a plain mapping.
    """

    group: ClassVar[str]  # the Hydra group, and what messages call the config
    typed: Mapping[str, str] = {}  # how messages spell the group where the user has it, as `as_typed` takes it

    def __init__(self, *args: Any, **settings: Any) -> None:
        if (key := instantiated_key(type(self))) is not None:
            self.typed = _spelling(self.group, key)
        with as_typed(self.typed):
            if not args and not {"params", "optimizer"} & settings.keys():
                self._fill(**settings)
            elif len(args) == 1 and isinstance(args[0], Mapping):  # as dict does; Lightning rebuilds mappings so
                self._fill(**{**args[0], **settings})
            else:
                what = ", ".join(settings.keys() & {"params", "optimizer"}) or repr(args)[:80]
                self.refuse_call(f"a call with {what}")

    def _fill(self, **settings: Any) -> None:
        """Check the settings and keep them."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # OrderedDict is the one mapping class that torch's weights-only unpickler builds; it equals the dict.
        return OrderedDict, (), None, None, iter(self.items())

    def __deepcopy__(self, memo: dict[int, Any]) -> CheckedMapping:
        new = self.copy()
        dict.update(new, copy.deepcopy(dict(self), memo))
        return new

    def copy(self) -> CheckedMapping:
        """Return a shallow copy of the same class."""
        new = type(self).__new__(type(self))
        dict.update(new, self)
        vars(new).update(vars(self))
        return new

    def _read_only(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ConfigError(
            f"{type(self).__name__} is read-only: it was checked when it was built.",
            fix="build another one: {**config, 'lr': 0.1}",
        )

    __setitem__ = __delitem__ = __ior__ = _read_only
    update = setdefault = pop = popitem = clear = _read_only

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the plain dict (loggers call what is callable); refuse to be used as a factory."""
        if args or kwargs:
            self.refuse_call(f"a call with {', '.join(kwargs) or 'arguments'}")
        return dict(self)

    @classmethod
    def refuse_call(cls, found: str) -> NoReturn:
        """Raise the ConfigError for a config that is called as if it were the optimizer class."""
        raise ConfigError(
            f"{cls.__name__} is a description of what to build; it cannot be called.",
            found=found,
            fix="remove a left-over `_partial_: true` (on the command line ~model.optimizer._partial_), give the "
            "settings by keyword or as a mapping, and in configure_optimizers write "
            "`return wd.configure_optimizers(self, self.hparams.optimizer, self.hparams.lr_scheduler)`",
        )


def show_keys(cls: type[CheckedMapping], settings: Mapping[str, Any]) -> None:
    """Give a config's constructor a signature with every key, so that LightningCLI has an option for each.

    The keys are those of ``_fill`` and these settings, by their types; each is None unless it is given.
    """
    optional = inspect.Parameter.KEYWORD_ONLY
    own = inspect.signature(cls._fill, eval_str=True).parameters.values()
    shown = [p for p in own if p.kind is optional and p.name != "code"]
    shown += [inspect.Parameter(key, optional, default=None, annotation=kind) for key, kind in settings.items()]

    def __init__(self: Any, *args: Any, **settings: Any) -> None:  # noqa: N807
        CheckedMapping.__init__(self, *args, **settings)

    __init__.__signature__ = inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *shown])  # type: ignore[attr-defined]
    __init__.__annotations__ = {p.name: p.annotation for p in shown}
    cls.__init__ = __init__  # type: ignore[method-assign]
    cls.__final__ = True  # type: ignore[attr-defined]  # as typing.final from Python 3.11 on: no class_path is asked for


def _spelling(group: str, key: str) -> dict[str, str]:
    """Return how messages spell a Hydra group that is composed at ``key``, as in ``optimizer@model.optimizer=sgdw``."""
    if key == group:
        return {group: key}
    options = {f"{group}=": f"{group}@{key}=", f"/{group}:": f"/{group}@{key}:"}
    options |= {f"{group}/{part}=": f"{group}/{part}@{key}.{part}=" for part in ("decay", "mask")}
    return {group: key, **options}


for _dumper in (yaml.Dumper, yaml.SafeDumper):
    yaml.add_multi_representer(CheckedMapping, lambda dumper, config: dumper.represent_dict({**config}), Dumper=_dumper)


def is_omegaconf(value: Any) -> bool:
    """Whether a value is an OmegaConf container, told without importing OmegaConf."""
    return type(value).__module__.partition(".")[0] == "omegaconf"


def from_omegaconf(value: Any) -> Any:
    """Return an OmegaConf container as a dict or list, and anything else as it is."""
    if not is_omegaconf(value):
        return value
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True)


def as_keywords(cls: type[CheckedMapping], value: object, what: str) -> dict[str, Any]:
    """Return the keywords that a mapping, a DictConfig or a name holds; None has none.

    Of Hydra's keys only a ``_target_`` other than ``cls`` is kept. A partial is refused.
    """
    if value is None:
        return {}
    value = {"name": value} if isinstance(value, str) else from_omegaconf(value)
    if isinstance(value, functools.partial):
        made = value.func
        cls.refuse_call(f"a partial of {getattr(made, '__module__', '')}.{getattr(made, '__qualname__', '')}")
    if not isinstance(value, Mapping):
        given = repr(f"{value.__module__}.{value.__qualname__}") if isinstance(value, type) else "..."
        raise ConfigError(
            f"{what} must be a mapping, as {cls.__name__} is, but got {type(value).__name__}.",
            found=repr(value)[:200],
            fix=f"pass {cls.__name__}(name={given}) or the same keys as a dict",
        )
    keywords = {str(key): item for key, item in value.items() if key not in ("_convert_", "_recursive_")}
    partial = keywords.pop("_partial_", False)
    if keywords.get("_target_") == f"lightning_wd.{cls.__name__}":
        del keywords["_target_"]
    if partial and "_target_" not in keywords:
        cls.refuse_call("`_partial_: true`")
    return keywords


def checked_mapping(what: str, value: object, valid: tuple[str, ...], **names: Any) -> dict[str, Any]:
    """Return a nested mapping as a dict; refuse an unknown key as :func:`keys` does, which takes ``names``."""
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{what} must be a mapping but got {value!r}.", valid=valid, fix=f"write {what}.{valid[0]}=..."
        )
    keys(what, value, valid, typed=f"{what}.{{}}", **names)
    return dict(value)
