"""Weights in a file, read as plain data; a damaged one is refused, which torch does not do."""

from __future__ import annotations

import functools
import os
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from lightning_wd.errors import ConfigError, listed

__all__ = ["damage", "read_weights"]

_DIRECTORY = 0x10  # the attribute of MS-DOS


def read_weights(path: str, key: str = "toward") -> dict[str, Tensor]:
    """Return the weights in a file: of a Lightning checkpoint (``state_dict``), or of a plain state dict.

    Args:
        path: the file; ``~`` is the user's home.
        key: what the user set to it, for messages.

    Raises:
        ConfigError: the file is missing, damaged, holds code, or holds no weights.
    """
    problem, whole = f"{key}={path!r} cannot be read as weights.", "give the path of a checkpoint that is whole"
    file = os.path.expanduser(path)
    if zipfile.is_zipfile(file):
        stat = os.stat(file)
        if wrong := _damage(file, stat.st_size, stat.st_mtime_ns):
            raise ConfigError(problem, found=wrong, fix=whole)
    try:
        try:
            held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # not a zip file: from before torch 1.6
            held = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            problem,
            found=f"more than plain data: {str(error).strip().splitlines()[-1].strip()}",
            valid="a Lightning checkpoint or a state dict that torch.load takes with weights_only=True",
            fix="save the weights alone: torch.save(model.state_dict(), path)",
        ) from error
    except Exception as error:  # another format may end in any error of the unpickler, such as KeyError: 105
        reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        raise ConfigError(problem, found=reason, fix=whole) from error
    weights = held.get("state_dict", held) if isinstance(held, dict) else None
    tensors = {k: v for k, v in weights.items() if isinstance(v, Tensor)} if isinstance(weights, dict) else {}
    if not tensors:
        keys = f"a dict of {listed(held)}" if isinstance(held, dict) else type(held).__name__
        fix = "save the weights: torch.save(model.state_dict(), path)"
        raise ConfigError(problem, found=keys, valid="weights by name, alone or under 'state_dict'", fix=fix)
    return tensors


@functools.lru_cache(maxsize=8)
def _damage(file: str, size: int, changed: int) -> str | None:
    """Look at a file once, though each group of an optimizer reads its own weights from it."""
    return damage(Path(file))


def damage(path: Path) -> str | None:
    """Return what is wrong with the bytes of a checkpoint, or None; torch loads them without comparing checksums.

    Args:
        path: a file. A folder (a sharded checkpoint) is not checked.
    """
    if path.is_dir():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            # torch reads nothing from a directory, zipfile compares nothing with the checksum of an empty record
            for info in archive.infolist():
                if info.external_attr & _DIRECTORY or (info.CRC and not info.file_size):
                    return f"the header of {info.filename} is wrong"
            broken = archive.testzip()
    except Exception as error:  # each decompressor that a damaged header may name has errors of its own
        return f"{path.stat().st_size} bytes; {error}"
    return None if broken is None else f"the checksum of {broken or 'a record without a name'} is wrong"
