"""The resolvers of the pack's YAML. Importing :mod:`lightning_wd.conf`, as ``pkg://`` does, registers them."""

from __future__ import annotations

import os
from typing import Any

from omegaconf import OmegaConf

__all__ = ["SEED_AT_START"]

# `seed_everything` writes these; when a distributed job ends, they go back to what they were before any job.
SEED_AT_START = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}


def _run_dir() -> str:
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().runtime.output_dir) if HydraConfig.initialized() else "."


# `${hydra:runtime.output_dir}` fails where a group is composed outside a Hydra app; this takes the working directory.
OmegaConf.register_new_resolver("lightning_wd.run_dir", _run_dir, replace=True)


def _octaves(exponents: Any) -> str:
    from lightning_wd.runs.sweep import octaves

    return octaves(exponents)


# `${lightning_wd.octaves:[-3,-1]}` is `0.125,0.25,0.5`, the choices of a sweep on a log scale
OmegaConf.register_new_resolver("lightning_wd.octaves", _octaves, replace=True)
