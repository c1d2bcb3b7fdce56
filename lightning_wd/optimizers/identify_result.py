"""The answer of :func:`lightning_wd.identify`: what the ``weight_decay`` of an optimizer class means."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_wd.conversions import peak_equal
from lightning_wd.errors import number
from lightning_wd.styles import check_style

__all__ = ["EXPONENTS", "Identification"]

# Of lr_t, lr0 and weight_decay in the fraction of the weights that a step removes.
EXPONENTS = {"decoupled": (1, 0, 1), "independent": (1, -1, 1), "constant": (0, 0, 1), "corrected": (2, -1, 1)}


@dataclass(frozen=True)
class Identification:
    """What the ``weight_decay`` of an optimizer class means, with one set of keywords.

    Attributes:
        name: the class.
        style: ``l2``, ``decoupled``, ``independent``, ``constant``, ``corrected``; ``none``, where it has no effect;
            ``unknown``, where no style fits.
        multiple: its decay over ours of this style at the same number; 1 for most.
        lr_exponent: a in ``d = multiple * lr_t^a * lr0^b * weight_decay^c``; None where no such ``d`` was found.
        base_lr_exponent: b; ``lr0`` is the learning rate that the constructor was given.
        amount_exponent: c.
        spread: the 95th over the 5th percentile of ``d`` over coordinates: 1 where all weights decay alike.
        evidence: what was measured, in lines.
        own_rule: whether it can do our decoupled decay itself: a fraction of the old weights, whatever the gradient,
            by the group's ``weight_decay`` at each step.
        follows_group: whether it reads ``weight_decay`` from its group at each step.
        both: whether it is ``l2`` and ``decoupled`` at once, as in SGD without momentum.
        counters: what a step changes in its groups: no settings, but state.
        own_closure: how a step evaluates its closure, where not once on the weights that it finds.
    """

    name: str
    style: str
    multiple: float | None = None
    lr_exponent: float | None = None
    base_lr_exponent: float | None = None
    amount_exponent: float | None = None
    spread: float | None = None
    evidence: tuple[str, ...] = ()
    own_rule: bool = False
    follows_group: bool = False
    both: bool = False
    counters: tuple[str, ...] = ()
    own_closure: str = ""

    def amount_for(self, style: str, weight_decay: float, lr: float) -> float | None:
        """Return the ``weight_decay`` to hand to this class so that it decays as ours of ``style`` would.

        Exact at the peak learning rate ``lr``, as :func:`lightning_wd.convert` is, and under any schedule between
        ``decoupled`` and ``independent``. None where no number does it: from or to ``l2``, to ``hyperball``, and for
        ``unknown``.

        >>> sgdp = Identification("SGDP", "decoupled", multiple=10.0)
        >>> sgdp.amount_for("decoupled", weight_decay=0.1, lr=1e-3), sgdp.amount_for("l2", weight_decay=0.1, lr=1e-3)
        (0.01, None)
        """
        check_style("style", style)
        lam, lr = number("weight_decay", weight_decay), number("lr", lr)
        if style == "none" or (lam == 0 and style != "l2"):
            return None if self.style == "unknown" else 0.0
        if style in ("l2", "hyperball") or self.style not in EXPONENTS or not self.multiple:
            return None
        return peak_equal(lam, from_=style, to=self.style, lr=lr) / self.multiple

    @property
    def may_be_l2(self) -> bool:
        """Whether style ``l2`` can be left to the class."""
        return self.both or self.style in ("l2", "unknown")

    def __str__(self) -> str:
        return "\n  ".join([f"{self.name}: {self.style}", *self.evidence])
