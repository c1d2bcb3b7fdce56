"""The plan: one row for each tensor of a module, with what it gets and why, and the parameter groups they make."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from lightning_wd.conversions import peak_equal
from lightning_wd.errors import MaskError, nearest, number, warn
from lightning_wd.mask.module_tree import whole_shape
from lightning_wd.styles import NO_AMOUNT

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["DecayPlan", "Difference", "Row"]

_FAR = 100  # times the configured learning rate: a group's own rate above it is likely a multiplier
_NO_FRACTION = ("l2", *NO_AMOUNT, None)  # styles without a fraction of the weights that each step removes


@dataclass(slots=True, eq=False)
class Row:
    """What one tensor gets, and why."""

    names: tuple[str, ...]  # without the prefixes of wrappers; more than one where the tensor is tied
    param: Tensor
    wd_mult: float  # multiplies weight_decay; 0 excludes
    lr_mult: float
    style: str | None  # None where neither the plan nor a rule names one
    reason: str  # what decided
    kind: str  # one of evidence.KINDS, whatever the rules say
    settings: Mapping[str, Any]  # its group takes them as they are: a rule's absolutes and hyperparameters, a mark's
    optimizer: str | None = None  # what steps it; None where neither the plan nor a rule names one
    toward: str = "zero"  # what it decays towards
    by: Mapping[str, int] = field(default_factory=dict)  # property -> position of the rule that decides it
    frozen: bool = False  # it does not train, so it is in no group
    group: str | None = None  # the name of its group, which the plan gives; None where it is frozen
    shape: tuple[int, ...] = field(init=False)  # the whole tensor's where it is sharded; FSDP1 may cut it up later

    def __post_init__(self) -> None:
        self.shape = tuple(whole_shape(self.param))

    @property
    def name(self) -> str:
        """The tensor's first name."""
        return self.names[0]

    @property
    def numel(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        keys = "name names shape numel wd_mult lr_mult style toward optimizer group reason kind".split()
        row = {key: list(v) if isinstance(v := getattr(self, key), tuple) else v for key in keys}
        if self.settings:  # text where JSON has no such type
            text = json.dumps(dict(self.settings), default=lambda v: v.tolist() if isinstance(v, Tensor) else repr(v))
            row["settings"] = json.loads(text)
        return row

    def __repr__(self) -> str:
        return f"Row({self.name!r}, shape={self.shape}, group={self.group!r}, reason={self.reason!r})"


class Difference(NamedTuple):
    """A tensor that two plans treat differently; a side is None where that plan lacks the tensor."""

    name: str
    this: Row | None
    other: Row | None

    def __str__(self) -> str:
        sides = (f"{row.group or 'frozen'} ({row.reason})" if row else "absent" for row in (self.this, self.other))
        return f"{self.name}: {' / '.join(sides)}"


@dataclass(frozen=True, eq=False)
class DecayPlan:
    """Which parameters decay, by how much, and why: an iterable of rows in the order of ``named_parameters()``.

    Example:
        >>> from torch import nn
        >>> from lightning_wd import plan_decay
        >>> plan = plan_decay(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)))
        >>> [(row.name, row.group, row.reason) for row in plan]  # doctest: +NORMALIZE_WHITESPACE
        [('0.weight', 'decay', 'weight'), ('0.bias', 'no_decay', 'bias'),
         ('1.weight', 'no_decay', 'norm layer LayerNorm'), ('1.bias', 'no_decay', 'bias')]
        >>> [(g["name"], g["weight_decay"]) for g in plan.groups(lr=1e-3, weight_decay=0.1)]
        [('decay', 0.1), ('no_decay', 0.0)]
    """

    rows: tuple[Row, ...]
    style: str | None = None
    optimizer: str | None = None  # what steps the rows that no rule gives another one
    toward: str = "zero"  # what the rows decay towards that no rule gives another point

    def __post_init__(self) -> None:
        named: dict[Any, str] = {}
        for row in self.rows:
            if not row.frozen:
                key = _key(row)
                if key not in named:
                    named[key] = _group_name(row, self, taken=named.values())
                row.group = named[key]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Row:
        row = self._by_name.get(name)
        if row is None:
            close = nearest(name, self._by_name)
            raise KeyError(f"no parameter {name!r} in the plan" + (f"; nearest: {close!r}" if close else ""))
        return row

    def extend(self, rows: Iterable[Row]) -> None:
        """Add rows of another plan of the same module, which has gained parameters since."""
        self.__dict__["rows"] = (*self.rows, *rows)
        for cached in ("_by_name", "optimizers"):
            self.__dict__.pop(cached, None)

    @cached_property
    def _by_name(self) -> dict[str, Row]:
        return {name: row for row in self.rows for name in row.names}

    @cached_property
    def optimizers(self) -> tuple[str | None, ...]:
        """What steps the rows, or would step them if they were not frozen, in their order."""
        return tuple(dict.fromkeys(row.optimizer for row in self.rows))

    def groups(self, *, lr: Any, weight_decay: float, **defaults: Any) -> list[dict[str, Any]]:
        """Return parameter groups for a torch optimizer, with ``weight_decay * row.wd_mult`` and ``lr * row.lr_mult``.

        ``params`` holds (name, parameter) pairs, so that checkpoints hold the names. Parameters with equal settings
        share a group; ``decay`` comes first, then ``no_decay``, then the others in the order of their first parameters.

        Where a rule sets the style, the decay stays as strong at the peak: between ``decoupled``, ``corrected``,
        ``independent`` and ``constant`` the coefficient is converted by ``lam_independent = lr * lam_decoupled``. L2
        has no equivalent in another unit, so its group uses the number unchanged. A rule's own ``weight_decay`` is in
        the unit of its group's style and is not converted; its ``lr`` is the group's peak. A rule's ``optimizer`` is in
        its group, for :class:`lightning_wd.MultiOptimizer`.

        Args:
            lr: peak learning rate, >= 0; a float or a 0-dim tensor.
            weight_decay: ``lam >= 0`` in the unit of the plan's style.
            **defaults: further settings, the same for every group; ``optimizer="adamw"`` names the optimizer of groups
                without a rule's.

        Raises:
            MaskError: the plan has no trainable parameter.
            ConfigError: ``lr`` or ``weight_decay`` out of range.
        """
        peak = number("lr", lr.item() if isinstance(lr, Tensor) else lr)
        return self.groups_of_checked(lr, peak, number("weight_decay", weight_decay), **defaults)

    def groups_of_checked(
        self,
        lr: Any,
        peak: float,
        amount: float,
        own: Mapping[str, Mapping[str, Any]] = {},
        *,
        beside: tuple[float, float] | None = None,
        **defaults: Any,
    ) -> list[dict[str, Any]]:
        """Return the groups for numbers that were checked; ``peak`` is ``lr`` as a float.

        ``own`` has the ``lr`` and ``weight_decay`` of an optimizer that has others. ``beside`` has the peak and the
        amount that go with rates of their own, where ``lr`` is a finder's, which does not touch these.
        """
        members: dict[str, list[Row]] = {"decay": [], "no_decay": []}
        for row in self.rows:
            if row.group is not None:
                members.setdefault(row.group, []).append(row)
        groups = []
        for name, rows in members.items():
            if rows:
                first = rows[0]
                its = own.get(str(first.optimizer), {})
                apart = "lr" in its or "lr" in first.settings
                its_peak, its_amount = beside if apart and beside else (peak, amount)
                its_peak = its.get("lr", its_peak)
                group = {
                    **defaults,
                    "params": [(row.name, row.param) for row in rows],
                    "name": name,
                    "lr": its.get("lr", lr) * first.lr_mult,
                    "base_lr": first.settings.get("lr", its_peak * first.lr_mult),
                    "weight_decay": self._coefficient(first, its.get("weight_decay", its_amount), its_peak),
                    **first.settings,
                    **({} if first.style is None else {"style": first.style}),
                    **({} if self.toward == first.toward == "zero" else {"toward": first.toward}),
                    **({} if first.optimizer is None else {"optimizer": first.optimizer}),
                }
                if 0 < _FAR * peak < first.settings.get("lr", 0.0):
                    warn(
                        f"group {name!r} runs at a peak learning rate of {group['base_lr']:g}, more than {_FAR} times "
                        f"the configured {peak:g}.",
                        fix="in a rule, lr is the rate itself; write lr_mult to multiply",
                    )
                groups.append(group)
        if not groups:
            raise MaskError(
                "the plan has no trainable parameter, so there is nothing to optimize.",
                found=f"{len(self.rows)} parameters, all frozen" if self.rows else "no parameter at all",
                fix="set requires_grad=True on what should train, or pass the module that holds the parameters",
            )
        return groups

    def _coefficient(self, row: Row, amount: float, peak: float) -> float:
        if row.style == "hyperball":
            return 0.0
        if "weight_decay" in row.settings:
            return float(row.settings["weight_decay"])
        if not amount or not row.wd_mult or row.style == self.style:
            return amount * row.wd_mult
        if row.style not in _NO_FRACTION and self.style not in _NO_FRACTION:
            return peak_equal(amount, from_=self.style, to=row.style, lr=peak) * row.wd_mult
        if "l2" in (row.style, self.style):
            warn(
                f"group {row.group!r} has style {row.style!r}, and weight_decay was given for {self.style!r}. An L2 "
                f"penalty has no equivalent in another unit, so the number {amount:g} is used unchanged.",
                fix="give the group its own amount with the rule's weight_decay",
            )
        return amount * row.wd_mult

    def table(self) -> Table:
        """The plan as a rich table: one line for each parameter, and the totals of each group."""
        from lightning_wd.mask.tables import plan_table

        return plan_table(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data: style, totals by group, and one entry for each parameter."""
        totals: dict[str, dict[str, int]] = {}
        for row in self.rows:
            total = totals.setdefault(row.group or "frozen", {"tensors": 0, "numel": 0})
            total["tensors"] += 1
            total["numel"] += row.numel
        return {"style": self.style, "totals": totals, "parameters": [row.to_dict() for row in self.rows]}

    def diff(self, other: DecayPlan) -> tuple[Difference, ...]:
        """Return the tensors that two plans treat differently; empty where they agree.

        Example:
            >>> from torch import nn
            >>> from lightning_wd import plan_decay
            >>> net = nn.Linear(4, 8)
            >>> print(*plan_decay(net).diff(plan_decay(net, "all")))
            bias: no_decay (bias) / decay (mask all)
        """
        differences = []
        for row in self.rows:
            twin = other._by_name.get(row.name)
            if twin is None or (twin.group is None) != (row.group is None) or _key(twin) != _key(row):
                differences.append(Difference(row.name, row, twin))
        extra = (row for row in other.rows if row.name not in self._by_name)
        return (*differences, *(Difference(row.name, None, row) for row in extra))


def _key(row: Row) -> Any:
    own = tuple(sorted((key, repr(value)) for key, value in row.settings.items())) if row.settings else ()
    return row.wd_mult, row.lr_mult, row.style, row.toward, row.optimizer, own


def _group_name(row: Row, plan: DecayPlan, taken: Container[str]) -> str:
    """Return a name such as ``decay``, ``no_decay``, ``decay_x0.1_lr_x10``, ``decay_decoupled`` or ``decay_sgdw``."""
    own = dict(row.settings)
    wd, lr = own.pop("weight_decay", None), own.pop("lr", None)

    def named(digits: int) -> str:
        parts = ["decay" if row.wd_mult else "no_decay"]
        for prefix, value, factor in (("", wd, row.wd_mult or 1), ("lr_", lr, row.lr_mult)):
            if value is not None:
                parts.append(f"{prefix}{value:.{digits}g}")
            elif factor != 1:
                parts.append(f"{prefix}x{factor:.{digits}g}")
        if row.style != plan.style and not (plan.style == "hyperball" and not row.wd_mult):
            parts.append(str(row.style))
        if row.wd_mult and row.toward != plan.toward:
            parts.append(f"toward_{Path(row.toward).stem}")
        if row.optimizer != plan.optimizer:
            parts.append(str(row.optimizer).rpartition(".")[2])
        return "_".join([*parts, *(f"{key}_{_short(value)}" for key, value in sorted(own.items()))])

    numbered = (f"{named(17)}_{i}" for i in itertools.count(2))
    return next(name for name in itertools.chain((named(6), named(17)), numbered) if name not in taken)


def _short(value: Any) -> str:
    return "_".join(map(_short, value)) if isinstance(value, (list, tuple)) else str(value)
