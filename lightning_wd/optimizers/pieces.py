"""A step cut into pieces that stay in a CPU's cache while several passes go over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_wd.mask.module_tree import is_sharded

__all__ = ["can_be_cut", "pieces"]

PIECE = 2**17  # elements: a few such arrays fit into a core's cache


def can_be_cut(columns: list[list[Any]]) -> bool:
    """Whether a fused step of these tensors, which needs temporaries as large as they are, is better done in pieces."""
    plain = all(p.is_cpu and not is_sharded(p) for p in columns[0])
    if not plain or torch.compiler.is_compiling():
        return False
    return not any(t is None for column in columns for t in column)  # a buffer that the kernel makes is whole


def pieces(
    columns: list[list[Any]], state: Mapping[Tensor, Mapping[str, Any]]
) -> Iterator[tuple[list[list[Any]], dict[Tensor, dict[str, Any]]]]:
    """Cut a part of the fused kernel into pieces.

    A temporary as large as a weight costs more than all else: the system hands out its memory page by page. Yields the
    columns of each piece, as flat views, and the own state of its weights. Only the last piece of a weight counts its
    step.
    """
    piece, room = [], PIECE
    for i, p in enumerate(columns[0]):
        size = p.numel()
        for begin in range(0, max(size, 1), PIECE):
            piece.append((i, begin, min(begin + PIECE, size), size))
            room -= PIECE if size > PIECE else size
            last = i == len(columns[0]) - 1 and begin + PIECE >= size
            if room > 0 and not last:
                continue
            cut = [column and [_cut(column[i], *span) for i, *span in piece] for column in columns]
            own = {
                view: {key: _cut(t, *span) for key, t in state[columns[0][i]].items() if key in ("anchor", "kahan")}
                for view, (i, *span) in zip(cut[0], piece, strict=True)
            }
            yield cut, own
            piece, room = [], PIECE


def _cut(t: Tensor, begin: int, end: int, size: int) -> Tensor:
    """Return a flat view of a tensor of a weight of this size; of a step, a copy that is thrown away, but the last."""
    if end - begin == size:
        return t
    if t.numel() != size:
        return t if end == size else t.clone()
    return t.as_strided((end - begin,), (1,), t.storage_offset() + begin)
