"""From the nodes of a config to the objects of a run, with errors that name the node."""

from __future__ import annotations

from typing import Any

import hydra
from hydra.errors import InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from user_errors import FOR_THE_USER

from lightning_wd.errors import ConfigError
from lightning_wd.runs.secrets import redact

__all__ = ["build", "make", "make_logger"]


def build(cfg: DictConfig, key: str, **keywords: Any) -> Any:
    """Instantiate ``cfg.<key>``, with keywords that no config can hold.

    Args:
        cfg: the whole config.
        key: the node.
        keywords: more arguments, objects already made.

    Raises:
        ConfigError: the class refuses a value; its own message is part of this one.
    """
    made = _instantiate(cfg[key], _partial_=True)
    try:
        return made(**keywords)
    except (AttributeError, RuntimeError, TypeError, ValueError, MisconfigurationException) as error:
        if isinstance(error, FOR_THE_USER):
            raise
        given = redact(cfg[key]).items()
        raise ConfigError(
            f"{key} cannot be built from these settings: {error}",
            found=", ".join(f"{name}={value}" for name, value in given if name in made.keywords),
            fix=f"correct {key}.*; HYDRA_FULL_ERROR=1 shows where it failed",
        ) from error


def make(key: str, node: DictConfig, kind: type, **keywords: Any) -> Any:
    """Instantiate a node of a group.

    Args:
        key: its full name, for the message.
        node: the node.
        kind: what it must become.
        keywords: more arguments.

    Raises:
        ConfigError: the node has no ``_target_``, or builds something else.
    """
    made = _instantiate(node, **keywords) if OmegaConf.is_dict(node) else node
    if not isinstance(made, kind):
        raise ConfigError(
            f"{key} is not a {kind.__name__}.",
            found=str(redact(node)),
            fix=f"write {key}._target_=<its class>, or choose from the group: {key.partition('.')[0]}=...",
        )
    return made


def make_logger(key: str, node: DictConfig, wandb_id: str | None) -> Logger:
    """Instantiate a logger; W&B's resumes the checkpoint's run, unless the config names another.

    Args:
        key: its name in the group ``logger``.
        node: the node.
        wandb_id: the W&B run of the checkpoint, None without one.
    """
    is_wandb = OmegaConf.is_dict(node) and str(node.get("_target_")).endswith(".WandbLogger")
    more = {"id": wandb_id} if is_wandb and wandb_id is not None and node.get("id") is None else {}
    try:
        made: Logger = make(f"logger.{key}", node, Logger, **more)
    except InstantiationException as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        raise ConfigError(
            f"logger.{key} needs a package that is not installed.",
            found=str(error.__cause__).splitlines()[0],
            fix=f"pip install {key}, or choose another: logger=csv",
        ) from error
    return made


def _instantiate(node: DictConfig, **keywords: Any) -> Any:
    """Instantiate with plain lists and dicts: a ListConfig among the hyperparameters makes a checkpoint unsafe to load.

    An error of the package is raised as itself, not wrapped in Hydra's.
    """
    try:
        return hydra.utils.instantiate(node, _convert_="all", **keywords)
    except InstantiationException as error:
        if isinstance(error.__cause__, FOR_THE_USER):
            raise error.__cause__ from None
        raise
