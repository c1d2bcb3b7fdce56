"""What kind of tensor each is, by its layer, its names and its shape. The first row that holds decides:

=========== =========================================================================================================
kind        evidence
=========== =========================================================================================================
bias        its own name has the word ``bias`` (``bias_ih_l0``, ``q_bias``; not ``debias_proj.weight``), or it is the
            ``b1`` of a ``w1`` with one dimension more
adapter     of any shape, named by peft as what is added to a frozen layer and at zero adds nothing: ``lora_A``,
            ``vera_lambda_b``, ``oft_R``
norm        a norm layer owns it directly: one of torch.nn, or by class name and shape (LlamaRMSNorm, GRN)
magnitude   weight_norm's length of each row: ``original0``, ``weight_g``; DoRA's ``lora_magnitude_vector``
state       a state-space model's own ``A_log`` and ``D``, or RWKV's ``time_decay``, of any shape
scale       of any shape, named a scale, threshold, logarithm or parameter of a distribution: ``logit_scale``,
            ``log_std``, ``px_r``; or a free ``alpha``, ``gamma`` and the ``beta`` beside it
embedding   an Embedding owns it, of any shape; or a free parameter is named one
vector      at most one dimension is larger than 1, and it is not the weight of a Linear, Conv, RNN or attention
table       a free parameter named a position table or a token
weight      everything else
=========== =========================================================================================================

A parameter is free where neither such a layer nor an Embedding owns it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from torch import nn

from lightning_wd._private import ConvNd, NormBase, WeightNorm, own_parameters
from lightning_wd.mask.module_tree import Found, whole_shape

__all__ = ["EXEMPT", "KINDS", "classify"]

KINDS = ("bias", "adapter", "norm", "magnitude", "state", "scale", "vector", "table", "embedding", "weight")

# What each preset leaves out, once hooks and marks have spoken.
EXEMPT: dict[str, frozenset[str]] = {
    "standard": frozenset(KINDS) - {"adapter", "embedding", "weight"},
    "no_embeddings": frozenset(KINDS) - {"adapter", "weight"},
    "matrices": frozenset(KINDS) - {"adapter", "table", "embedding", "weight"},
    "adapters": frozenset(KINDS) - {"adapter"},
    "all": frozenset(),
    "none": frozenset(KINDS),
}

_NORM_CLASSES = (NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_WEIGHTED_CLASSES = (nn.Linear, nn.Bilinear, ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_EMBEDDING_CLASSES = (nn.Embedding, nn.EmbeddingBag)
_CONTAINERS = (nn.ParameterList, nn.ParameterDict, nn.ModuleList, nn.ModuleDict, nn.Sequential)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# A class named *Norm is no norm layer where one of these words comes before, as in ConvNorm, SpectralNorm,
_NOT_BEFORE = frozenset("conv linear weight spectral embed embedding encoder decoder layer block model".split())
# or a word other than these after, as in NormLinear, PreLayerNormSelfOutput.
_AFTER = frozenset("d nd act gated no bias fp f exp relu silu".split())
_NORM_LEAVES = frozenset("weight bias gamma beta scale shift gain offset g b w alpha a_2 b_2".split())
_STATE_LEAVES = frozenset("A_log A_logs D Ds time_decay time_first time_faaaa".split())
_SCALE_LEAVES = frozenset("gamma beta alpha".split())
# What a scale's name has. None of these names ends with the name of a weight.
_SCALE = frozenset("scale scales temperature temperatures threshold thresholds log logs logit logits prior".split())
# What the name of a distribution's parameter ends with, or begins with: px_r is of p(x).
_SPREAD = frozenset(
    "sigma sigmas std stds stdev variance variances logvar logvars logstd logsigma mu loc locs rho concentration "
    "dispersion dispersions precision precisions alpha".split()
)
_DISTRIBUTION = frozenset("px py pz qx qy qz".split())
_BIAS = frozenset(("bias", "biases"))
# What peft adds to a frozen layer: where all of it is zero, the layer is the base model's. Not so its scalings, which
# start at 1 (ia3_l, boft_s, road_alpha), its routers and logits, and what it normalizes (hra_u, delora_A).
_ADAPTERS = frozenset(
    "lora_A lora_B lora_E lora_embedding_A lora_embedding_B gralora_A gralora_B hira_A hira_B hada_w1_a hada_w1_b "
    "hada_w2_a hada_w2_b hada_t1 hada_t2 lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2 "
    "vera_lambda_b vera_lambda_d randlora_lambda randlora_gamma vblora_vector_bank delora_lambda fourierft_spectrum "
    "c3a_kernel oft_R boft_R road_theta miss_block shira_weight".split()
)
_POSITION = frozenset("pos position positions positional posemb pe relpos".split())
_EMBED = frozenset("embed embedding embeddings emb wte".split())
_CONTENT = frozenset("weight weights embed embedding embeddings emb".split())  # names too generic to classify
_LAYER = frozenset("proj projection linear dense mlp".split())
_LEARNED_INPUT = frozenset("query queries latent latents prompt prompts".split())  # features
_NO_TABLE = frozenset("weight weights kernel w1 w2 w3".split()) | _LAYER | _LEARNED_INPUT


def classify(found: Found) -> str:
    """Return the kind of a tensor, one of :data:`KINDS`; the table of this module says how."""
    name, attribute = found.leaf, found.attribute
    if isinstance(found.module, (nn.ParameterList, nn.ParameterDict)):
        # The list has the name that a single tensor would have: biases.0, position_embeddings.weights.1.
        name = f"{attribute}_{name}"
        attribute = found.name.split(".")[-3] if found.name.count(".") > 1 else ""
    parts = found.name.split(".")
    if not _ADAPTERS.isdisjoint(parts):
        return "bias" if name == "bias" else "adapter"
    if "lora_magnitude_vector" in parts:
        return "magnitude"
    shape = whole_shape(found.param)
    dimensions = len(shape)
    vector = dimensions < 2 or dimensions - shape.count(1) - shape.count(0) < 2
    if found.part == "original0":
        parametrizations: Any = found.module.parametrizations
        if any(isinstance(one, WeightNorm) for one in parametrizations[found.leaf]):
            return "magnitude"
    # A vector only: gates called W_g and W_v both decay.
    if vector and name[-2:] == "_g" and f"{name[:-2]}_v" in own_parameters(found.module):
        return "magnitude"
    if not vector:
        own = own_parameters(found.module)
        if name == "beta" and "gamma" not in own:  # alone it may be any matrix, as a topic model's
            return "weight"
        if name[0] == "b" and (name == "b" or name[1:].isdigit()):
            weight = own.get(f"w{name[1:]}", own.get(f"W{name[1:]}"))
            if weight is not None and len(whole_shape(weight)) == len(shape) + 1:
                return "bias"
    return _classify(type(found.module), name, attribute, vector)  # type: ignore[arg-type]  # classes are hashable


@lru_cache(maxsize=65536)
def _classify(cls: type, leaf: str, attribute: str, vector: bool) -> str:
    words = leaf_words(leaf)
    embeds = is_embedding(cls) and (leaf == "weight" or issubclass(cls, _EMBEDDING_CLASSES))
    # T5's relative_attention_bias keeps its biases in an Embedding.
    of_what = leaf_words(attribute)
    if _BIAS.intersection(words) or (embeds and _BIAS.intersection(of_what)):
        return "bias"
    if is_norm(cls) and (vector or leaf in _NORM_LEAVES):
        return "norm"
    if leaf in _STATE_LEAVES:
        return "state"
    if not embeds and _is_scale(words):
        return "scale"
    if leaf == "weight" and issubclass(cls, _EMBEDDING_CLASSES):
        return "embedding"
    multiplies = "weight" in words and is_weighted(cls)
    free = not embeds and not multiplies and not issubclass(cls, _WEIGHTED_CLASSES)
    if free and leaf in _SCALE_LEAVES:
        return "scale"
    if vector and not multiplies:
        return "vector"
    named = (_has_position(words) or words[-1] in ("token", "tokens")) and _NO_TABLE.isdisjoint(words)
    held = words[0] in _CONTENT and _has_position(of_what) and _LAYER.isdisjoint(of_what)
    if free and (named or held):
        return "table"
    if embeds or (free and words[-1] in _EMBED):
        return "embedding"
    return "weight"


def leaf_words(leaf: str) -> tuple[str, ...]:
    """Split a tensor's own name into words.

    >>> leaf_words("bias_ih_l0"), leaf_words("inProjBias"), leaf_words("debias")
    (('bias', 'ih', 'l', '0'), ('in', 'proj', 'bias'), ('debias',))
    """
    return tuple(word.lower() for word in _WORD.findall(leaf)) or (leaf,)


def _is_scale(words: tuple[str, ...]) -> bool:
    """Whether a tensor is by its name a scale, a threshold, a logarithm or a parameter of a distribution."""
    names = [word for word in words if not word.isdigit()] or [""]
    if names[-1] in _CONTENT | _LAYER | _NO_TABLE:
        return False
    return names[-1] in _SPREAD or names[0] in _DISTRIBUTION or not _SCALE.isdisjoint(names)


def _has_position(words: tuple[str, ...]) -> bool:
    have = frozenset(words)
    return bool(
        have & _POSITION
        or ("rel" in have and have & {"height", "width", *_EMBED})
        or words[-2:] in (("rel", "h"), ("rel", "w"))  # not w_rel, a matrix of a graph network
        or (have & {"time", "temporal"} and have & _EMBED)
    )


@lru_cache(maxsize=4096)
def is_norm(cls: type) -> bool:
    """Whether a class is a norm layer: torch.nn's own, or named one and not also a convolution, a block, ..."""
    if issubclass(cls, (*_WEIGHTED_CLASSES, *_EMBEDDING_CLASSES, *_CONTAINERS)):
        return False
    return issubclass(cls, _NORM_CLASSES) or any(_named_norm(base.__name__) for base in cls.__mro__)


def _named_norm(name: str) -> bool:
    if name.endswith("GRN"):  # global response normalization
        return True
    words = leaf_words(re.sub(r"(?i)layer_?norm", "Norm", name))
    last = max((i for i, word in enumerate(words) if word.endswith(("norm", "normalization"))), default=None)
    if last is None or _NOT_BEFORE.intersection(words[:last]):
        return False
    return all(word in _AFTER or word.isdigit() for word in words[last + 1 :])


@lru_cache(maxsize=4096)
def is_weighted(cls: type) -> bool:
    """Whether a class multiplies its inputs by its weight, so that even a weight of shape (1, n) is a matrix."""
    ends = re.compile(r"(?:(?:Linear|Conv)(?:\d[dD])?(?:Layer)?|TensorProduct)$")  # e3nn's product of tensors, too
    return issubclass(cls, _WEIGHTED_CLASSES) or any(ends.search(base.__name__) for base in cls.__mro__)


@lru_cache(maxsize=4096)
def is_embedding(cls: type) -> bool:
    """Whether a class is a table that integer indices look up."""
    named = any(base.__name__.endswith("Embedding") for base in cls.__mro__)
    return (named or issubclass(cls, _EMBEDDING_CLASSES)) and not issubclass(cls, _WEIGHTED_CLASSES)
