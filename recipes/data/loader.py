"""Batches from tensors in memory: the order follows from (run's seed, epoch), a checkpoint keeps the position."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from step_seed import mix, run_seed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_wd.errors import ConfigError, explain


class Tensors(Dataset[tuple[Tensor, ...]]):
    """Rows of tensors of one length, read by the batch: one index operation instead of a row at a time and a collate.

    >>> rows = Tensors(torch.arange(4), torch.arange(4) * 10)
    >>> rows.__getitems__([2, 0])
    (tensor([2, 0]), tensor([20,  0]))
    """

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.tensors[0].device

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        rows = torch.tensor(indices)
        return tuple(tensor[rows] for tensor in self.tensors)


class EpochSampler(DistributedSampler[int]):
    """Each epoch a new random order; each process takes its share of every global batch; the position is restorable.

    Process r of W takes entries r, r + W, r + 2W, ... of the epoch's order, so W processes with batches of b see
    together what one process with batches of W * b sees. Being a DistributedSampler, it is left alone by Lightning,
    which would otherwise put its own, without a position, in its place.

    Args:
        length: rows of the data set.
        samples: rows in an epoch, all processes together; at most ``length``. What fills no global batch is left out.
        batch_size: of one process.
        seed: of the order, >= 0.
        rank: of this process.
        world_size: number of processes.
        trainer: asked how many batches went before, where there is one.
    """

    def __init__(
        self,
        length: int,
        samples: int,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        trainer: L.Trainer | None = None,
    ) -> None:
        super().__init__(range(length), world_size, rank, seed=seed)  # type: ignore[arg-type]
        self.samples, self.rows = samples, world_size * batch_size  # of an epoch, of a global batch
        self.num_samples = samples // self.rows * batch_size
        self.trainer = trainer
        self._seen = 0  # rows of this epoch already handed out, on each process
        self._start = 0  # where the next iteration begins: 0, except on resume

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        # This runs at the first next(), after Lightning has set the epoch.
        self._seen, self._start = self._start, 0
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]
        mine = order[self.rank :: self.num_replicas][self._seen : self.num_samples]
        for index in mine.tolist():
            self._seen += 1
            yield index

    def set_epoch(self, epoch: int) -> None:
        if self.trainer is not None:
            # Counted in batches: after a resume from the end of an epoch Lightning's own numbers may be one off.
            epoch = (self.trainer.fit_loop.total_batch_idx + 1) // int(self.trainer.num_training_batches)
        if epoch != self.epoch:  # else, on resume, the restored position belongs to this epoch
            self.epoch, self._seen, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """The position, alike on every process (Lightning saves that of process 0) and for any number of them."""
        return {"epoch": self.epoch, "seen": self._seen * self.num_replicas, "rows": self.rows}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self._start = state["epoch"], state["seen"] // self.num_replicas
        rows = state.get("rows", self.rows)
        if state["seen"] >= self.samples // rows * rows:  # saved behind the last row of an epoch
            self.epoch, self._start = self.epoch + 1, 0
        # Lightning counts the batches of an epoch, not its rows; it may end one sooner (limit_train_batches)
        progress = None if self.trainer is None else self.trainer.fit_loop.epoch_progress.current
        within = self._start > 0 and (progress is None or progress.processed < progress.ready)
        if within and rows != self.rows:
            warnings.warn(
                explain(
                    "the checkpoint lies within an epoch of batches of another size, of which Lightning goes on by the "
                    "number: some rows of this epoch are seen twice, or not at all.",
                    found=f"{rows} rows a batch over all processes then, {self.rows} now",
                    fix="resume with the same rows per batch (data.batch_size times processes), or from the end of an "
                    "epoch",
                ),
                UserWarning,
                stacklevel=2,
            )
        self._seen = self._start


class ShareSampler(DistributedSampler[list[int]]):
    """Batches of the rows in order, each row on exactly one process: none is repeated, so metrics are exact.

    Each process has as many batches as the others, for under FSDP2 all compute a batch together: where a share is one
    row longer than whole batches, that row is in the last batch.

    Args:
        length: rows of the data set.
        batch_size: of one process.
        rank: of this process.
        world_size: number of processes.

    >>> [list(ShareSampler(9, 2, rank, 2)) for rank in (0, 1)]
    [[[0, 2], [4, 6, 8]], [[1, 3], [5, 7]]]
    """

    def __init__(self, length: int, batch_size: int, rank: int, world_size: int) -> None:
        super().__init__(range(length), world_size, rank, shuffle=False)  # type: ignore[arg-type]
        self.rows = list(range(rank, length, world_size))
        self.batch_size = batch_size
        self.batches = -(-(length // world_size) // batch_size)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self.batches * self.batch_size, self.batch_size):
            last = start + self.batch_size >= self.batches * self.batch_size
            yield self.rows[start : None if last else start + self.batch_size]


def train_loader(
    data: L.LightningDataModule, rows: Dataset[Any], length: int, samples: int | None = None
) -> StatefulDataLoader[Any]:
    """Return the training loader of a data module with ``batch_size`` and ``num_workers`` in its hparams.

    Args:
        data: the data module; its trainer, where there is one, gives the process's rank and the epoch.
        rows: a data set with ``__getitems__`` that returns a whole batch.
        length: rows of the data set.
        samples: rows in an epoch; None for all.

    Raises:
        ConfigError: the rows do not fill one batch on each process.
    """
    rank, world_size = _place(data)
    batch_size, samples = data.hparams.batch_size, length if samples is None else samples
    sampler = EpochSampler(length, samples, batch_size, run_seed(), rank, world_size, data.trainer)
    if not len(sampler):
        raise ConfigError(
            explain(
                f"data.batch_size={batch_size} leaves no whole training batch.",
                found=f"{samples} rows for {world_size} process{'es' * (world_size > 1)}",
                fix=f"write data.batch_size=<at most {samples // world_size}>",
            )
        )
    if data.trainer is not None:  # workers fetch ahead, before Lightning sets the epoch
        sampler.epoch = data.trainer.fit_loop.epoch_progress.current.processed
    return StatefulDataLoader(rows, sampler=sampler, **_settings(data, rows))


def eval_loader(
    data: L.LightningDataModule, rows: Dataset[Any], length: int, batch_size: int | None = None
) -> DataLoader[Any]:
    """Return a validation or test loader: every row once, over all processes together.

    Args:
        data: the data module; its trainer, where there is one, gives the process's rank.
        rows: a data set with ``__getitems__`` that returns a whole batch.
        length: rows of the data set.
        batch_size: of one process; None for the data module's.

    Raises:
        ConfigError: fewer rows than processes.
    """
    settings, (rank, world_size) = _settings(data, rows), _place(data)
    if length < world_size:
        raise ConfigError(
            explain(
                f"{length} rows to evaluate leave a process without any.",
                found=f"{world_size} processes",
                fix=f"write trainer.devices=<at most {length}>, or evaluate on more rows",
            )
        )
    batches = ShareSampler(length, batch_size or settings["batch_size"], rank, world_size)
    return DataLoader(_Batches(rows), sampler=batches, **{**settings, "batch_size": None})


class _Batches(Dataset[Any]):
    """A data set whose index is a whole batch's."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __getitem__(self, indices: list[int]) -> Any:
        return self.rows.__getitems__(indices)


def _place(data: L.LightningDataModule) -> tuple[int, int]:
    return (0, 1) if data.trainer is None else (data.trainer.global_rank, data.trainer.world_size)


def _settings(data: L.LightningDataModule, rows: Dataset[Any]) -> dict[str, Any]:
    on_host = not isinstance(rows, Tensors) or rows.device.type == "cpu"  # only host memory can be pinned
    # The rows are in memory and read by the batch: there is nothing for worker processes to speed up.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata 0.11 on torch 2.13
    return {
        "batch_size": data.hparams.batch_size,
        "num_workers": data.hparams.num_workers,
        "collate_fn": _whole,
        "pin_memory": torch.cuda.is_available() and on_host,
    }


def _whole(batch: Any) -> Any:
    """Pass on what ``__getitems__`` returned: it is a batch already."""
    return batch
