"""Checks before Hydra writes anything: a writable folder, no secrets in overrides, and globs that find all options."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from lightning_wd.errors import ConfigError, explain
from lightning_wd.runs.secrets import refuse_secrets


class OutputFolder(Callback):
    """Exit with a message if the output folder cannot be written, or if an override holds a secret, which Hydra would
    write there. Hydra itself would show a traceback, or nothing.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        keep_secrets_out(config)
        refuse_unwritable("hydra.run.dir", Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        keep_secrets_out(config)
        refuse_short_globs(config)
        refuse_unwritable("hydra.sweep.dir", Path(config.hydra.sweep.dir))


def keep_secrets_out(config: DictConfig) -> None:
    """Exit with a message if an override holds a secret.

    Args:
        config: Hydra's config.
    """
    try:
        refuse_secrets(config.hydra.overrides.task)
        refuse_secrets(config.hydra.overrides.hydra)
    except ConfigError as error:
        sys.exit(f"ConfigError: {error}")


def refuse_short_globs(config: DictConfig) -> None:
    """Exit with a message if a glob of the sweep would miss options: Hydra 1.3 leaves ``hydra.searchpath`` out of it.

    Args:
        config: Hydra's config.
    """
    hydra: Any = OmegaConf.to_container(config.hydra, resolve=False)
    swept = hydra.get("sweeper", {}).get("params") or {}
    for text in [*hydra["overrides"]["task"], *(f"{key}={value}" for key, value in swept.items())]:
        if "glob(" not in text:
            continue
        loader = GlobalHydra.instance().config_loader()
        (override,) = OverridesParser.create(loader).parse_overrides([text])
        glob, group = override.value(), override.key_or_group
        if not isinstance(glob, Glob):
            continue
        asked = {"config_name": hydra["job"]["config_name"], "overrides": hydra["overrides"]["hydra"]}
        options = glob.filter(loader.get_group_options(group, **asked))
        found = glob.filter(loader.get_group_options(group))
        if found != options:
            sys.exit(
                explain(
                    f"{text} misses options of the pack: Hydra does not look for them on hydra.searchpath.",
                    found=", ".join(found) or "no option",
                    valid=", ".join(options),
                    fix=f"name them: {override.get_key_element()}={','.join(options)}",
                )
            )


def refuse_unwritable(key: str, folder: Path) -> None:
    """Create a folder; exit with a message if that, or a file in it, is impossible.

    Args:
        key: the setting that names the folder, for the message.
        folder: the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:  # an exit: Hydra turns what its callbacks raise into warnings
        sys.exit(
            explain(
                f"{key}={folder} cannot be written.",
                found=f"{error.strerror}: {error.filename or folder}",
                fix=f"start from a folder that you may write to, or give one: {key}=FOLDER",
            )
        )
