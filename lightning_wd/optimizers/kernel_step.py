"""The step by torch's kernels or in one compiled pass: what AdamW, SGDW and Muon share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_wd._private import graph_capture_check, use_grad_for_differentiable
from lightning_wd.optimizers.base import DecayGroups
from lightning_wd.optimizers.compiled import MIN_NATIVE, compiles, is_native, kinds_of, native_ready, run_pass
from lightning_wd.optimizers.formula import Flags, Formula
from lightning_wd.optimizers.hyperball import turns
from lightning_wd.optimizers.kernels import Part, Work, choose_kernels, pulls
from lightning_wd.optimizers.pieces import can_be_cut, pieces

__all__ = ["KernelStep"]


class KernelStep(DecayGroups):
    """The step by torch's kernels: each part of each group goes to the kernel that is right for it."""

    formula: ClassVar[Formula]  # the whole step, for the compiled pass

    @use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step; the closure, if any, runs first and returns the loss, before any weight changes.

        Raises:
            ConfigError: ``fused=True`` on a parameter whose layout differs from its gradient's.
        """
        if "capturable" in self.defaults:
            graph_capture_check(self)
        loss = self._run_closure(closure)
        self._meet_groups()
        self._initialising = self._initialises_state()
        # All groups are checked before any is changed.
        for group, columns, special, parts in [self._collect(*item) for item in enumerate(self.param_groups)]:
            in_passes = group["cautious_wd"] or group["kahan"] or group["toward"] != "zero"
            for part in parts:
                taken = part.take(columns)
                if part.compiled:
                    self._update_compiled(group, taken, part)
                elif part.fused and in_passes and can_be_cut(taken):
                    for piece, state in pieces(taken, self.state):
                        self._update(group, piece, special, part, state)
                else:
                    self._update(group, taken, special, part, self.state)
        return loss

    def _collect(self, index: int, group: dict[str, Any]) -> Work:
        raise NotImplementedError

    def _parts(
        self,
        index: int,
        group: dict[str, Any],
        params: list[Tensor],
        columns: list[list[Tensor]],
        states: list[dict[str, Any]] | None = None,
        **how: Any,
    ) -> tuple[list[Part], list[list[Any]]]:
        """Choose the kernels of a group's tensors; those on a hyperball are parts of their own.

        Also return two columns, of anchors and of radii; one that the group has not is empty. A caller that has looked
        the states up passes them: each look-up hashes a weight.
        """
        kinds = kinds_of(params)
        anchors, radii = [], []
        if group["kahan"] or group["toward"] != "zero" or group["style"] == "hyperball":
            states = self._keep_own_state(group, params, kinds, states)
            anchors = [state["anchor"] for state in states] if pulls(group) else []
            radii = [state.get("radius") for state in states] if group["style"] == "hyperball" else []
        turning = [radius is not None for radius in radii]
        halves = {*turning} or {False}
        compile = self._compiled(group, params, kinds, halves)
        columns = [*columns, anchors]
        parts = choose_kernels(group, params, columns, kinds, index=index, compile=compile, **how)
        if len(halves) > 1:
            parts = [half for part in parts for half in part.split(turning)]
        return parts, [anchors, radii]

    def _compiled(
        self, group: dict[str, Any], params: list[Tensor], kinds: dict[Any, Tensor], turning: set[bool]
    ) -> Callable[[Tensor], bool] | None:
        """Return which weights the compiled pass is to step; None for no weight.

        By default those of the C++ call, where torch's own kernel lacks the style and there are enough of them.
        """
        if self._compile is not None:
            return compiles if self._compile else None
        if group["fused"] is not None or group["foreach"] is not None:
            return None
        if torch.compiler.is_compiling() or self._in_kernel(group):
            return None
        if any(map(group.get, ("differentiable", "capturable", "kahan"))):
            return None
        dtypes = [p.dtype for p in kinds.values() if is_native(p)]
        if not dtypes or all(numel < MIN_NATIVE for numel in accumulate(map(Tensor.numel, params))):
            return None
        variants = [(dtype, self._flags(group, turn)) for dtype in dtypes for turn in turning]
        return is_native if all(native_ready(self.formula, *variant) for variant in variants) else None

    def _in_kernel(self, group: dict[str, Any]) -> bool:
        """Whether torch's own kernel does the whole step of a group."""
        raise NotImplementedError

    def _flags(self, group: dict[str, Any], turning: bool) -> Flags:
        """Return the terms of a group's formula, for weights on a hyperball or for others."""
        on = {"maximize": group["maximize"], "hyperball": turning, "cautious": group["cautious_wd"]}
        on |= {"l2": group["style"] == "l2", "toward": pulls(group)}
        on |= {"narrow_anchor": pulls(group) and group["anchor_dtype"] is not None}
        return frozenset(flag for flag, is_on in on.items() if is_on)

    def _update(
        self, group: dict[str, Any], columns: list[list[Any]], special: bool, part: Part, state: Mapping[Tensor, Any]
    ) -> None:
        raise NotImplementedError

    def _update_compiled(self, group: dict[str, Any], columns: list[list[Any]], part: Part) -> None:
        raise NotImplementedError

    def _run_pass(
        self, group: dict[str, Any], part: Part, columns: dict[str, Any], rows: dict[str, Any], **numbers: Any
    ) -> None:
        """Run the compiled pass on weights that all turn or all do not."""
        flags = self._flags(group, turns(group, columns["w"][0]))
        rows = {**rows, "radius": columns["radius"]}
        lam = group["weight_decay"] if "l2" in flags else 0.0
        numbers |= {"lr": group["lr"], "d": self._fraction(group), "lam": lam}
        run_pass(self.formula, flags, columns, rows, numbers, alike=part.alike)
