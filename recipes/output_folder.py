"""What is looked at before Hydra writes anything: the output folder, and secrets on the command line."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lightning_wd.errors import ConfigError, explain
from lightning_wd.run import refuse_secrets


class OutputFolder(Callback):
    """End the program with a message, where Hydra shows none or a traceback, unless a file can be made in the output
    folder and no override holds a secret, which would stay there.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        keep_secrets_out(config)
        refuse_unwritable("hydra.run.dir", Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        keep_secrets_out(config)
        refuse_unwritable("hydra.sweep.dir", Path(config.hydra.sweep.dir))


def keep_secrets_out(config: DictConfig) -> None:
    """Exit with a message where an override holds a secret.

    Args:
        config: Hydra's config.
    """
    try:
        refuse_secrets(config.hydra.overrides.task)
        refuse_secrets(config.hydra.overrides.hydra)
    except ConfigError as error:
        sys.exit(f"ConfigError: {error}")


def refuse_unwritable(key: str, folder: Path) -> None:
    """Make a folder and exit with a message where that, or a file in it, is impossible.

    Args:
        key: the setting that names the folder, for the message.
        folder: the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:  # an exit, since Hydra turns what its callbacks raise into warnings
        sys.exit(
            explain(
                f"{key}={folder} cannot be written.",
                found=f"{error.strerror}: {error.filename or folder}",
                fix=f"start from a folder that you may write to, or give one: {key}=FOLDER",
            )
        )
