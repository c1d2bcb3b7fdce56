"""The optimizer a user asks for, checked the moment it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_wd.configure.checked_mapping import CheckedMapping, as_keywords, checked_mapping, show_keys
from lightning_wd.configure.hyperparameters import check_hyperparameter, hyperparameter_types
from lightning_wd.decay import AMOUNTS, Decay
from lightning_wd.errors import ConfigError, as_typed, choice, keys, listed, nearest, number, spelled
from lightning_wd.mask import Mask, as_mask
from lightning_wd.mask.masks import plain_mask
from lightning_wd.optimizers import identify
from lightning_wd.optimizers.anchors import no_anchor
from lightning_wd.optimizers.by_name import OPTIMIZERS, REQUIRED, entry, hyperparameters_of, optimizer_class, steppers
from lightning_wd.optimizers.checkpoint import ON_RESUME
from lightning_wd.reference import FAMILIES, KEYS, LR_RULES, Reference, check_tested
from lightning_wd.styles import ALIASES, RENAMED, STYLES

__all__ = ["OptimizerConfig", "family_of", "styles_of"]

DECOUPLED_TWIN = {"adam_l2": "adamw", "sgd_l2": "sgdw"}
# The optimizers whose learning rate has a tested rule in the batch -> the family that it is the rule of.
_FAMILY = dict.fromkeys(("adamw", "adam_l2", "nadamw", "radamw", "rmspropw"), "adam")
_FAMILY |= dict.fromkeys(("sgdw", "sgd_l2"), "sgd")
_OWN_KEYS = ("name", "lr", "weight_decay", "decay", "mask", "reference", "on_resume", "muon")
_DECAY_KEYS = ("style", *AMOUNTS[1:], "cautious", "toward", "typical")
_TYPICAL_KEYS = ("adam", "adagrad", "sgd", "muon")
_TYPED = {name: f"optimizer.decay.{name}" for name in ("style", *AMOUNTS, "cautious", "toward")}
_TYPED["weight_decay"] = "optimizer.weight_decay"
# Names of other libraries, and of keys that belong elsewhere.
_RENAMED = {**RENAMED, **{name: f"decay.{name}" for name in _DECAY_KEYS}, "cautious_wd": "decay.cautious"}
_ALIASES = {**ALIASES, "decoupled": "write optimizer/decay=decoupled, or optimizer.decay.style=decoupled"}
_AMOUNT = "write optimizer.weight_decay: the amount, in the unit of the style"
_NO_BATCH = (
    "no batch is there when the optimizer is built. `lightning-wd audit pkg:Model --batch` lists the tensors that "
    "decay only as a learning rate. Write optimizer/decay=decoupled, and a rule for each of them: "
    "optimizer.mask.rules=[{name: <tensor>, style: corrected}]"
)
_DECAY_NAMES = {
    "renamed": {"cautious_wd": "cautious"},
    "aliases": {"weight_decay": _AMOUNT, "wd": _AMOUNT, "corrected_on": _NO_BATCH},
}

# The default amount of each style in its own unit; `conf/optimizer/decay/*.yaml` say the same (a test holds it).
TYPICAL: dict[str, dict[str, float]] = {
    "decoupled": {"adam": 1e-2, "adagrad": 1e-2, "sgd": 5e-3, "muon": 0.1},
    "independent": {"adam": 1e-5, "adagrad": 1e-4, "sgd": 2.5e-4, "muon": 1e-4},
    "constant": {"adam": 1e-5, "adagrad": 1e-4, "sgd": 2.5e-4, "muon": 1e-4},
    "corrected": {"adam": 1e-2, "adagrad": 1e-2, "sgd": 5e-3, "muon": 0.1},
    "l2": {"adam": 1e-4, "adagrad": 1e-4, "sgd": 5e-4},
    "hyperball": {"adam": 0.0, "adagrad": 0.0, "sgd": 0.0, "muon": 0.0},
    "none": {"adam": 0.0, "adagrad": 0.0, "sgd": 0.0, "muon": 0.0},
}


class OptimizerConfig(CheckedMapping):
    """The optimizer a user asks for: what the Hydra group ``optimizer`` instantiates to.

    It is a read-only mapping of plain values, checked at once. ``save_hyperparameters()`` may keep it, and a plain
    mapping of the same keys is accepted wherever it is.

    Args:
        name: ``adamw``, ``sgdw``, ``adam_l2``, ``sgd_l2``, ``nadamw``, ``radamw``, ``rmspropw``, ``adagradw``,
            ``adamaxw``, ``adafactor`` or ``muon`` (hidden matrices by Muon, the rest by AdamW); or the dotted path of
            any ``torch.optim.Optimizer`` class, which is imported: ``timm.optim.Lion``.
        lr: ``lr0 >= 0``, the peak learning rate; of a class given by its path, its own default where none is given.
        weight_decay: ``lam >= 0`` in the unit of the style; None if ``decay`` gives another amount; the style's
            typical amount if neither is given.
        decay: ``style``, ``normalized``, ``timescale_epochs``, ``timescale_runs``, ``cautious``, ``toward`` (see
            :class:`lightning_wd.Decay`) and ``typical`` (the amounts the YAML files offer).
        mask: ``base`` and ``rules`` (see :class:`lightning_wd.Mask`), the name of a preset, or a Mask.
        reference: ``{global_batch, steps, lr_rule}`` of the run where lr and weight_decay were tuned: rows that an
            optimizer step saw, optimizer steps, and optionally how lr follows the batch, ``sqrt``, ``linear`` or
            ``none``. They are carried over to the batch and steps of this run (:func:`lightning_wd.carry_over`), as
            are a rule's ``lr`` and ``weight_decay`` and a schedule's ``max_lr``. ``normalized`` and the timescales are
            taken as they stand. A rate that a finder finds is this run's own.
        on_resume: whose settings are used when a checkpoint differs: ``checkpoint`` (with a warning), ``config``, or
            ``error``. Another decay style is refused, except under ``config``, which continues in the configured one.
        muon: an ``lr`` and a ``weight_decay`` of its own for the half of ``muon`` that Muon steps.
        **hyperparameters: the optimizer's own keywords, such as ``betas`` or ``momentum``; None is its default.

    Raises:
        ConfigError: an unknown key or name, a value out of range, two amounts at once, a style that the optimizer
            cannot have.
        MaskError: a mask that cannot be read.

    Example:
        >>> config = OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.1, betas=[0.9, 0.95])
        >>> config["decay"]["style"], config["betas"]
        ('decoupled', [0.9, 0.95])
        >>> config.decay.coefficient(lr=1e-3)
        0.1
    """

    group = "optimizer"
    decay: Decay
    mask: Mask
    reference: Reference | None

    @classmethod
    def of(cls, value: object) -> OptimizerConfig:
        """Return ``value`` as a checked config: a config, a mapping, a DictConfig, a name, or None for the defaults.

        Here, unlike in the constructor, the mask may hold code: this config goes no further than an optimizer.
        """
        if isinstance(value, cls):
            return value
        keywords = as_keywords(cls, value, "optimizer")
        target = keywords.pop("_target_", None)
        if target is not None:
            close = nearest(str(target).rpartition(".")[2].lower(), OPTIMIZERS)
            raise ConfigError(
                f"optimizer._target_ is {target!r}, which this function does not build.",
                valid="lightning_wd.OptimizerConfig",
                nearest=close,
                fix=f"remove optimizer._target_ and write optimizer.name={close or 'adamw'}",
            )
        config = cls.__new__(cls)
        config._fill(**keywords, code=True)
        return config

    def _fill(
        self,
        *,
        name: str = "adamw",
        lr: float | None = None,
        weight_decay: float | None = None,
        decay: Mapping[str, Any] | None = None,
        mask: Mapping[str, Any] | str | Mask | None = None,
        reference: Mapping[str, Any] | None = None,
        on_resume: str = "checkpoint",
        muon: Mapping[str, Any] | None = None,
        code: bool = False,
        **hyperparameters: Any,
    ) -> None:
        if name is None:
            raise ConfigError(
                "optimizer.name is not given.",
                valid="a name, or the dotted path of any torch.optim.Optimizer class",
                fix="write optimizer.name=timm.optim.Lion, for example",
            )
        found = entry(name)
        hyperparameters = {key: value for key, value in hyperparameters.items() if value is not None}
        if isinstance(decay, str):
            close = nearest(decay, (*STYLES, "normalized", "timescale")) or "decoupled"
            raise ConfigError(
                f"optimizer.decay must be a mapping but got {decay!r}.",
                valid=_DECAY_KEYS,
                fix=f"write optimizer/decay={close}, or in Python decay={{'style': {close!r}}}",
            )
        given = checked_mapping("optimizer.decay", {} if decay is None else decay, _DECAY_KEYS, **_DECAY_NAMES)
        given.setdefault("style", "l2" if name in DECOUPLED_TWIN else "decoupled")
        amounts = self.decay = _decay(weight_decay, given, found.typical)
        with as_typed({"mask": f"{spelled('optimizer')}.mask"}):
            self.mask = as_mask(mask)
        for i, rule in enumerate(self.mask.rules):
            if rule.optimizer is not None:
                entry(rule.optimizer, f"optimizer.mask.rules[{i}].optimizer")
        if reference == dict.fromkeys(KEYS):  # as the YAML files have it
            reference = None
        self.reference = None if reference is None else _reference(name, amounts.style, reference)
        dict.update(
            self,
            name=name,
            lr=number("optimizer.lr", _own_rate(name) if lr is None else lr),
            weight_decay=amounts.weight_decay,
            decay={key: getattr(amounts, key, value) for key, value in given.items()},
            mask=_without_code(self.mask, code=code),
            reference=None if reference is None else dict(reference),
            on_resume=choice("optimizer.on_resume", on_resume, ON_RESUME),
            **({} if muon is None else {"muon": _check_half(name, muon)}),
            **{**found.defaults, **_check_hyperparameters(name, amounts.style, hyperparameters)},
        )
        _check_style_of(name, amounts.style, self.hyperparameters)
        towards = {amounts.toward, *(rule.toward or "zero" for rule in self.mask.rules)}
        if self.get("anchor_dtype") and towards == {"zero"}:
            raise no_anchor(f"optimizer.anchor_dtype={self['anchor_dtype']}", "optimizer.decay.toward=init")

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The optimizer's own keywords, pairs of numbers as the tuples that torch has."""
        own = {key: value for key, value in self.items() if key not in _OWN_KEYS}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}

    def hyperparameters_for(self, optimizer: str) -> dict[str, Any]:
        """Return the keywords of one of several optimizers: the config's, if it is the config's own."""
        if optimizer not in steppers(self["name"]):
            return dict(entry(optimizer).defaults)
        known = hyperparameters_of(optimizer_class(optimizer, self.decay.style))
        return {key: value for key, value in self.hyperparameters.items() if key in known}

    @property
    def halves(self) -> dict[str, dict[str, float]]:
        """The optimizers with an ``lr`` or a ``weight_decay`` of their own, and these."""
        return {"muon": {key: value for key, value in (self.get("muon") or {}).items() if value is not None}}

    @property
    def family(self) -> str | None:
        """The family whose tested rule carries the learning rate over; None where there is none."""
        return family_of(self["name"])

    @property
    def typical_amount(self) -> bool:
        """Whether the amount of decay is the style's typical one, as for a user who sets none."""
        kind, decay = entry(self["name"]).typical, self["decay"]
        offered = ((decay.get("typical") or {}).get(kind), TYPICAL.get(decay["style"], {}).get(kind))
        return self["weight_decay"] is not None and self["weight_decay"] in offered


def _decay(weight_decay: Any, given: Mapping[str, Any], kind: str) -> Decay:
    """Return the checked decay; where no amount is given, the style's typical one."""
    values = {key: given[key] for key in ("style", *AMOUNTS[1:], "cautious", "toward") if given.get(key) is not None}
    typical = checked_mapping("optimizer.decay.typical", given.get("typical") or {}, _TYPICAL_KEYS)
    typed = _TYPED
    if weight_decay is None and not set(AMOUNTS).intersection(values) and given["style"] != "none":
        own = TYPICAL.get(str(given["style"]), {}).get(kind, 0.0)
        weight_decay = own if typical.get(kind) is None else typical[kind]
        typed = {**typed, "weight_decay": f"optimizer.decay.typical.{kind}"}
    return Decay(**values, weight_decay=weight_decay, typed=typed)


def family_of(optimizer: str) -> str | None:
    """Return the family whose tested rule carries the learning rate of an optimizer over; None where there is none."""
    return _FAMILY.get(optimizer)


def _reference(name: str, style: str, given: Mapping[str, Any]) -> Reference:
    """Return the checked reference, its rule for the learning rate filled in."""
    family = family_of(name)
    check_tested(style, family, "optimizer.reference")
    reference = Reference.of("optimizer.reference", given, FAMILIES.get(str(family), ""))
    if not reference.lr_rule:
        raise ConfigError(
            f"optimizer.reference has no tested rule for the learning rate of {name}.",
            valid=f"{', '.join(_FAMILY)}; with {name}, a rule of your choice: {', '.join(LR_RULES)}",
            fix="write optimizer.reference.lr_rule=none to keep lr and carry the decay over, or sqrt or linear",
        )
    return reference


def _own_rate(name: str) -> float:
    """Return the default learning rate of an optimizer."""
    lr = entry(name).lr
    if lr is None:
        raise ConfigError(f"optimizer {name} has no lr of its own.", fix="write optimizer.lr=1e-3, for example")
    return lr


def _check_style_of(name: str, style: str, hyperparameters: Mapping[str, Any]) -> None:
    twin = DECOUPLED_TWIN.get(name)
    if twin is not None and style not in ("l2", "none"):
        raise ConfigError(
            f"optimizer={name} is the L2 form, and optimizer.decay.style {style!r} is decoupled.",
            valid=f"l2 or none with {name}; every style with {twin}",
            nearest=twin,
            fix=f"write optimizer={twin} optimizer/decay={style}",
        )
    styles, found = styles_of(name, style, hyperparameters)
    if style not in styles:
        raise ConfigError(
            f"optimizer {name} does not do optimizer.decay.style {style!r}.",
            found=found,
            valid=styles,
            fix=f"write optimizer/decay={styles[0]}, or optimizer=adamw",
        )


def styles_of(name: str, asked: str, hyperparameters: Mapping[str, Any]) -> tuple[tuple[str, ...], str | None]:
    """Return the styles that an optimizer does, and what was found of one that is ``asked`` and that it does not do."""
    if name in DECOUPLED_TWIN:
        return ("l2", "none"), None
    cls: Any = entry(name).cls
    styles: tuple[str, ...] = getattr(cls, "styles", STYLES)
    if asked == "l2" and hasattr(cls, "base"):  # made by decoupled()
        means = identify(cls.base, **hyperparameters)
        if not means.may_be_l2:
            found = " ".join([f"its own weight_decay is {means.style!r}.", *means.evidence])
            return tuple(style for style in styles if style != "l2"), found
    return styles, None


def _without_code(mask: Mask, *, code: bool) -> Any:
    """Return the mask as plain data; with functions, itself where ``code``, else an error."""
    if all(rule.predicate is None for rule in mask.rules):
        return plain_mask(mask)
    if code:
        return mask
    raise ConfigError(
        "optimizer.mask has a rule with a predicate, and a checkpoint cannot keep a function.",
        fix="build it in configure_optimizers: "
        "wd.configure_optimizers(self, {**self.hparams.optimizer, 'mask': wd.Mask([...])})",
    )


def _check_hyperparameters(name: str, style: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of an optimizer in the form of their defaults; refuse what it does not take, or lacks."""
    every = [hyperparameters_of(optimizer_class(each, style)) for each in steppers(name)]
    known = {key: value for one in every for key, value in one.items()}
    own = [key for key in _OWN_KEYS if key != "muon" or name == "muon"]
    unknown = [key for key in given if key not in known]
    others = [o for o in OPTIMIZERS if unknown and unknown[0] in hyperparameters_of(OPTIMIZERS[o].cls)]
    if others:
        again = f"optimizer={name}" if name in OPTIMIZERS else f"optimizer=custom optimizer.name={name}"
        group = name if name in OPTIMIZERS else "custom"
        raise ConfigError(
            f"optimizer.{unknown[0]} is not a setting of {name}.",
            found=", ".join(f"{key}={given[key]!r}" for key in unknown),
            valid=[*own, *known],
            nearest=nearest(unknown[0], known),
            fix=f"'{unknown[0]}' belongs to {', '.join(others)}: remove it. If a merge left it over, replace the group "
            f"instead: `{again}` without `+` on the command line, or `override /optimizer: {group}` in the "
            "defaults list. A block written inline goes out of the YAML, and the group into its defaults list",
        )
    keys(f"optimizer {name}", given, [*own, *known], typed="optimizer.{}", renamed=_RENAMED, aliases=_ALIASES)
    missing = [key for key, default in known.items() if default is REQUIRED and key not in given]
    if missing:
        raise ConfigError(
            f"optimizer {name} needs {listed(missing)}.",
            found=", ".join(f"optimizer.{key}={value!r}" for key, value in given.items()) or "no such setting",
            fix=f"write {', '.join(f'optimizer.{key}=<value>' for key in missing)}, each with + in front where Hydra's "
            "command line adds it",
        )
    of_ours = name in OPTIMIZERS
    return {k: check_hyperparameter(f"optimizer.{k}", value, known[k], of_ours=of_ours) for k, value in given.items()}


def _check_half(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked ``optimizer.muon``."""
    if name != "muon":
        raise ConfigError(
            f"optimizer.muon is a setting of optimizer=muon, and this is {name}.",
            fix="remove it; for some parameters, write lr and weight_decay into the rule that gives them to muon",
        )
    half = checked_mapping("optimizer.muon", given, ("lr", "weight_decay"))
    return {key: value if value is None else number(f"optimizer.muon.{key}", value) for key, value in half.items()}


show_keys(OptimizerConfig, hyperparameter_types())
