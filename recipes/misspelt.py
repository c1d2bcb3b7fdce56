"""What Hydra refuses on the command line, said with the nearest group, option or key, or with the form of an override,
after Hydra's own words.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from lightning_wd.errors import explain, listed, nearest
from lightning_wd.styles import RENAMED

__all__ = ["misspelt", "say_nearest"]

_CONF = Path(__file__).resolve().parent / "conf"
_QUOTE = (
    "close each bracket and quote, and put single quotes around it all: 'optimizer.mask.rules=[{name: \"*.bias\"}]'"
)


def say_nearest(main: Callable[..., Any]) -> Callable[..., Any]:
    """Let a program of Hydra that ends with an error say which override is misspelt, and what was meant.

    Args:
        main: what ``hydra.main`` makes.
    """

    @functools.wraps(main)
    def wrapped(*args: Any) -> Any:
        try:
            return main(*args)
        except SystemExit as stop:
            words = misspelt(sys.argv[1:]) if stop.code in (1, 2) else None
            if words is not None:
                print(f"\n{words}", file=sys.stderr)
            raise

    return wrapped


def misspelt(arguments: Sequence[str]) -> str | None:
    """Return what is wrong with the first override that is unreadable, or names no group, option or key, else None.

    Args:
        arguments: the command line.

    >>> print(misspelt(["data.batchsize=8"]))
    data.batchsize is not in the config.
      valid: batch_size, classes, label_noise, num_workers, seed
      nearest: 'data.batch_size'
      fix: write data.batch_size=8
    """
    with initialize_config_dir(str(_CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        parser, default = OverridesParser.create(loader), compose("train", return_hydra_config=True)
        groups = {str(key).partition("@")[0] for key in default.hydra.runtime.choices}
        unreadable = _unreadable(arguments, {*groups, *map(str, default)}, parser)
        if unreadable is not None:
            return unreadable
        overrides = parser.parse_overrides([typed for typed in arguments if _is_override(typed)])
        chosen = [each for each in overrides if each.get_key_element().lstrip("+~").partition("@")[0] in groups]
        for each in chosen:
            group = each.key_or_group
            options = loader.get_group_options(group, config_name="train", overrides=[])
            for option in _values(each):
                if option not in (*options, "null"):
                    close, (key, _, typed) = nearest(option, options), str(each.input_line).partition("=")
                    right = re.sub(rf"(?<!\w){re.escape(option)}(?!\w)", close or "<one of them>", typed)
                    fixed = f"{key}={right}"
                    return _words(f"{group} has no option {option!r}", options, close, fixed)
        if any(each.is_sweep_override() for each in chosen):
            return None  # the keys differ from job to job
        try:
            config = compose("train", [str(each.input_line) for each in chosen])
        except HydraException:
            return None
    for each in overrides:
        key = each.key_or_group
        if each in chosen or each.is_add() or each.is_force_add() or key.startswith("hydra."):
            continue
        *above, last = key.split(".")
        node = OmegaConf.select(config, ".".join(above)) if above else config
        if OmegaConf.is_dict(node) and last in node:
            if OmegaConf.is_list(node[last]) and isinstance(each.value(), dict):
                return explain(f"{key} is a list.", fix=f"write '{key}=[{each.get_value_element_as_str()}]'")
            continue
        every = [*_dotted(OmegaConf.to_container(config, resolve=False)), *groups]
        if OmegaConf.is_dict(node):
            siblings = [str(name) for name in node if not str(name).startswith("_")]
            close = nearest(RENAMED.get(last, last), siblings)
            meant = ".".join([*above, close]) if close else None if above else _ending(RENAMED.get(last, last), every)
        else:
            siblings, meant = list(map(str, config)), nearest(key, every)
        fixed = f"{meant}={each.get_value_element_as_str()}" if meant else ""
        return _words(f"{key} is not in the config", siblings, meant, fixed)
    return None


def _is_override(typed: str) -> bool:
    return typed[:1] == "~" or (typed[:1] != "-" and "=" in typed[1:])


def _unreadable(arguments: Sequence[str], names: Collection[str], parser: OverridesParser) -> str | None:
    """Return what is wrong with the first argument that is no override; overrides begin with one of ``names``."""
    for before, typed in zip(["", *arguments], arguments, strict=False):
        bare = typed.lstrip("-")
        if bare != typed and re.split(r"[.=]", bare)[0] in names:
            fix = f"write {bare if '=' in bare else f'{bare}=<value>'}, without dashes"
            return explain(f"{typed} is no option.", fix=fix)
        if typed[:1] == "-" or (before[:1] == "-" and "=" not in typed):  # an option of Hydra's, or its value
            continue
        if not _is_override(typed):
            return explain(f"{typed} is not key=value.", fix=f"write {typed}=<value>, without spaces around =")
        try:
            parser.parse_overrides([typed])
        except HydraException:
            return explain(f"{typed} cannot be read as key=value.", fix=_QUOTE)
    return None


def _values(override: Override) -> Iterator[str]:
    """Yield the options that a choice names, one or those of a list or sweep; none for a glob and for a deletion."""
    if override.is_delete():
        return
    value = override.value()
    one = value if isinstance(value, list) else [value]
    texts = override.sweep_string_iterator() if override.is_choice_sweep() else one
    yield from (str(text) for text in texts if isinstance(text, str))


def _dotted(node: Any, above: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{above}{name}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{above}{name}.")


def _ending(last: str, keys: Collection[str]) -> str | None:
    """Return the first key whose last part is nearest: ``optimizer.lr`` for ``lr``."""
    ends = {key.rpartition(".")[2]: key for key in reversed(list(keys))}
    return ends.get(nearest(last, ends) or "")


def _words(problem: str, valid: Sequence[str], close: str | None, fixed: str) -> str:
    fix = f"write {fixed}" if fixed else "see python recipes/train.py --help"
    return explain(f"{problem}.", valid=listed(sorted(valid), 12), nearest=close, fix=fix)
