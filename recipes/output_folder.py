"""Checks before Hydra writes anything: a writable output folder, and no secrets on the command line."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

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
