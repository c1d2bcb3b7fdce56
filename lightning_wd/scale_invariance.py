r"""Which tensors the loss does not feel the scale of: there decay acts only as a learning rate.

A loss that does not change when a tensor ``w`` is scaled has ``<g, w> = 0`` (Euler), as a convolution or linear layer
with a norm layer behind it. Decay then sets ``||w||``, and so the angle that a step turns ``w`` by, and nothing else
(https://arxiv.org/abs/2305.17212, https://arxiv.org/abs/2506.02285).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_wd._lightning import either
from lightning_wd.errors import ConfigError, checked_keywords
from lightning_wd.mask.module_tree import is_sharded, walk

__all__ = ["INVARIANT", "dense", "radial_products", "radial_share", "scale_invariant", "training_loss"]

INVARIANT = 1e-5  # below it a tensor counts as scale-invariant: float32 leaves about 1e-7, a head has about 1e-3
_CHUNK = 2**22  # elements widened at once


@checked_keywords()
def scale_invariant(module: nn.Module, loss: Tensor) -> dict[str, float]:
    r"""Return ``|<g, w>| / (||g|| ||w||)`` of each trainable tensor: near 0 where the loss does not feel its scale.

    ``g`` is the gradient of the loss and ``w`` the tensor, so the number is the share of the gradient that points along
    the weights, in [0, 1]. A tensor with a norm layer behind it has 1e-8 to 1e-6 in float32, an output layer 1e-4 to 1.
    It is nan where the gradient or the tensor is zero, as at the start of a zero-initialised branch, and where the loss
    does not use the tensor: nothing is known there.

    Dropout and the noise of a batch do no harm: one loss is one function of the weights. The limits: the ``eps`` of a
    norm layer shows where its input is small, as 5e-5 in a small net of torch's own initialisation, 1e-3 at inputs of
    0.01; the noise of bf16 and fp16 hides the zero, so ask without autocast; a bias that is not zero takes part before
    a LayerNorm, but not before a BatchNorm; what holds of a norm layer's weight while its bias is zero ends as it
    trains. A share below 1e-5 by chance has about one in a hundred tensors of 1e6 elements: ask with another batch.
    Transformers have few such tensors, since their norm layers come after a sum. Under DDP the loss is that of this
    process.

    Args:
        module: holds the tensors; names are those of :func:`lightning_wd.plan_decay`.
        loss: a 0-dim tensor computed from them, its graph alive. It stays alive, and ``.grad`` is not touched.

    Raises:
        ConfigError: ``loss`` is not a finite 0-dim tensor with a graph, does not depend on the module, or the module
            is sharded.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, eps=0), nn.Linear(8, 1))
        >>> found = scale_invariant(net, net(torch.randn(16, 4)).square().mean())
        >>> [name for name, share in found.items() if share < 1e-5]
        []
        >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8, eps=0), nn.Linear(8, 1))
        >>> found = scale_invariant(net, net(torch.randn(16, 4)).square().mean())
        >>> [name for name, share in found.items() if share < 1e-5]
        ['0.weight']

    References:
        Kosson et al., https://arxiv.org/abs/2305.17212; Defazio, https://arxiv.org/abs/2506.02285.
    """
    if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
        shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
        graph = " without a graph" if isinstance(loss, Tensor) and not loss.requires_grad else ""
        raise ConfigError(
            "scale_invariant needs a loss: a 0-dim tensor computed from the module, with its graph.",
            found=f"{type(loss).__name__}{shape}{graph}",
            fix="pass what training_step returns, before backward; outside of torch.no_grad()",
        )
    tensors = [first for first, *_ in walk(module).by_tensor() if first.param.requires_grad]
    if not torch.isfinite(loss):
        raise ConfigError(
            "scale_invariant needs a finite loss.",
            found=f"a loss of {loss.item():g}",
            fix="ask with a batch and weights whose loss is finite",
        )
    sharded = [found.name for found in tensors if is_sharded(found.param)]
    if sharded:
        raise ConfigError(
            "scale_invariant does not see the gradients of a sharded module.",
            found=f"{len(sharded)} sharded tensors, the first is {sharded[0]}",
            fix="ask before the module is sharded; DecayMonitor logs scale_invariant_fraction in a sharded run",
        )
    try:
        grads = torch.autograd.grad(loss, [found.param for found in tensors], retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise ConfigError(
            f"scale_invariant cannot differentiate the loss: {error}",
            fix="ask before loss.backward(), which frees the graph, and of a module that is not compiled",
        ) from error
    if all(g is None for g in grads):
        raise ConfigError(
            "the loss does not depend on any trainable tensor of the module.",
            found=f"{len(tensors)} trainable tensors",
            fix="pass the module that the loss was computed with",
        )
    return {
        found.name: math.nan if g is None else radial_share(*radial_products(dense(g), dense(found.param)).tolist())
        for found, g in zip(tensors, grads, strict=True)
    }


def training_loss(module: Any, batch: Any = None) -> Any:
    """Return the loss of a LightningModule's training step, outside of a Trainer.

    ``batch`` is by default the first of its ``train_dataloader``.

    Raises:
        ConfigError: it is no LightningModule, steps its optimizers itself, has no data, or returns no loss.
    """
    name = type(module).__name__
    lightning = hasattr(type(module), "automatic_optimization")
    if not lightning or not module.automatic_optimization:
        why = "steps its optimizers itself" if lightning else "is no LightningModule"
        raise ConfigError(
            f"no training loss of {name} can be computed: it {why}.",
            fix="name a LightningModule whose training_step returns the loss, or call wd.scale_invariant(model, loss)",
        )
    if batch is None:
        bases = either("lightning.pytorch.LightningModule")
        if any(type(module).train_dataloader is base.train_dataloader for base in bases):
            raise ConfigError(
                f"{name} has no train_dataloader to take a batch from.",
                fix="write --batch my_pkg.data:batch, a function without arguments that returns one",
            )
        module.prepare_data()
        module.setup("fit")
        batch = next(iter(module.train_dataloader()))
    arguments = (batch, 0)[: len(inspect.signature(module.training_step).parameters)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are trying to `self.log")  # there is no trainer
        returned = module.training_step(*arguments)
    loss = returned.get("loss") if isinstance(returned, Mapping) else returned
    if loss is None:
        raise ConfigError(
            f"training_step of {name} returned no loss.",
            found=type(returned).__name__,
            fix="return the loss, or a dict that has it as 'loss'",
        )
    return loss


def dense(tensor: Tensor) -> Tensor:
    """Return a tensor without its graph, dense, complex numbers as pairs."""
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def radial_products(g: Tensor, w: Tensor) -> Tensor:
    """Return ``<g, w>``, ``<g, g>`` and ``<w, w>``, in float64 where the device has it: the first is small."""
    dtype = torch.float32 if w.device.type == "mps" else torch.float64
    products = torch.zeros(3, dtype=dtype, device=w.device)
    g, w = g.flatten(), w.flatten()
    for start in range(0, w.numel(), _CHUNK):
        a, b = (part[start : start + _CHUNK].to(dtype) for part in (g, w))
        products += torch.stack([torch.dot(a, b), torch.dot(a, a), torch.dot(b, b)])
    return products


def radial_share(gw: float, gg: float, ww: float) -> float:
    """Return ``|<g, w>| / (||g|| ||w||)`` from the three products; nan where one of the norms is zero.

    >>> radial_share(-6.0, 9.0, 16.0), radial_share(0.0, 0.0, 1.0)
    (0.5, nan)
    """
    norms = math.sqrt(gg) * math.sqrt(ww)
    return abs(gw) / norms if norms else math.nan
