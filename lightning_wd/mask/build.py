"""From a module and a mask to a plan: every tensor once, each property from the first evidence that speaks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_wd.decay import check_style
from lightning_wd.errors import MaskError, explain
from lightning_wd.mask.evidence import EXEMPT, classify
from lightning_wd.mask.hooks import hooked_names, marks
from lightning_wd.mask.layers import layer_scales
from lightning_wd.mask.names import Found, Tree, authors_class, walk
from lightning_wd.mask.output import output_parameters
from lightning_wd.mask.plan import DecayPlan, Row
from lightning_wd.mask.rules import Mask, as_mask
from lightning_wd.mask.strict import check_effective, check_placed, check_rules, check_styles, warn_spared

__all__ = ["plan_decay"]

_BASE_RANK = 1_000_000  # after any number of the user's rules


class _Verdict(NamedTuple):
    """What the evidence says about one name; a rank is the position of the evidence that said it."""

    decay: float | None
    lr: float | None
    style: str | None
    ranks: Mapping[str, int]
    reason: str
    settings: Mapping[str, Any]
    spared: bool  # whether a rule makes it decay that the base leaves out

    def rank(self, key: str) -> int:
        return self.ranks.get(key, _BASE_RANK)


def plan_decay(
    module: nn.Module,
    mask: Mask | str | Mapping[str, Any] | None = None,
    style: str | None = None,
    *,
    include_frozen: bool = False,
) -> DecayPlan:
    """Plan which parameters of ``module`` decay: each tensor once, with its multipliers and the reason.

    Evidence in order, and for each property (decay, lr, style) the first that speaks wins: the mask's rules; hooks and
    marks of the model's author; biases; norm layers; weight_norm magnitudes; scalars and vectors; tables of positions
    and tokens; embeddings, as the mask's base says; the rest decays.

    A tied tensor is planned under all its names: exclusion wins where they disagree, then the earlier evidence, and a
    warning names them. A warning also names the biases and norms that a rule decays beside other parameters, as
    ``*.head.*`` would. With style ``corrected`` the output layer stays ``decoupled``, unless a rule says otherwise. The
    module may be wrapped (compiled, DDP, FSDP2, checkpointed), on the meta device, or a LightningModule.

    Args:
        module: the module whose parameters are planned.
        mask: a Mask, a preset's name, or a mapping ``{base: standard, rules: [...]}``; None is ``standard``.
        style: the decay style of the optimizer, one of :data:`lightning_wd.decay.STYLES`; None leaves it open.
        include_frozen: plan frozen parameters as if they were trainable, to unfreeze them later.

    Raises:
        MaskError: a rule that matches nothing or changes nothing; with ``base=None``, a parameter that no rule places;
            lazy parameters, and FSDP1's flat ones, whose shapes are not known; TorchScript's, whose layers are not.
        ConfigError: an unknown style.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        >>> plan = plan_decay(net, {"rules": [{"name": "0.*", "lr": 2}]})
        >>> [(row.name, row.decay, row.lr) for row in plan]
        [('0.weight', 1.0, 2.0), ('0.bias', 0.0, 2.0), ('1.weight', 0.0, 1.0), ('1.bias', 0.0, 1.0)]
    """
    mask = as_mask(mask)
    if style is not None:
        check_style(style)
    tree = walk(module)
    _check_shapes(tree)
    scales = layer_scales(module, tree, mask.layer_decay) if mask.layer_decay is not None else {}
    decider = _Decider(mask, tree)
    output = output_parameters(module, tree) if style == "corrected" else frozenset()
    firsts: dict[int, Found] = {}
    ties: dict[int, list[Found]] = {}
    for found in tree.tensors:
        if firsts.setdefault(id(found.param), found) is not found:
            ties.setdefault(id(found.param), []).append(found)
    rows: list[Row] = []
    unplaced: list[str] = []
    styled: dict[int, bool] = {}  # by a rule's position: whether anything that takes its style decays
    decayed: dict[int, list[tuple[Row, bool]]] = {}  # by a rule's position: what it makes decay, and whether spared
    for tensor, first in firsts.items():
        kind = classify(first)
        verdict = decider.decide(first, kind)
        names: tuple[str, ...] = (first.name,)
        tied = ties.get(tensor)
        if tied:
            names += tuple(found.name for found in tied)
            verdicts = [verdict, *(decider.decide(found, classify(found)) for found in tied)]
        if not (include_frozen or first.param.requires_grad):
            rows.append(Row(first.name, names, first.param, 0.0, 1.0, style, "frozen", kind, {}, frozen=True))
            continue
        if tied:
            verdict = _reconcile(names, verdicts)
        if verdict.decay is None:
            unplaced.append(first.name)
        decay = _factor(verdict.decay)
        its_style = verdict.style
        if its_style is None or not decay:
            its_style = "decoupled" if decay and tensor in output else style
        lr = _factor(verdict.lr if "lr" in verdict.settings or verdict.lr is not None else scales.get(tensor))
        row = Row(first.name, names, first.param, decay, lr, its_style, verdict.reason, kind, verdict.settings)
        rows.append(row)
        if "style" in verdict.ranks:
            styled[verdict.ranks["style"]] = styled.get(verdict.ranks["style"], False) or bool(decay)
        if decay and "decay" in verdict.ranks:
            decayed.setdefault(verdict.ranks["decay"], []).append((row, verdict.spared))
    check_rules(mask.rules, decider.counts, rows, tree)
    check_effective(mask.rules, decider.winners)
    check_styles(mask.rules, styled)
    check_placed(unplaced)
    warn_spared(mask, decayed)
    return DecayPlan(tuple(rows), style)


class _Decider:
    """Asks the evidence about one name at a time, and counts what each of the user's rules matched."""

    def __init__(self, mask: Mask, tree: Tree) -> None:
        self.mask = mask
        self.exempt = EXEMPT[mask.base] if mask.base else frozenset()
        self.heeds_hooks = mask.base in ("standard", "no_embeddings", "matrices")
        self.hooked = hooked_names(tree) if tree.hooked and self.heeds_hooks else {}
        self.counts = [0] * len(mask.rules)
        # By rule: the first earlier rule that decides all it would, or None where it decides something itself.
        self.winners: dict[int, int | None] = {}
        # Most tensors differ from another in nothing that decides: kind, class, and the rules that match.
        self.known: dict[tuple[str, type, tuple[int, ...]], _Verdict] = {}

    def decide(self, found: Found, kind: str) -> _Verdict:
        param, module = found.param, found.module
        matched: tuple[int, ...] = ()
        for i, rule in enumerate(self.mask.rules):
            if rule.matches(found.name, param, module):
                matched += (i,)
                self.counts[i] += 1
        hook = self.hooked.get(found.name, "")
        if hook or hasattr(param, "_no_weight_decay") or hasattr(param, "_optim"):
            return self._decide(found, kind, matched, hook)
        key = (kind, type(module), matched)
        verdict = self.known.get(key)
        if verdict is None:
            verdict = self.known[key] = self._decide(found, kind, matched, hook)
        return verdict

    def _decide(self, found: Found, kind: str, matched: tuple[int, ...], hook: str) -> _Verdict:
        said: dict[str, Any] = {}
        ranks: dict[str, int] = {}
        why: dict[str, str] = {}
        for i in matched:
            rule = self.mask.rules[i]
            for key, value in rule.settings.items():
                if key not in said:
                    said[key], ranks[key], why[key] = value, i, rule.reason or f"rule {rule}"
                    self.winners[i] = None
                else:
                    self.winners.setdefault(i, ranks[key])
        settings: dict[str, Any] = {}
        spared = False
        if self.mask.base is not None:
            mark, settings = marks(found.name, found.param)
            own_decay = settings.pop("weight_decay", None)
            if "decay" in said:
                spared = self.heeds_hooks and not self._base(found, kind, hook or mark)[0]
            else:
                said["decay"], why["decay"] = self._base(found, kind, hook or mark)
                if own_decay and self.heeds_hooks:
                    said["decay"], why["decay"], settings["weight_decay"] = 1.0, "mark _optim", own_decay
            if "lr" in said:
                settings.pop("lr", None)
        reason = "; ".join(
            why[key] if key == "decay" else f"{key} {said[key] if key == 'style' else f'x{said[key]:g}'} by {why[key]}"
            for key in ("decay", "lr", "style")
            if key in why and not (key == "style" and not said.get("decay"))
        )
        return _Verdict(said.get("decay"), said.get("lr"), said.get("style"), ranks, reason, settings, spared)

    def _base(self, found: Found, kind: str, declared: str) -> tuple[float, str]:
        if not self.heeds_hooks:
            return float(self.mask.base == "all"), f"mask {self.mask.base}"
        if declared:
            return 0.0, declared
        reason = (
            f"norm layer {authors_class(type(found.module)).__name__}" if kind == "norm" else _REASONS.get(kind, kind)
        )
        return float(kind not in self.exempt), reason


_REASONS = {
    "magnitude": "weight_norm magnitude",
    "state": "state-space parameter",
    "vector": "vector or scalar",
    "table": "table of positions or tokens",
}


def _factor(multiplier: float | None) -> float:
    return 1.0 if multiplier is None else multiplier


def _reconcile(names: tuple[str, ...], verdicts: list[_Verdict]) -> _Verdict:
    """Merge what the evidence says about the names of one tensor: exclusion wins, then the earlier evidence."""
    first = verdicts[0]
    merged = min(verdicts, key=lambda v: (v.decay != 0, v.rank("decay"), v.decay is None))._replace(
        lr=min(verdicts, key=lambda v: v.rank("lr")).lr,
        style=min(verdicts, key=lambda v: v.rank("style")).style,
    )
    if any((v.decay, v.lr, v.style) != (first.decay, first.lr, first.style) for v in verdicts):
        said = "; ".join(
            f"{name}: decay {v.decay}, lr {_factor(v.lr):g} ({v.reason})"
            for name, v in zip(names, verdicts, strict=True)
        )
        warnings.warn(
            f"the mask disagrees about one tied tensor: {said}. "
            f"Exclusion wins, then the earlier evidence: decay {merged.decay}, lr {_factor(merged.lr):g}. "
            "To say so yourself, write a rule that matches each of its names.",
            UserWarning,
            stacklevel=3,
        )
    return merged


def _check_shapes(tree: Tree) -> None:
    lazy = [found.name for found in tree.tensors if type(found.param) is not nn.Parameter and is_lazy(found.param)]
    if lazy:
        raise MaskError(
            explain(
                f"{len(lazy)} lazy parameter{'s have' if len(lazy) > 1 else ' has'} no shape yet.",
                found=_listed(lazy),
                fix="run a dummy batch through the module before its optimizer is configured",
            )
        )
    mine = {id(p) for module in tree.scripted for p in module._parameters.values() if p is not None and p.requires_grad}
    scripted = [found.name for found in tree.tensors if id(found.param) in mine] if mine else []
    if scripted:
        raise MaskError(
            explain(
                "TorchScript keeps no layer types, so which of these are norms, embeddings or matrices is lost.",
                found=_listed(scripted),
                fix="plan and train the module before torch.jit.script or torch.jit.trace, or freeze what is scripted",
            )
        )
    flat = [name for wrapper in tree.fsdp for name in _flattened(wrapper, tree)]
    if flat:
        raise MaskError(
            explain(
                "FSDP1 has flattened parameters, so which of them are biases, norms or matrices is lost.",
                found=_listed(flat),
                fix="plan before wrapping, or use FSDP2 (fully_shard; Lightning's ModelParallelStrategy)",
            )
        )


def _flattened(fsdp: nn.Module, tree: Tree) -> list[str]:
    """Name what an FSDP1 wrapper has flattened: one long parameter, or with use_orig_params pieces without a shape."""
    handle: Any = fsdp._handle
    if handle is None:  # it wraps nothing that has parameters
        return []
    flat = handle.flat_param
    pieces = {
        id(getattr(info.module, info.param_name)): shape
        for info, shape in zip(flat._param_infos, flat._shapes, strict=True)
    }
    return [
        found.name
        for found in tree.tensors
        if found.param is flat or found.param.shape != pieces.get(id(found.param), found.param.shape)
    ]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
