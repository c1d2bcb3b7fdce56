"""Compares the configs of all ranks, whoever started them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from lightning_wd._private import current_job
from lightning_wd.errors import ConfigError
from lightning_wd.runs.secrets import REDACTED, flat, names_secret, redact, variables_read

__all__ = ["check_ranks_agree"]

_OF_A_RANK = re.compile(r"RANK|HOST|NODE|PROCID|LOCALID|VISIBLE_DEVICES|(^|_)PID$", re.I)  # in variables' names


def check_ranks_agree() -> str | None:
    """Return the hash of this rank's config if all ranks of the process group run one Hydra job; else raise on each.

    Outside Hydra, and with a single process, return None. An interpolation counts as it is written, so the clock
    (``${now:...}``), the output folder and Hydra's mode may differ; values under a secret's name do not count. The
    environment variables that the config reads are compared too, except paths, secrets, and what a launcher tells each
    rank (its rank, its host, its devices).

    Raises:
        ConfigError: names each key that differs, with the ranks and their values.
    """
    job = current_job()
    if job is None or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    mine = _settings(job["config"], job["task_cfg"])
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, (mine, redact(mine)))
    if found := _disagreements(ranks):
        raise ConfigError(
            f"the {len(ranks)} ranks of this job have different configs.",
            found="; ".join(found),
            fix="give every rank the same overrides and environment; "
            "start a sweep once and let trainer=ddp start the other ranks",
        )
    return hashlib.sha256(repr(sorted(mine.items())).encode()).hexdigest()


def _settings(composed: Any, config: Any) -> dict[str, str]:
    """Return what ranks compare: each key of the job's config and each environment variable that it reads.

    An app may have resolved its config in place: ``composed`` is as Hydra made it.
    """
    from omegaconf import OmegaConf

    before, now = (dict(flat(OmegaConf.to_container(each, resolve=False))) for each in (composed, config))
    written = {path: value for path, value in before.items() if isinstance(value, str) and "${" in value}
    found = {path: REDACTED if names_secret(path) else repr(written.get(path, value)) for path, value in now.items()}
    for name in variables_read({**now, **written}):
        value = os.environ.get(name, "")
        if os.sep not in value and not _OF_A_RANK.search(name) and not names_secret(name):
            shown = f"sha256 {hashlib.sha256(value.encode()).hexdigest()[:8]}" if value else "unset"
            found[f"${{oc.env:{name}}}"] = shown
    return found


def _disagreements(ranks: Sequence[tuple[dict[str, str], dict[str, str]]]) -> list[str]:
    """Name each key that differs, with the ranks of each value; ``ranks`` has the settings as compared and as shown."""
    lines = []
    for key in sorted({key for compared, _ in ranks for key in compared}):
        values: dict[str | None, list[int]] = {}
        for rank, (compared, _) in enumerate(ranks):
            values.setdefault(compared.get(key), []).append(rank)
        if len(values) > 1:
            shown = (f"{ranks[of[0]][1].get(key, 'absent')} on rank {' '.join(map(str, of))}" for of in values.values())
            lines.append(f"{key} is " + ", ".join(shown))
    return lines
