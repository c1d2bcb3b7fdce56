"""Fine-tuning: a run that starts from the weights of another, and from nothing else of it."""

from __future__ import annotations

import lightning as L

from lightning_wd.errors import ConfigError
from lightning_wd.optimizers.weights_file import read_weights


def load_weights(model: L.LightningModule, path: str) -> None:
    """Load all weights of a model from a checkpoint, or from a plain state dict; read as plain data.

    Raises:
        ConfigError: the file cannot be read, or is not of this model.
    """
    try:
        model.load_state_dict(read_weights(str(path), "init_from"))
    except RuntimeError as error:
        raise ConfigError(
            f"the weights of init_from={path} are not of this model.",
            found="; ".join(line.strip() for line in str(error).splitlines()[1:]),
            fix="give a checkpoint of the same model, or write model=... and model.* as in its run's config.yaml",
        ) from error
