"""LightningCLI: a module that takes its optimizer and schedule as arguments, with an option for each of their keys.

pip install "jsonargparse[signatures]>=4.46"
python docs/examples/lightning_cli_model.py fit --config docs/examples/lightning_cli_model.yaml
python docs/examples/lightning_cli_model.py fit --trainer.max_steps 4 \
    --model.optimizer.name=sgdw --model.optimizer.lr=0.05 --model.optimizer.decay.style=independent \
    --model.optimizer.mask=all --model.lr_scheduler.name=warmup_cosine
python docs/examples/lightning_cli_model.py fit --help
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

import lightning_wd as wd


class Lit(BoringModel):
    def __init__(
        self, optimizer: wd.OptimizerConfig | None = None, lr_scheduler: wd.LRSchedulerConfig | None = None
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self) -> Any:
        return wd.configure_optimizers(self, self.hparams["optimizer"], self.hparams["lr_scheduler"])


def main(args: list[str] | None = None) -> LightningCLI:
    """Run the command line; ``args`` are for tests."""
    return LightningCLI(Lit, BoringDataModule, seed_everything_default=0, auto_configure_optimizers=False, args=args)


if __name__ == "__main__":
    main()
