"""Errors that are the user's to fix end the program with their message alone, without a traceback."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable

from data.download import DataError
from hydra.errors import CompactHydraException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from lightning_wd.errors import CheckpointMismatchError, ConfigError, MaskError, explain
from lightning_wd.runs.folder import run_dir

__all__ = ["FOR_THE_USER", "say_plainly"]

FOR_THE_USER = (ConfigError, MaskError, CheckpointMismatchError, DataError)  # their messages say all there is to say
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def say_plainly(job: Callable[[DictConfig], float | None]) -> Callable[[DictConfig], float | None]:
    """Let Hydra print only the message of an error that is the user's to fix; ``HYDRA_FULL_ERROR=1`` shows it all.

    Args:
        job: what ``hydra.main`` runs.
    """

    @functools.wraps(job)
    def wrapped(cfg: DictConfig) -> float | None:
        try:
            return job(cfg)
        except (*FOR_THE_USER, MisconfigurationException) as error:  # Lightning's own says what to set, too
            raise CompactHydraException(f"{type(error).__name__}: {error}") from error
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            raise CompactHydraException(f"OSError: {_not_writable(error)}") from error
        except RuntimeError as error:
            if not str(error).startswith("Error(s) in loading state_dict"):
                raise
            raise CompactHydraException(f"CheckpointMismatchError: {_another_model(error, cfg.ckpt_path)}") from error

    return wrapped


def _not_writable(error: OSError) -> str:
    target = error.filename2 or error.filename or run_dir()  # filename2 is where a move leads
    return explain(
        f"{target} can no longer be written.",
        found=error.strerror,
        fix="free some space, or give another folder with hydra.run.dir=FOLDER; the last whole checkpoint is kept, and "
        "ckpt_path=last resumes from it",
    )


def _another_model(error: RuntimeError, ckpt_path: str | None) -> str:
    differences = str(error).splitlines()[1:]
    more = f" and {len(differences) - 1} more" * (len(differences) > 1)
    return explain(
        f"ckpt_path={ckpt_path} holds another model.",
        found=differences[0].strip().rstrip(".") + more,
        fix="give the model and data settings of the run that wrote it (config.yaml in its folder), or ckpt_path=null "
        "to start from scratch",
    )
