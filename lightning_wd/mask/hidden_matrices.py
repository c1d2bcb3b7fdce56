"""Which tensors Muon takes: the matrices and convolutions between a model's input and its output layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from lightning_wd._private import ConvNd
from lightning_wd.mask.evidence import is_weighted
from lightning_wd.mask.layers import output_parameters
from lightning_wd.mask.module_tree import walk
from lightning_wd.mask.plan import Row

__all__ = ["Matrices", "give_to_muon", "hidden_matrices"]


class Matrices(NamedTuple):
    """How many matrices a tensor holds for Muon, stacked along its first dimension, and why; 0 leaves it to AdamW."""

    split: int
    reason: str


def hidden_matrices(module: nn.Module, plan: Iterable[Row]) -> dict[int, Matrices]:
    """Return, for each tensor of a plan by its id, whether Muon takes it and why.

    Muon takes the weights of linear layers and convolutions, a grouped convolution as one matrix for each group, since
    no input of one meets an output of another. It leaves to AdamW:

    - biases, norms, embeddings and whatever else is no weight (:mod:`lightning_wd.mask.evidence`), and the output
      layer;
    - the first convolution, where no embedding or linear layer comes before it: "use Muon to optimize all the
      convolutional filters except the first one" (https://github.com/KellerJordan/Muon);
    - what has one row or one column, as each channel of a depthwise convolution: orthogonalising a vector is dividing
      it by its norm;
    - tensors of three or more dimensions that no linear layer or convolution owns, such as fused experts: a rule with
      ``optimizer: muon`` and ``split`` says where their matrices are.

    Example:
        >>> from lightning_wd import plan_decay
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(8, 2))
        >>> plan = plan_decay(net)
        >>> [(row.name, *hidden_matrices(net, plan)[id(row.param)])
        ...  for row in plan if row.kind == "weight"]  # doctest: +NORMALIZE_WHITESPACE
        [('0.weight', 0, 'input layer'), ('1.weight', 2, '2 groups, each flattened to (4, 36)'),
         ('3.weight', 0, 'output layer')]
    """
    tree = walk(module)
    output = output_parameters(module, tree)
    owners = {id(found.param): found.module for found in tree.tensors}

    def has_input(row: Row) -> bool:
        layer: type = type(owners[id(row.param)])
        return row.kind == "embedding" or (row.kind == "weight" and is_weighted(layer))

    first = next(filter(has_input, plan), None)
    return {
        id(row.param): _matrices(row, owners[id(row.param)], first=row is first, last=id(row.param) in output)
        for row in plan
    }


def give_to_muon(rows: list[Row], module: nn.Module, *, whole: bool) -> None:
    """Give Muon the hidden matrices, if it has the ``whole`` model, and tell it how many each tensor stacks."""
    matrices = hidden_matrices(module, rows)
    for row in rows:
        split, why = matrices[id(row.param)]
        if whole and "optimizer" not in row.by:
            row.optimizer = "muon" if split else row.optimizer
            if row.kind == "weight" and not row.frozen:
                row.reason += f"; {row.optimizer}: {why}"
        if row.optimizer == "muon" and split > 1 and not row.frozen:
            row.settings = {"split": split, **row.settings}


def _matrices(row: Row, owner: nn.Module, *, first: bool, last: bool) -> Matrices:
    linear = is_weighted(type(owner))  # type: ignore[arg-type]  # classes are hashable
    if row.kind != "weight" and not (row.kind == "adapter" and linear):
        return Matrices(0, row.kind)
    if last:
        return Matrices(0, "output layer")
    if len(row.shape) > 2 and not linear:
        return Matrices(0, f"{len(row.shape)} dimensions: a rule with split says where its matrices are")
    convolution = isinstance(owner, ConvNd)
    if first and convolution:
        return Matrices(0, "input layer")
    groups = int(owner.groups) if convolution else 1  # type: ignore[arg-type]
    rows, columns = row.shape[0] // groups, math.prod(row.shape[1:])
    if min(rows, columns) < 2:
        return Matrices(0, "depthwise convolution" if groups > 1 else "one row or column")
    if len(row.shape) == 2:
        return Matrices(1, "hidden matrix")
    return Matrices(groups, f"{f'{groups} groups, each ' if groups > 1 else ''}flattened to ({rows}, {columns})")
