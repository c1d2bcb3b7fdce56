"""The plan: one row for each tensor of a module, with what it gets and why, and the parameter groups they make."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from lightning_wd.decay import check_number, check_style, convert
from lightning_wd.errors import MaskError, explain, nearest
from lightning_wd.mask.names import whole_shape

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["DecayPlan", "Difference", "Row"]

_PEAK_UNIT = {
    "decoupled": "decoupled",
    "corrected": "decoupled",
    "independent": "independent",
    "constant": "independent",
}


class Row:
    """What one tensor gets, and why.

    Attributes:
        name: its first name, without the prefixes of wrappers.
        names: all its names; more than one where it is tied.
        decay: multiplies ``weight_decay``; 0 excludes.
        lr: multiplies ``lr``.
        style: its decay style; None where neither the plan nor a rule names one.
        group: the name of its group; None where it is frozen.
        reason: what decided.
        kind: what it is: one of :data:`lightning_wd.mask.evidence.KINDS`, whatever the rules say.
        settings: settings of its group that its author marked it with (``_optim``), taken as they stand.
        frozen: it does not train, so it is in no group.
        param: the tensor.
    """

    __slots__ = ("decay", "frozen", "group", "kind", "lr", "name", "names", "param", "reason", "settings", "style")

    def __init__(
        self,
        name: str,
        names: tuple[str, ...],
        param: Tensor,
        decay: float,
        lr: float,
        style: str | None,
        reason: str,
        kind: str,
        settings: Mapping[str, Any],
        *,
        frozen: bool = False,
    ) -> None:
        self.name, self.names, self.param = name, names, param
        self.decay, self.lr, self.style, self.reason = decay, lr, style, reason
        self.kind, self.settings, self.frozen = kind, settings, frozen
        self.group: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape; the whole tensor's where it is sharded."""
        return tuple(whole_shape(self.param))

    @property
    def numel(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        keys = ("name", "names", "shape", "numel", "decay", "lr", "style", "group", "reason", "kind")
        row = {key: list(v) if isinstance(v := getattr(self, key), tuple) else v for key in keys}
        return {**row, **({"settings": _plain(self.settings)} if self.settings else {})}

    def __repr__(self) -> str:
        return f"Row({self.name!r}, shape={self.shape}, group={self.group!r}, reason={self.reason!r})"


class Difference(NamedTuple):
    """A tensor that two plans treat differently; None stands where a plan does not have it."""

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

    def __post_init__(self) -> None:
        if self.style is not None:
            check_style(self.style)
        named: dict[Any, str] = {}
        for row in self.rows:
            if row.frozen:
                continue
            key = _key(row)
            if key not in named:
                named[key] = _group_name(row, self.style, taken=named.values())
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

    @cached_property
    def _by_name(self) -> dict[str, Row]:
        return {name: row for row in self.rows for name in row.names}

    def groups(self, *, lr: Any, weight_decay: float, **defaults: Any) -> list[dict[str, Any]]:
        """Return parameter groups for a torch optimizer: ``weight_decay * row.decay`` and ``lr * row.lr`` each.

        ``params`` holds (name, parameter) pairs, so that checkpoints hold the names. Groups with equal settings are
        one group; ``decay`` comes first, then ``no_decay``, then the others as their first parameter does.

        A rule's style keeps the strength of the decay at the peak and changes how it follows the schedule: between
        ``decoupled``, ``corrected``, ``independent`` and ``constant`` the coefficient is converted by
        ``lam_independent = lr * lam_decoupled``. An L2 penalty has no such equal: its group takes the number as it is.

        Args:
            lr: peak learning rate, >= 0; a float or a 0-dim tensor.
            weight_decay: ``lam >= 0`` in the unit of the plan's style.
            **defaults: further settings of every group.

        Raises:
            MaskError: the plan has no trainable parameter.
            ConfigError: ``lr`` or ``weight_decay`` out of range.
        """
        peak = check_number("lr", lr.item() if isinstance(lr, Tensor) else lr)
        amount = check_number("weight_decay", weight_decay)
        members: dict[str, list[Row]] = {"decay": [], "no_decay": []}
        for row in self.rows:
            if row.group is not None:
                members.setdefault(row.group, []).append(row)
        groups = []
        for name, rows in members.items():
            if not rows:
                continue
            first = rows[0]
            group = {
                **defaults,
                "params": [(row.name, row.param) for row in rows],
                "name": name,
                "lr": lr * first.lr,
                "base_lr": peak * first.lr,
                "weight_decay": self._coefficient(first, amount, peak),
                **first.settings,
            }
            if "lr" in first.settings:
                group["base_lr"] = first.settings["lr"]
            if first.style is not None:
                group["style"] = first.style
            groups.append(group)
        if not groups:
            raise MaskError(
                explain(
                    "the plan has no trainable parameter, so there is nothing to optimize.",
                    found=f"{len(self.rows)} parameters, all frozen" if self.rows else "no parameter at all",
                    fix="set requires_grad=True on what shall train, or pass the module that holds the parameters",
                )
            )
        return groups

    def _coefficient(self, row: Row, amount: float, peak: float) -> float:
        mine, whole = _PEAK_UNIT.get(row.style or ""), _PEAK_UNIT.get(self.style or "")
        if amount and row.decay and mine and whole and mine != whole:
            amount = convert(amount, from_=whole, to=mine, lr=peak)
        elif amount and row.decay and row.style != self.style and "l2" in (row.style, self.style):
            warnings.warn(
                f"group {row.group!r} has style {row.style!r} under a weight_decay given for {self.style!r}: an L2 "
                f"penalty has no equal in another unit, so the number {amount:g} is taken as it is. Say the group's "
                "amount with the rule's `decay`, which multiplies it.",
                UserWarning,
                stacklevel=3,
            )
        return amount * row.decay

    def table(self) -> Table:
        """The plan as a rich table: one line for each parameter, and the totals of each group."""
        from lightning_wd.report import plan_table

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
        """Return what two plans treat differently, by name: empty where they agree.

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


def _plain(value: Any) -> Any:
    """Return a setting as plain data; what has no such form as its text."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _key(row: Row) -> Any:
    if row.settings:
        return row.decay, row.lr, row.style, tuple(sorted((k, repr(v)) for k, v in row.settings.items()))
    return row.decay, row.lr, row.style


def _group_name(row: Row, style: str | None, taken: Any) -> str:
    """Return a name such as ``decay``, ``no_decay``, ``decay_x0.1_lr_x10`` or ``decay_decoupled``."""
    settings = dict(row.settings)
    parts = ["decay" if row.decay else "no_decay"]
    for digits in (6, 17):
        parts = ["decay" if row.decay else "no_decay"]
        if "weight_decay" in settings:
            parts.append(f"{settings['weight_decay']:.{digits}g}")
        elif row.decay not in (0, 1):
            parts.append(f"x{row.decay:.{digits}g}")
        if "lr" in settings:
            parts.append(f"lr_{settings['lr']:.{digits}g}")
        elif row.lr != 1:
            parts.append(f"lr_x{row.lr:.{digits}g}")
        if row.style != style:
            parts.append(str(row.style))
        parts += [f"{key}_{value}" for key, value in sorted(settings.items()) if key not in ("lr", "weight_decay")]
        if "_".join(parts) not in taken:
            return "_".join(parts)
    numbered = (f"{'_'.join(parts)}_{i}" for i in itertools.count(2))
    return next(name for name in numbered if name not in taken)
