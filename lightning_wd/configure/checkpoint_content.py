"""What a Lightning checkpoint will hold beside the weights: plain data, or the user is told while configuring.

``torch.load`` refuses by default what is not plain, and then the run cannot be resumed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_wd._private import attached_trainer
from lightning_wd.configure.checked_mapping import CheckedMapping, from_omegaconf, is_omegaconf
from lightning_wd.errors import listed, warn
from lightning_wd.mask import Mask, Rule
from lightning_wd.mask.masks import plain_mask
from lightning_wd.mask.rules import plain_rule

__all__ = ["keep_checkpoints_plain", "plain"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.Size, torch.device)


def keep_checkpoints_plain(module: nn.Module, *given: Any) -> None:
    """See to it that the checkpoints of a module's run load by default, and warn where they cannot.

    OmegaConf containers, masks and rules are saved as plain data, wherever a checkpoint has them; the module keeps its
    own. Those ``given`` to :func:`lightning_wd.configure_optimizers` become plain among the hyperparameters themselves.
    """
    kept: Any = getattr(module, "hparams", None)
    for key, value in list(kept.items()) if isinstance(kept, dict) else []:
        if any(value is one for one in given):
            kept[key] = from_omegaconf(value)
    trainer = attached_trainer(module)
    if trainer is None:
        return
    if not isinstance(vars(module).get("on_save_checkpoint"), _PlainCheckpoint):
        module.on_save_checkpoint = _PlainCheckpoint(module)  # type: ignore[assignment]
    held = [("hparams", kept), ("datamodule.hparams", getattr(trainer.datamodule, "hparams", None))]
    found = [leaf for path, value in held if value for leaf in _not_plain(value, path)]
    configs = [path for path, value in found if is_omegaconf(value) and _has_keys(value)]
    refused = [(path, value) for path, value in found if not is_omegaconf(value)]
    if configs:
        warn(
            "checkpoints of this run hold plain dicts in place of OmegaConf containers, which torch.load refuses.",
            found=listed(configs),
            fix="where load_from_checkpoint builds the module again, read the argument with OmegaConf.create(...), "
            "which takes both; or pass OmegaConf.to_container(cfg, resolve=True) to the module",
        )
    if refused:
        warn(
            "checkpoints of this run cannot be resumed by default: torch.load(weights_only=True) refuses what the "
            "hyperparameters hold.",
            found=listed(f"{path} ({type(value).__name__})" for path, value in refused),
            fix="write self.save_hyperparameters(ignore=[...]) with these names, or pass weights_only=False to "
            "trainer.fit where you trust the checkpoint",
        )


class _PlainCheckpoint:
    """Stands in for a module's ``on_save_checkpoint``, the last that Lightning asks before it writes."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.earlier = module, vars(module).get("on_save_checkpoint")

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        if self.earlier is not None:
            self.earlier(checkpoint)
        else:
            own: Any = type(self.module)
            own.on_save_checkpoint(self.module, checkpoint)
        for key, value in list(checkpoint.items()):
            if isinstance(value, type) and value.__module__.startswith("omegaconf"):  # the type of the hyperparameters
                del checkpoint[key]
            else:
                checkpoint[key] = plain(value)


def plain(value: Any) -> Any:
    """Return a value with the OmegaConf containers, masks and rules in it as plain data; itself where it has none.

    >>> from omegaconf import OmegaConf
    >>> plain({"cfg": OmegaConf.create({"a": 1, "b": "${a}"}), "mask": Mask([Rule(name="*.x", wd_mult=0)])})
    {'cfg': {'a': 1, 'b': '${a}'}, 'mask': {'base': 'standard', 'rules': [{'name': '*.x', 'wd_mult': 0.0}]}}
    """
    if is_omegaconf(value):
        return value if _is_trusted(type(value)) else _container(value)
    if isinstance(value, (Mask, Rule)) and not _has_code(value):
        return plain_mask(value) if isinstance(value, Mask) else plain_rule(value)
    if isinstance(value, dict):
        new = {key: plain(item) for key, item in value.items()}
        same = not _is_attribute_dict(value) and all(new[key] is item for key, item in value.items())
        return value if same else new
    if type(value) in (list, tuple):
        items = [plain(item) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else type(value)(items)
    return value


def _container(config: Any) -> Any:
    """Return an OmegaConf container as it was written; resolved where it refers to what lies outside of it.

    What is written stays true under ``OmegaConf.create``, and a secret from the environment stays out of the file.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    written = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    try:
        OmegaConf.to_container(OmegaConf.create(written), resolve=True)
    except OmegaConfBaseException:
        try:
            return OmegaConf.to_container(config, resolve=True, enum_to_str=True)
        except OmegaConfBaseException:  # it refers to nothing: this cannot be the place to fail
            pass
    return written


def _not_plain(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield, with its path, each part of the hyperparameters that is neither plain nor made so in a checkpoint."""
    if is_omegaconf(value):
        if _is_trusted(type(value)):
            return
        yield path, value
        yield from _not_plain(_container(value), path)
    elif isinstance(value, (Mask, Rule)):
        if _has_code(value):
            yield path, value
    elif type(value) in (dict, OrderedDict) or isinstance(value, CheckedMapping) or _is_attribute_dict(value):
        for key, item in value.items():
            yield from _not_plain(item, f"{path}.{key}")
    elif type(value) in (list, tuple, set):
        for index, item in enumerate(value):
            yield from _not_plain(item, f"{path}[{index}]")
    elif not (type(value) in _PLAIN or isinstance(value, Tensor) or _is_trusted(type(value))):
        yield path, value


def _is_attribute_dict(value: Any) -> bool:
    """Whether a value is the dict with attributes of one of Lightning's two packages."""
    return isinstance(value, dict) and type(value).__name__ == "AttributeDict"


def _is_trusted(cls: type) -> bool:
    """Whether the user has told torch to load this class."""
    named = (each[0] if isinstance(each, tuple) else each for each in torch.serialization.get_safe_globals())
    return any(cls is each for each in named)


def _has_code(value: Mask | Rule) -> bool:
    rules = value.rules if isinstance(value, Mask) else (value,)
    return any(rule.predicate is not None for rule in rules)


def _has_keys(value: Any) -> bool:
    """Whether a container has keys, which its user may read as attributes; a list of values reads as before."""
    items = _container(value) if is_omegaconf(value) else value
    return isinstance(items, dict) or (isinstance(items, list) and any(map(_has_keys, items)))
