r"""Which tensors the loss does not feel the scale of: there decay acts only as a learning rate.

A loss that does not change when a tensor ``w`` is scaled has ``<g, w> = 0`` (Euler), as a convolution or linear layer
with a norm layer behind it. Decay then sets ``||w||``, and so the angle that a step turns ``w`` by, and nothing else
(https://arxiv.org/abs/2305.17212, https://arxiv.org/abs/2506.02285).
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_wd._lightning import either
from lightning_wd.errors import ConfigError, checked_keywords
from lightning_wd.mask.module_tree import is_sharded, walk

__all__ = ["INVARIANT", "dense", "radial_products", "radial_share", "scale_invariant", "training_shares"]

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


class _AskedError(Exception):
    """The loss has been there, and training may end."""


def training_shares(module: Any, data: Any = None) -> dict[str, float]:
    """Return what :func:`scale_invariant` finds by the loss of a LightningModule's first training step.

    A Trainer of its own runs that step, without its backward pass, so its hooks and loaders are those of training.

    Args:
        module: its weights are left as they are.
        data: a batch, or a LightningDataModule; by default the module's own ``train_dataloader``.

    Raises:
        ConfigError: it is no LightningModule, steps its optimizers itself, has no data, or returns no loss.
    """
    name = type(module).__name__
    twins = zip(either("lightning.pytorch.LightningModule"), either("lightning.pytorch.Trainer"), strict=True)
    base, trainer = next(((base, trainer) for base, trainer in twins if isinstance(module, base)), (None, None))
    if base is None or trainer is None or not module.automatic_optimization:
        why = "is no LightningModule" if base is None else "steps its optimizers itself"
        raise ConfigError(
            f"no training loss of {name} can be computed: it {why}.",
            fix="name a LightningModule whose training_step returns the loss, or call wd.scale_invariant(model, loss)",
        )
    if data is None and type(module).train_dataloader is base.train_dataloader:
        raise ConfigError(
            f"{name} has no train_dataloader to take a batch from.",
            fix="write --batch my_pkg.data:batch, a function without arguments that returns one, or a "
            "LightningDataModule",
        )
    source: dict[str, Any] = {}
    if isinstance(data, either("lightning.pytorch.LightningDataModule")):
        source = {"datamodule": data}
    elif data is not None:  # the loader leaves it as it is
        rows: Any = [data]
        source = {"train_dataloaders": DataLoader(rows, batch_size=None, collate_fn=lambda batch: batch)}
    shares: dict[str, float] = {}

    def ask(loss: Tensor) -> None:
        shares.update(scale_invariant(module, loss))
        raise _AskedError

    module.on_before_backward = ask
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)  # the real one may want settings
    before = logging.root.manager.disable
    logging.disable(logging.INFO)  # what Lightning tells of a run, as below what it warns of
    try:
        with warnings.catch_warnings(), contextlib.suppress(_AskedError):
            warnings.simplefilter("ignore")
            quiet = {"enable_progress_bar": False, "enable_model_summary": False}
            trainer(accelerator="cpu", devices=1, fast_dev_run=1, **quiet).fit(module, **source)
    finally:
        logging.disable(before)
        del module.on_before_backward, module.configure_optimizers
    if not shares:
        raise ConfigError(
            f"training_step of {name} returned no loss.",
            fix="return the loss, or a dict that has it as 'loss'",
        )
    return shares


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
