"""From a module and a mask to a plan: every tensor once, each property from the first evidence that sets it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_wd.errors import MaskError, checked_keywords, listed, warn
from lightning_wd.mask.dead_rules import RuleUse, check_uses
from lightning_wd.mask.evidence import EXEMPT, classify
from lightning_wd.mask.hidden_matrices import give_to_muon
from lightning_wd.mask.hooks import hooked_names, marks
from lightning_wd.mask.layers import layer_scales, output_parameters
from lightning_wd.mask.masks import Mask, as_mask
from lightning_wd.mask.module_tree import Found, Tree, authors_class, walk, whole_shape
from lightning_wd.mask.plan import DecayPlan, Row
from lightning_wd.mask.rules import PROPERTIES
from lightning_wd.styles import NO_AMOUNT, check_style

__all__ = ["plan_checked", "plan_decay"]

_REASONS = {
    "adapter": "adapter, zero is the base model",
    "magnitude": "magnitude of weight_norm or DoRA",
    "state": "state-space parameter",
    "scale": "scale or distribution parameter",
    "vector": "vector or scalar",
    "table": "table of positions or tokens",
}


@checked_keywords()
def plan_decay(
    module: nn.Module,
    mask: Mask | str | Mapping[str, Any] | None = None,
    style: str | None = None,
    *,
    include_frozen: bool = False,
) -> DecayPlan:
    """Plan which parameters of ``module`` decay: each tensor once, with its multipliers and the reason.

    Each property (weight decay, learning rate, style, toward, optimizer, hyperparameters) comes from the first evidence
    that sets it: the mask's rules; hooks and marks of the model's author; then what the tensor is: a bias, adapter of
    peft, norm, magnitude, state-space parameter, scale or distribution parameter, vector or scalar, table of positions
    or tokens, embedding, or, all others, a weight. The mask's base says which of these decay.

    A tied tensor is judged under each of its names. Where they disagree, exclusion wins, then the earlier evidence, and
    a warning names them. Another warning names biases and norms that a rule decays together with other parameters, as
    ``*.head.*`` would. With style ``corrected`` the output layer stays ``decoupled``, unless a rule sets its style. The
    module may be wrapped (compiled, DDP, FSDP2, checkpointed), on the meta device, or a LightningModule.

    Args:
        module: the module whose parameters are planned.
        mask: a Mask, a preset's name, or a mapping ``{base: standard, rules: [...]}``; None is ``standard``.
        style: the decay style of the optimizer, one of :data:`lightning_wd.styles.STYLES`; None leaves it open.
        include_frozen: plan frozen parameters as if they were trainable, to unfreeze them later.

    Raises:
        MaskError: a rule that matches nothing or changes nothing; with ``base=None``, a parameter that no rule places;
            with ``base="adapters"``, no adapter;
            lazy parameters and FSDP1's flat ones (``use_orig_params=False``), which have no shape of their own;
            TorchScript, which has no layer types.
        ConfigError: an unknown style.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        >>> plan = plan_decay(net, {"rules": [{"name": "0.*", "lr_mult": 2}]})
        >>> [(row.name, row.wd_mult, row.lr_mult) for row in plan]
        [('0.weight', 1.0, 2.0), ('0.bias', 0.0, 2.0), ('1.weight', 0.0, 1.0), ('1.bias', 0.0, 1.0)]
    """
    if style is not None:
        check_style("style", style)
    return plan_checked(module, as_mask(mask), style, include_frozen=include_frozen)


def plan_checked(
    module: nn.Module,
    mask: Mask,
    style: str | None,
    *,
    toward: str = "zero",
    optimizer: str | None = None,
    include_frozen: bool = False,
) -> DecayPlan:
    """Plan for a mask, a style and a point to decay towards that were checked.

    What no rule gives an optimizer is stepped by ``optimizer``; of ``muon`` the hidden matrices, the rest by ``adamw``.
    """
    tree = walk(module)
    _check_shapes(tree)
    by_muon = optimizer == "muon"
    optimizer = "adamw" if by_muon else optimizer
    planner = _Planner(module, mask, style, tree, optimizer)
    rows = [planner.row(found, toward, include_frozen) for found in tree.by_tensor()]
    if by_muon or any(row.optimizer == "muon" for row in rows):
        give_to_muon(rows, module, whole=by_muon)
    check_uses(planner.uses, mask.base, tree)
    if mask.base == "adapters" and not any(row.kind == "adapter" and not row.frozen for row in rows):
        _refuse_tensors(
            [row.name for row in rows if not row.frozen],
            "mask 'adapters' finds no trainable adapter whose zero is the base model (LoRA's A and B, OFT's R, ...).",
            "write optimizer/mask=standard, or optimizer/mask=none to decay nothing",
        )
    _refuse_tensors(
        planner.unplaced,
        "no rule places these parameters (base is null).",
        "add a last rule for the rest, such as Rule(wd_mult=1), or give the mask a base such as 'standard'",
    )
    return DecayPlan(tuple(rows), style, optimizer, toward)


class _Verdict(NamedTuple):
    """The decision for one name of a tensor."""

    wd_mult: float | None
    lr_mult: float | None
    style: str | None
    toward: str | None
    optimizer: str | None
    settings: Mapping[str, Any]  # what its group takes as it stands: absolutes and hyperparameters, a mark's settings
    by: Mapping[str, int]  # property -> position of the rule that decides it, if one does
    reason: str
    spared: bool  # whether the mask's base leaves out what a rule makes decay

    def __str__(self) -> str:
        own = self.settings
        decay = f"weight_decay {own['weight_decay']:g}" if "weight_decay" in own else f"wd_mult {self.wd_mult}"
        lr = f"lr {own['lr']:g}" if "lr" in own else f"lr_mult {1.0 if self.lr_mult is None else self.lr_mult:g}"
        return f"{decay}, {lr}"


class _Planner:
    """Judges one tensor after another, and keeps what each of the user's rules did."""

    def __init__(self, module: nn.Module, mask: Mask, style: str | None, tree: Tree, optimizer: str | None) -> None:
        self.mask, self.style, self.optimizer = mask, style, optimizer
        self.exempt = EXEMPT[mask.base] if mask.base else frozenset()
        self.heeds_hooks = mask.base not in ("all", "none", None)
        self.hooked = hooked_names(tree) if tree.hooked and self.heeds_hooks else {}
        self.scales = layer_scales(module, tree, mask.layer_decay) if mask.layer_decay is not None else {}
        self.output = output_parameters(module, tree) if style == "corrected" else frozenset()
        self.uses = [RuleUse(rule) for rule in mask.rules]
        self.unplaced: list[str] = []
        # Many tensors share kind, class and matching rules, so decisions are cached.
        self.known: dict[tuple[str, type, tuple[int, ...]], _Verdict] = {}

    def row(self, named: tuple[Found, ...], toward: str, include_frozen: bool) -> Row:
        first = named[0]
        kind, param = classify(first), first.param
        names: tuple[str, ...] = (first.name,)
        verdict = self.judge(first, kind)
        if len(named) > 1:
            names = tuple(found.name for found in named)
            verdicts = [verdict, *(self.judge(found, classify(found)) for found in named[1:])]
        frozen = not (include_frozen or param.requires_grad)
        if len(named) > 1 and not frozen:
            verdict = _reconcile(names, verdicts)
        optimizer = verdict.optimizer or self.optimizer
        if frozen:
            return Row(names, param, 0.0, 1.0, self.style, "frozen", kind, {}, optimizer, by=verdict.by, frozen=True)
        wd_mult, lr_mult, style = verdict.wd_mult, verdict.lr_mult, verdict.style
        if wd_mult is None:
            self.unplaced.append(names[0])
            wd_mult = 1.0
        if lr_mult is None:
            lr_mult = 1.0 if "lr" in verdict.settings else self.scales.get(id(param), 1.0)
        if style is None or not wd_mult:
            style = "decoupled" if wd_mult and id(param) in self.output else self.style
        reason, settings = verdict.reason, verdict.settings
        if style == "hyperball":
            if wd_mult and len(whole_shape(param)) < 2:
                wd_mult, reason = 0.0, f"{reason}; hyperball keeps norms from two dimensions on"
            style = style if wd_mult else "none"
            if wd_mult:
                _refuse_decay(names[0], {"wd_mult": wd_mult, **settings}, verdict.toward)
        pulled = bool(wd_mult) and style not in NO_AMOUNT
        toward = (verdict.toward or toward) if pulled else "zero"
        row = Row(names, param, wd_mult, lr_mult, style, reason, kind, settings, optimizer, toward, verdict.by)
        for what in ("style", "toward"):
            if what in verdict.by:
                use = self.uses[verdict.by[what]]
                use.styled = use.styled or (pulled if what == "toward" else bool(wd_mult))
        if wd_mult and "weight decay" in verdict.by:
            use = self.uses[verdict.by["weight decay"]]
            use.decayed.append(row)
            if verdict.spared:
                use.spared.append(row)
        return row

    def judge(self, found: Found, kind: str) -> _Verdict:
        """Ask the evidence about one name of a tensor."""
        param, module = found.param, found.module
        matched: tuple[int, ...] = ()
        for i, rule in enumerate(self.mask.rules):
            if rule.matches(found.name, param, module):
                matched += (i,)
                self.uses[i].matches += 1
        hook = self.hooked.get(found.name, "")
        if hook or hasattr(param, "_no_weight_decay") or hasattr(param, "_optim"):
            return self._decide(found, kind, matched, hook)
        key = (kind, type(module), matched)
        verdict = self.known.get(key)
        if verdict is None:
            verdict = self.known[key] = self._decide(found, kind, matched, hook)
        return verdict

    def _decide(self, found: Found, kind: str, matched: tuple[int, ...], hook: str) -> _Verdict:
        said, by = self._rules_say(matched)
        why = {what: self.mask.rules[i].reason or f"rule {self.mask.rules[i]}" for what, i in by.items()}
        # An absolute stands beside a multiplier of 1.
        wd_mult = said.get("wd_mult", 1.0 if "weight_decay" in said else None)
        lr_mult = said.get("lr_mult", 1.0 if "lr" in said else None)
        settings: dict[str, Any] = {}
        spared = False
        if self.mask.base is not None:
            mark, settings = marks(found.name, found.param)
            base, reason = float(kind not in self.exempt), _REASONS.get(kind, kind)
            if not self.heeds_hooks:
                reason = f"mask {self.mask.base}"
            elif "weight_decay" in settings:
                base, reason = 1.0, "mark _optim"
            elif hook or mark:
                base, reason = 0.0, hook or mark
            elif kind in ("weight", "embedding") and self.mask.base == "adapters":
                reason = f"{kind}, no adapter"
            elif kind == "norm":
                reason = f"norm layer {authors_class(type(found.module)).__name__}"
            if wd_mult is None:
                wd_mult, why["weight decay"] = base, reason
            else:
                spared = self.heeds_hooks and not base
            if "weight decay" in by or not self.heeds_hooks:
                settings.pop("weight_decay", None)
            if "learning rate" in by:
                settings.pop("lr", None)
        judged = ("wd_mult", "lr_mult", "style", "toward", "optimizer")
        settings |= {key: value for key, value in said.items() if key not in judged}
        reasons = [why["weight decay"]] if "weight decay" in why else []
        if "learning rate" in why:
            reasons.append(f"lr {'' if 'lr' in said else 'x'}{said.get('lr', lr_mult):g} by {why['learning rate']}")
        reasons += [f"{key} {said[key]} by {why[key]}" for key in ("style", "toward") if key in why and wd_mult]
        others = [key for key in why if key not in ("weight decay", "learning rate", "style", "toward")]
        reasons += [f"{key} {said[key]} by {why[key]}" for key in others]
        return _Verdict(
            wd_mult,
            lr_mult,
            said.get("style"),
            said.get("toward"),
            said.get("optimizer"),
            settings,
            by,
            "; ".join(reasons),
            spared,
        )

    def _rules_say(self, matched: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, int]]:
        """Return what the matching rules set, at most one setting a property, and which rule decides a property."""
        said: dict[str, Any] = {}
        by: dict[str, int] = {}
        for i in matched:
            use = self.uses[i]
            for setting, value in use.rule.settings.items():
                what = PROPERTIES.get(setting, setting)
                if what not in by:
                    # An absolute 0 excludes, as the multiplier does.
                    said["wd_mult" if setting == "weight_decay" and not value else setting] = value
                    by[what], use.decides = i, True
                elif use.earlier is None:
                    use.earlier = self.mask.rules[by[what]]
        return said, by


def _refuse_decay(name: str, settings: Mapping[str, Any], toward: str | None) -> None:
    """Refuse what rules say of the decay of a tensor on a hyperball."""
    numbers = {"wd_mult": 1.0, "weight_decay": 0.0}  # those that say nothing
    said = [f"{key}={settings[key]:g}" for key, none in numbers.items() if settings.get(key, none) != none]
    said += [f"toward={toward}"] if toward not in (None, "zero") else []
    if said:
        raise MaskError(
            f"{said[0]} of {name} has no meaning with style 'hyperball', which keeps its norm and has no amount.",
            fix="write wd_mult: 0 to exclude it, lr_mult to turn it less, or a decay style for it",
        )


def _reconcile(names: tuple[str, ...], verdicts: list[_Verdict]) -> _Verdict:
    """Merge what the evidence says about the names of one tensor: exclusion wins, then the earlier evidence."""

    def earliest(what: str) -> _Verdict:
        return min(verdicts, key=lambda v: v.by.get(what, math.inf))

    first, of_lr = verdicts[0], earliest("learning rate")
    of_decay = min(verdicts, key=lambda v: (v.wd_mult != 0, v.by.get("weight decay", math.inf), v.wd_mult is None))
    settings = {key: value for key, value in of_decay.settings.items() if key != "lr"}
    if "lr" in of_lr.settings:
        settings["lr"] = of_lr.settings["lr"]
    by = {what: earliest(what).by[what] for verdict in verdicts for what in verdict.by}
    settings |= {what: earliest(what).settings[what] for what in by if what not in PROPERTIES.values()}
    said = {what: getattr(earliest(what), what) for what in ("style", "toward", "optimizer")}
    merged = of_decay._replace(lr_mult=of_lr.lr_mult, settings=settings, by=by, **said)
    if any(verdict[:6] != first[:6] for verdict in verdicts):
        each = "; ".join(f"{name}: {verdict} ({verdict.reason})" for name, verdict in zip(names, verdicts, strict=True))
        warn(
            f"the mask disagrees about one tied tensor: {each}.",
            found=f"exclusion wins, then the earlier evidence: {merged}",
            fix="to decide it yourself, write a rule that matches each of its names",
        )
    return merged


def _check_shapes(tree: Tree) -> None:
    """Refuse tensors whose shape or layer type, which the evidence needs, is unknown or lost."""
    lazy = [found.name for found in tree.tensors if type(found.param) is not nn.Parameter and is_lazy(found.param)]
    _refuse_tensors(
        lazy,
        "lazy parameters have no shape yet.",
        "run a dummy batch through the module before its optimizer is configured",
    )
    scripted = {cls for cls in tree.classes if issubclass(cls, torch.jit.ScriptModule)}
    _refuse_tensors(
        [f.name for f in tree.tensors if type(f.module) in scripted and f.param.requires_grad] if scripted else [],
        "TorchScript keeps no layer types, so norms, embeddings and matrices can no longer be told apart.",
        "plan and train the module before torch.jit.script or torch.jit.trace, or freeze what is scripted",
    )
    _refuse_tensors(
        [found.name for found in tree.tensors if whole_shape(found.param) == (-1,)],
        "FSDP1 has flattened parameters, so biases, norms and matrices can no longer be told apart.",
        "wrap with use_orig_params=True (Lightning's default) and plan the outermost module that is wrapped, or use "
        "FSDP2 (fully_shard; Lightning's ModelParallelStrategy)",
    )


def _refuse_tensors(names: list[str], problem: str, fix: str) -> None:
    """Raise a MaskError about these parameters, if there are any."""
    if names:
        raise MaskError(problem, found=listed(names), fix=fix)
