"""Lightning's two packages: ``lightning`` and ``pytorch_lightning`` hold the same code, each with classes of its own.

An object of one is no instance of the other's class. So nothing here asks by ``isinstance`` for a class of one of them,
which a test holds, and a class of ours that Lightning asks for has a base in both.
"""

from __future__ import annotations

import contextlib
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback as Callback
    from lightning.pytorch.callbacks import Checkpoint as Checkpoint

_TWINS = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}


def either(path: str) -> tuple[type[Any], ...]:
    """Return a class of ``lightning`` by its dotted path, and its twin in ``pytorch_lightning``; only what is loaded.

    Whoever made an object has loaded its class, so ``isinstance(x, either(path))`` imports nothing and misses nothing.
    """
    module, _, name = path.rpartition(".")
    found = (getattr(sys.modules.get(home), name, None) for home in (module, _twin(module)))
    return tuple(cls for cls in found if cls is not None)


def both(path: str) -> tuple[type[Any], ...]:
    """Import and return a class of ``lightning`` by its dotted path, and its twin where that can be imported."""
    module = path.rpartition(".")[0]
    import_module(module)
    with contextlib.suppress(Exception):  # missing, or too old for this torch: then nobody here uses it
        import_module(_twin(module))
    return either(path)


def __getattr__(name: str) -> Any:
    """Make the bases of this package's callbacks, which both Trainers and both LightningCLIs take as their own.

    ``Checkpoint`` callbacks run last. Their names are private, or LightningCLI would offer them among the callbacks.
    """
    if name not in ("Callback", "Checkpoint"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()[name] = type(f"_{name}", both(f"lightning.pytorch.callbacks.{name}"), {"__module__": __name__})
    return made


def wandb_loggers(trainer: Any) -> list[Any]:
    """Return a trainer's W&B loggers."""
    return [logger for logger in trainer.loggers if isinstance(logger, either("lightning.pytorch.loggers.WandbLogger"))]


def _twin(module: str) -> str:
    root = ".".join(module.split(".")[:2])
    return _TWINS[root] + module.removeprefix(root)
