"""Batches from tensors in memory, in an order set by the run's seed and the epoch; checkpoints keep the position."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from step_seed import mix, run_seed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from lightning_wd.errors import ConfigError, explain


class Tensors(Dataset[tuple[Tensor, ...]]):
    """Rows of tensors of equal length, read by the batch: one index operation, not a row at a time and a collate.

    >>> rows = Tensors(torch.arange(4), torch.arange(4) * 10)
    >>> rows.__getitems__([2, 0])
    (tensor([2, 0]), tensor([20,  0]))
    """

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def of_classes(self, classes: Sequence[int] | None) -> Tensors:
        """Return the rows whose last entry, their label, is one of the classes; all rows for None.

        Raises:
            ConfigError: not a list of labels that there are.

        >>> Tensors(torch.arange(4), torch.tensor([7, 8, 9, 7])).of_classes([7, 9]).tensors
        (tensor([0, 2, 3]), tensor([7, 9, 7]))
        """
        if classes is None:
            return self
        labels = self.tensors[-1]
        there = torch.unique(labels).tolist()
        if not isinstance(classes, (list, tuple)) or not classes or any(each not in there for each in classes):
            raise ConfigError(
                f"data.classes={classes} is not a list of labels.",
                valid=f"labels of {there}",
                fix=f"write data.classes={there[: len(there) // 2]}, or data.classes=null for all",
            )
        rows = torch.isin(labels, torch.tensor(classes, dtype=labels.dtype, device=labels.device))
        return Tensors(*(tensor[rows] for tensor in self.tensors))

    @property
    def device(self) -> torch.device:
        """The device that the rows are on."""
        return self.tensors[0].device

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        rows = torch.tensor(indices)
        return tuple(tensor[rows] for tensor in self.tensors)


class EpochSampler(DistributedSampler[int]):
    """Shuffle each epoch and give each process its share; the position can be restored.

    Process r of W takes entries r, r + W, r + 2W, ... of the epoch's order, so W processes with batches of b together
    see what one process with batches of W * b sees. Lightning would replace any sampler but a DistributedSampler by its
    own, which keeps no position.

    Args:
        length: rows of the data set.
        samples: rows in an epoch over all processes, at most ``length``; the last incomplete batch is dropped.
        batch_size: of one process.
        seed: of the order, >= 0.
        rank: of this process.
        world_size: number of processes.
        trainer: tells how many batches have been seen; None without one.
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
        self._seen = 0  # rows of this epoch handed out so far, on each process
        self._start = 0  # where the next iteration begins; not 0 only on resume

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        # runs at the first next(), after Lightning has set the epoch
        self._seen, self._start = self._start, 0
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]
        mine = order[self.rank :: self.num_replicas][self._seen : self.num_samples]
        for index in mine.tolist():
            self._seen += 1
            yield index

    def set_epoch(self, epoch: int) -> None:
        if self.trainer is not None:
            # counted in batches: after a resume from the end of an epoch Lightning's own number may be one off
            epoch = (self.trainer.fit_loop.total_batch_idx + 1) // int(self.trainer.num_training_batches)
        if epoch != self.epoch:  # otherwise, on resume, the restored position is in this epoch
            self.epoch, self._seen, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Return the position in rows of all processes: only process 0 saves, and their number may change."""
        return {"epoch": self.epoch, "seen": self._seen * self.num_replicas, "rows": self.rows}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self._start = state["epoch"], state["seen"] // self.num_replicas
        rows = state.get("rows", self.rows)
        if state["seen"] >= self.samples // rows * rows:  # saved after the last row of an epoch
            self.epoch, self._start = self.epoch + 1, 0
        # Lightning counts the batches of an epoch, not its rows; it may end one sooner (limit_train_batches)
        progress: Any = None if self.trainer is None else self.trainer.fit_loop.epoch_progress.current
        within = self._start > 0 and (progress is None or progress.processed < progress.ready)
        if within and rows != self.rows:
            warnings.warn(
                explain(
                    "the checkpoint was saved within an epoch whose batches had another size, and Lightning resumes by "
                    "counting batches: some rows of this epoch are seen twice or not at all.",
                    found=f"{rows} rows a batch over all processes then, {self.rows} now",
                    fix="resume with the same rows per batch (data.batch_size times processes), or from the end of an "
                    "epoch",
                ),
                UserWarning,
                stacklevel=2,
            )
        self._seen = self._start


class ShareSampler(DistributedSampler[list[int]]):
    """Batches of the rows in order, each row on exactly one process, so that metrics are exact.

    Each process has the same number of batches, since under FSDP2 all compute a batch together; if a share is one row
    longer than its batches, the last batch has that row too.

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


def train_loader(data: L.LightningDataModule, rows: Any, samples: int | None = None) -> DataLoader[Any]:
    """Return the training loader of a data module that has ``batch_size`` and ``num_workers`` in its hparams.

    Args:
        data: the data module; its trainer, if any, gives the process's rank and the epoch.
        rows: a data set with a length, and ``__getitems__`` that returns a whole batch.
        samples: rows in an epoch; None for all.

    Raises:
        ConfigError: the rows do not fill one batch on each process.
    """
    rank, world_size = _place(data)
    batch_size, samples = data.hparams["batch_size"], len(rows) if samples is None else samples
    sampler = EpochSampler(len(rows), samples, batch_size, run_seed(), rank, world_size, data.trainer)
    if not len(sampler):
        raise ConfigError(
            f"data.batch_size={batch_size} leaves no whole training batch.",
            found=f"{samples} rows for {world_size} process{'es' * (world_size > 1)}",
            fix=f"write data.batch_size=<at most {samples // world_size}>",
        )
    if data.trainer is not None:  # workers fetch ahead, before Lightning sets the epoch
        epochs: Any = data.trainer.fit_loop.epoch_progress.current
        sampler.epoch = epochs.processed
    loader: DataLoader[Any] = StatefulDataLoader(rows, sampler=sampler, **_settings(data, rows))
    return loader


def eval_loader(data: L.LightningDataModule, rows: Any, batch_size: int | None = None) -> DataLoader[Any]:
    """Return a validation or test loader, which reads every row once over all processes.

    Args:
        data: the data module; its trainer, if any, gives the process's rank.
        rows: a data set with a length, and ``__getitems__`` that returns a whole batch.
        batch_size: of one process; None for the data module's.

    Raises:
        ConfigError: fewer rows than processes.
    """
    settings, (rank, world_size) = _settings(data, rows), _place(data)
    if len(rows) < world_size:
        raise ConfigError(
            f"{len(rows)} rows to evaluate are too few for every process.",
            found=f"{world_size} processes",
            fix=f"write trainer.devices=<at most {len(rows)}>, or evaluate on more rows",
        )
    batches = ShareSampler(len(rows), batch_size or settings["batch_size"], rank, world_size)
    return DataLoader(_Batches(rows), sampler=batches, **{**settings, "batch_size": None})


class _Batches(Dataset[Any]):
    """A data set that is indexed by whole batches."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __getitem__(self, indices: list[int]) -> Any:
        return self.rows.__getitems__(indices)


def _place(data: L.LightningDataModule) -> tuple[int, int]:
    return (0, 1) if data.trainer is None else (data.trainer.global_rank, data.trainer.world_size)


def _settings(data: L.LightningDataModule, rows: Dataset[Any]) -> dict[str, Any]:
    on_host = not isinstance(rows, Tensors) or rows.device.type == "cpu"  # only CPU memory can be pinned
    # rows in memory, read by the batch, leave nothing for worker processes to speed up
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata 0.11 on torch 2.13
    return {
        "batch_size": data.hparams["batch_size"],
        "num_workers": data.hparams["num_workers"],
        "collate_fn": _whole,
        "pin_memory": torch.cuda.is_available() and on_host,
    }


def _whole(batch: Any) -> Any:
    """Return what ``__getitems__`` returned: it is a batch already."""
    return batch
