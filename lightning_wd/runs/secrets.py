"""Keeps secrets out of what a run writes, and off the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from lightning_wd.errors import ConfigError

__all__ = ["REDACTED", "flat", "names_secret", "redact", "refuse_secrets", "variables_read"]

REDACTED = "<redacted>"
_SHORTEST = 6  # characters: shorter values occur in text by chance
_SECRET = re.compile(
    r"(^|_)(secrets?|(auth_?)?token|passw(or)?ds?|pwd|credentials?|auth(orization)?"
    r"|(api|access|secret|private|ssh|openai|anthropic|wandb|hf|github|aws)_?keys?)$|^key$"
)
_VOCABULARY = re.compile(r"(^|_)(pad|eos|bos|unk|mask|sep|cls|start|end|special|next|per|num|max|min|n)_token$")
# What may stand under a secret's name: a count, or a variable without a default, as in HTTP headers.
_HARMLESS = re.compile(r"-?\d{0,7}|true|false|((bearer|basic|token) )?\$\{oc\.env: *\w+(, *null)?\}", re.I)


def names_secret(path: str) -> bool:
    """Whether a part of a dotted path is a secret's name: ``hub.apiKey``, ``HF_TOKEN``; not ``eos_token``."""
    words = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])|-", "_", part.lstrip("+")).lower() for part in re.split(r"[.\[]", path)]
    return any(_SECRET.search(word) and not _VOCABULARY.search(word) for word in words)


def variables_read(config: Any) -> list[str]:
    """Return the environment variables that an unresolved config reads.

    >>> variables_read({"root": "${oc.env:DATA}/mnist"})
    ['DATA']
    """
    return re.findall(r"\$\{oc\.env:\s*['\"]?([A-Za-z_]\w*)", str(config))


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Return each leaf of plain containers, or of a value that Hydra has parsed, with its dotted path.

    >>> dict(flat({"a": {"b": 1}, "c": [2]}))
    {'a.b': 1, 'c[0]': 2}
    """
    value = getattr(value, "list", getattr(value, "text", value))  # of Hydra's types: a choice, a quoted text
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flat(item, f"{path}.{getattr(key, 'text', key)}".lstrip("."))
    elif isinstance(value, (list, tuple)) and value:
        for index, item in enumerate(value):
            yield from flat(item, f"{path}[{index}]")
    else:
        yield path, value


def redact(config: Any) -> Any:
    """Return a config (a DictConfig, or plain containers) as plain containers, resolved, without secrets.

    What reads the environment (``${oc.env:NAME}``) stays as written. ``<redacted>`` replaces values under a secret's
    name, and the value of an environment variable that has such a name or that the config reads, in any text.

    >>> redact({"lr": 0.1, "wandb": {"api_key": "abcdef123"}})
    {'lr': 0.1, 'wandb': {'api_key': '<redacted>'}}
    """
    from omegaconf import OmegaConf

    raw = resolved = config
    if OmegaConf.is_config(config):
        raw, resolved = (OmegaConf.to_container(config, resolve=resolve) for resolve in (False, True))
    reads = {path: value for path, value in flat(raw) if isinstance(value, str) and "${oc.env:" in value}
    texts = sorted(_secret_variables(*variables_read(raw)).values(), key=len, reverse=True)

    def clean(value: Any, path: str = "") -> Any:
        if isinstance(value, dict):
            return {key: clean(item, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(item, f"{path}[{index}]") for index, item in enumerate(value)]
        value = reads.get(path, value)
        if names_secret(path) and _is_secret(value):
            return REDACTED
        if isinstance(value, str):
            for text in texts:
                value = value.replace(text, REDACTED)
        return value

    return clean(resolved)


def _is_secret(value: Any) -> bool:
    return isinstance(value, (str, bytes, int)) and not _HARMLESS.fullmatch(str(value))


def _secret_variables(*read: str) -> dict[str, str]:
    """Return the environment's secrets: the variables with a secret's name, and those that are read."""
    names = {*filter(names_secret, os.environ), *read} - {"PWD"}  # the shell's working directory
    return {name: value for name in names if len(value := os.environ.get(name, "")) >= _SHORTEST}


def refuse_secrets(overrides: Any) -> None:
    """Refuse a secret on the command line, before Hydra writes it: call this when a run or a multirun starts.

    A secret is a value under a secret's name, at any depth, and the value of an environment variable with such a name
    (the shell puts ``$HF_TOKEN`` into a URL).

    Args:
        overrides: ``key=value`` each: a list, or ``hydra.overrides.task`` or ``.hydra`` of Hydra's config.

    Raises:
        ConfigError: names the key, never the value.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    if OmegaConf.is_config(overrides):  # iterating over it would resolve `${oc.env:...}`
        overrides = OmegaConf.to_container(overrides, resolve=False)
    variables = _secret_variables()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        line = str(override.input_line)
        key = line.partition("=")[0]
        for path, value in flat(override.value(), key):
            if names_secret(path) and _is_secret(value):
                where = re.sub(r"\[\d+\]", "", path)
                raise ConfigError(
                    f"{where} looks like a secret; do not put it on the command line.",
                    found="a value in an override",
                    fix=f"export it as an environment variable and write '{where}=${{oc.env:NAME}}'; "
                    "wandb reads WANDB_API_KEY by itself",
                )
        if name := next((name for name, value in variables.items() if value in line), None):
            raise ConfigError(
                f"{key} holds a secret, and a command line is no place for one.",
                found=f"the value of the environment variable {name}",
                fix=f"write ${{oc.env:{name}}} in its place, in single quotes, so that the config reads it",
            )
