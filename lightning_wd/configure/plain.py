"""Checked mappings that live in hyperparameters: the base of the two configs, and how a mapping is read."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import yaml

from lightning_wd.errors import ConfigError, explain, nearest

__all__ = ["PlainConfig", "as_keywords", "plain_mapping", "unknown_name"]


class PlainConfig(dict[str, Any]):
    """A checked mapping that leaves no trace of its class in checkpoints, ``hparams.yaml`` or loggers.

    It pickles as plain containers, so a checkpoint that holds it loads under ``weights_only=True``.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # OrderedDict is the one mapping class that torch's weights-only unpickler builds; it equals the dict.
        return OrderedDict, (), None, None, iter(self.items())

    def __deepcopy__(self, memo: dict[int, Any]) -> PlainConfig:
        return self._unchecked(copy.deepcopy(dict(self), memo))

    def copy(self) -> PlainConfig:
        """Return a shallow copy of the same class."""
        return self._unchecked(self)

    @classmethod
    def _unchecked(cls, values: Mapping[str, Any]) -> PlainConfig:
        new = cls.__new__(cls)
        new.update(values)
        return new

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the plain dict (loggers call what is callable); refuse to be used as a factory."""
        if args or kwargs:
            self.refuse_call(f"a call with {', '.join(kwargs) or 'arguments'}")
        return dict(self)

    @classmethod
    def read(cls, args: tuple[Any, ...], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor's keywords; a mapping may come first, as in ``dict(mapping, key=value)``.

        Lightning rebuilds mappings that way.
        """
        if not args and not {"params", "optimizer"} & settings.keys():
            return dict(settings)
        if len(args) == 1 and isinstance(args[0], Mapping):
            return {**args[0], **settings}
        return cls.refuse_call(f"a call with {', '.join(settings.keys() & {'params', 'optimizer'}) or repr(args)[:80]}")

    @classmethod
    def refuse_call(cls, found: str) -> NoReturn:
        """Raise the ConfigError for a config that is used as the class or the partial it stands for."""
        raise ConfigError(
            explain(
                f"{cls.__name__} says what to build and builds nothing itself.",
                found=found,
                fix="in configure_optimizers write "
                "`return wd.configure_optimizers(self, self.hparams.optimizer, self.hparams.lr_scheduler)`, "
                "give the settings by keyword or as a mapping, and remove a left-over `_partial_: true`",
            )
        )


def _represent_plain(dumper: Any, config: PlainConfig) -> Any:
    return dumper.represent_dict(dict(config))


for _dumper in (yaml.Dumper, yaml.SafeDumper):
    yaml.add_multi_representer(PlainConfig, _represent_plain, Dumper=_dumper)


def as_keywords(cls: type[PlainConfig], value: object, what: str) -> dict[str, Any]:
    """Return the keywords that a mapping, a DictConfig or a name holds; None has none.

    Raises:
        ConfigError: a ``functools.partial`` or a ``_partial_: true``, or what is no mapping.
    """
    own_target = f"lightning_wd.{cls.__name__}"
    if value is None:
        return {}
    if type(value).__module__.partition(".")[0] == "omegaconf":
        from omegaconf import OmegaConf

        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, functools.partial):
        cls.refuse_call(
            f"a partial of {getattr(value.func, '__module__', '')}.{getattr(value.func, '__qualname__', '')}"
        )
    if isinstance(value, Mapping) and value.get("_partial_") and value.get("_target_", own_target) == own_target:
        cls.refuse_call("`_partial_: true`")
    if not isinstance(value, Mapping):
        raise ConfigError(
            explain(
                f"{what} must be a {cls.__name__} or a mapping but got {type(value).__name__}.",
                found=repr(value)[:200],
                fix=f"pass {cls.__name__}(name=...) or the same keys as a dict",
            )
        )
    return {str(key): item for key, item in value.items() if key not in ("_convert_", "_recursive_", "_partial_")}


def unknown_name(what: str, value: object, valid: Iterable[str]) -> str:
    """Return the error text for a name that is not among the valid ones."""
    valid = list(valid)
    close = nearest(value, valid)
    return explain(f"{what} {value!r} is unknown.", valid=valid, nearest=close, fix=f"write {what}={close or valid[0]}")


def plain_mapping(what: str, value: object, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return a mapping as a dict, or raise a ConfigError that names the key that is none of its own."""
    if not isinstance(value, Mapping):
        raise ConfigError(
            explain(f"{what} must be a mapping but got {value!r}.", valid=keys, fix=f"write {what}.{keys[0]}=...")
        )
    for key in value:
        if key not in keys:
            close = nearest(key, keys)
            raise ConfigError(
                explain(
                    f"{what}.{key} is not a setting.",
                    valid=keys,
                    nearest=close,
                    fix=f"write {what}.{close or keys[0]}=..., or remove it",
                )
            )
    return dict(value)
