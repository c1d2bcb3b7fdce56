"""LightningCLI: optimizer, decay and mask from the command line, for a module that knows nothing about them.

pip install "jsonargparse[signatures]>=4.46"
python docs/examples/lightning_cli.py fit --config docs/examples/lightning_cli.yaml
python docs/examples/lightning_cli.py fit --trainer.max_steps 4 \
    --trainer.callbacks+=lightning_wd.OptimizerOverride \
    --trainer.callbacks.optimizer='{name: sgdw, lr: 0.05, decay: {style: independent}, mask: all}'
python docs/examples/lightning_cli.py fit --trainer.max_steps 4 \
    --trainer.callbacks+=lightning_wd.OptimizerOverride \
    --trainer.callbacks.optimizer.name=sgdw --trainer.callbacks.optimizer.decay.style=independent \
    --trainer.callbacks.lr_scheduler=constant
"""

from __future__ import annotations

from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel


def main(args: list[str] | None = None) -> LightningCLI:
    """Run the command line; ``args`` are for tests."""
    # OptimizerOverride replaces the CLI's own --optimizer, which puts every parameter into one group.
    return LightningCLI(
        BoringModel, BoringDataModule, seed_everything_default=0, auto_configure_optimizers=False, args=args
    )


if __name__ == "__main__":
    main()
