"""Every private name of torch, Lightning and Hydra that this package uses, each behind a guard.

A private name may be gone in the next version. Then a warning says which version lacks it and what is switched off, and
a public stand-in takes its place; importing the package never fails for it. No other file imports from a private part
of a library: a test holds that, and each name here has a test.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # decorators keep the type of what they decorate
    _F = TypeVar("_F", bound=Callable[..., Any])

    def disable_dynamo(function: _F) -> _F: ...
    def use_grad_for_differentiable(function: _F) -> _F: ...


class _Name(NamedTuple):
    """Where a private name lives, what is switched off without it, and what then stands in its place."""

    path: str
    off: str
    stand_in: Any = None


def _each(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a loop over lists of tensors, in place of a foreach kernel."""

    def loop(first: list[Tensor], second: Any, **keywords: Any) -> Any:
        others = second if isinstance(second, (list, tuple)) else [second] * len(first)
        return [function(a, b, **keywords) for a, b in zip(first, others, strict=True)]

    return loop


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_NORMS = _BATCH_NORMS + _INSTANCE_NORMS
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LOOPS = "tensors are updated one by one"
_NO_COMPILER = "compile=True is refused"
_NO_ADAM = "the fused kernel is called through torch.optim"

NAMES: dict[str, _Name] = {
    "NormBase": _Name("torch.nn.modules.batchnorm._NormBase", "only public norm classes count", _NORMS),
    "ConvNd": _Name("torch.nn.modules.conv._ConvNd", "only public convolution classes count", _CONVOLUTIONS),
    "WeightNorm": _Name("torch.nn.utils.parametrizations._WeightNorm", "weight_norm's magnitudes are vectors", ()),
    "default_to_fused_or_foreach": _Name(
        "torch.optim.optimizer._default_to_fused_or_foreach", _LOOPS, lambda params, differentiable: (False, False)
    ),
    "foreach_supported_types": _Name(
        "torch.optim.optimizer._foreach_supported_types", "subclasses of Tensor are not fused", [Tensor, nn.Parameter]
    ),
    "device_dtype_check_for_fused": _Name(
        "torch.optim.optimizer._device_dtype_check_for_fused", "fused=True fails in the kernel", lambda p: None
    ),
    "get_scalar_dtype": _Name(
        "torch.optim.optimizer._get_scalar_dtype", "steps are counted in float32", lambda is_fused=None: torch.float32
    ),
    "use_grad_for_differentiable": _Name(
        "torch.optim.optimizer._use_grad_for_differentiable", "differentiable=True has no effect", torch.no_grad()
    ),
    "disable_dynamo": _Name("torch._disable_dynamo", "torch.compile traces the loading of states", lambda f: f),
    "fused_adam_": _Name("torch._fused_adam_", _NO_ADAM),
    "fused_adamw_": _Name("torch._fused_adamw_", _NO_ADAM),
    "fused_sgd_": _Name("torch._fused_sgd_", "decay outside a kernel takes the foreach kernels"),
    "foreach_add": _Name("torch._foreach_add", _LOOPS, _each(torch.add)),
    "foreach_add_": _Name("torch._foreach_add_", _LOOPS, _each(Tensor.add_)),
    "foreach_mul": _Name("torch._foreach_mul", _LOOPS, _each(torch.mul)),
    "foreach_sub_": _Name("torch._foreach_sub_", _LOOPS, _each(Tensor.sub_)),
    "get_cpp_compiler": _Name("torch._inductor.cpp_builder.get_cpp_compiler", _NO_COMPILER, lambda: None),
    "CppCodeCache": _Name("torch._inductor.codecache.CppCodeCache", _NO_COMPILER),
    "has_triton": _Name("torch.utils._triton.has_triton", _NO_COMPILER, lambda: False),
    "dynamo_config": _Name("torch._dynamo.config", _NO_COMPILER),
    "fx_config": _Name("torch.fx.experimental._config", _NO_COMPILER),
    "SubprocessScriptLauncher": _Name(
        "lightning.pytorch.strategies.launchers._SubprocessScriptLauncher",
        "a sweep of distributed jobs is launched as Lightning does it, which runs the whole sweep on each rank",
        type("SubprocessScriptLauncher", (), {}),
    ),
    "set_num_threads_if_needed": _Name(
        "lightning.fabric.utilities.distributed._set_num_threads_if_needed",
        "rank 0 keeps its number of threads",
        lambda num_processes: None,
    ),
}

_PACKAGES = {"hydra": "hydra-core", "lightning_fabric": "pytorch-lightning"}  # where the two names differ


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    path, off, value = NAMES[name]
    try:
        value = resolve_name(path)
    except (ImportError, AttributeError):
        _warn_missing(path, off)
    globals()[name] = value
    return value


@cache
def _warn_missing(path: str, off: str) -> None:
    library = path.partition(".")[0]
    log.warning("%s %s has no %s: %s", library, version(_PACKAGES.get(library, library)), path, off)


def _attribute(owner: Any, name: str, off: str, stand_in: Any = None) -> Any:
    """Return a private attribute of an object; warn once, and return the stand-in, where its class no longer has it."""
    if not hasattr(owner, name):
        _warn_missing(f"{type(owner).__module__}.{type(owner).__qualname__}.{name}", off)
    return getattr(owner, name, stand_in)


def missing(*names: str) -> list[str]:
    """Return those of these names that this version of their library lacks."""
    here = sys.modules[__name__]
    return [name for name in names if getattr(here, name) is NAMES[name].stand_in]


def _own(attribute: str, public: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
    return attrgetter(attribute) if hasattr(nn.Module(), attribute) else public


# A module's own parameters and children by name, None and duplicates included; the walk over a model asks each module.
own_parameters = _own("_parameters", lambda m: dict(m.named_parameters(recurse=False, remove_duplicate=False)))
own_modules = _own("_modules", lambda m: dict(m.named_children()))


def fsdp1_shapes(wrapper: nn.Module) -> list[tuple[Tensor, torch.Size]]:
    """Return the parameters that an FSDP1 wrapper has cut into pieces, each with its original shape."""
    handle: Any = getattr(wrapper, "_handle", None)
    if handle is None:  # it wraps nothing that has parameters
        return []
    flat, off = handle.flat_param, "all parameters under FSDP1 are refused as flattened"
    infos, shapes = _attribute(flat, "_param_infos", off, ()), _attribute(flat, "_shapes", off, ())
    return [(getattr(info.module, info.param_name), shape) for info, shape in zip(infos, shapes, strict=False)]


def is_fsdp1_piece(param: Tensor) -> bool:
    """Whether a parameter is a piece of FSDP1's flat parameter, or is that itself."""
    return hasattr(param, "_fsdp_flattened")


# torch's check that a step under CUDA graph capture can be captured, of an optimizer; torch 2.9 renamed it.
graph_capture_check: Callable[[torch.optim.Optimizer], None] = getattr(
    torch.optim.Optimizer,
    "_accelerator_graph_capture_health_check",
    getattr(torch.optim.Optimizer, "_cuda_graph_capture_health_check", lambda optimizer: None),
)


def tells_scaler_when_fused(cls: type) -> bool:
    """Whether the class sets ``_step_supports_amp_scaling``; torch 2.6's Adagrad does not."""
    codes = [getattr(vars(base).get("__init__"), "__code__", None) for base in cls.__mro__]
    return any("_step_supports_amp_scaling" in code.co_names for code in codes if code is not None)


def load_cpp(source: str, compiler_flags: tuple[str, ...]) -> Any:
    """Compile C++ with Inductor's options and load it as a library; both are cached on disk.

    The compiler sees its own machine. Asking Inductor, too, which vectors it has takes half a dozen compilations.
    """
    cache: Any = sys.modules[__name__].CppCodeCache
    asked = "needs_vec_isa" in inspect.signature(cache.load_async).parameters
    return cache.load_async(source, extra_flags=compiler_flags, **({"needs_vec_isa": False} if asked else {}))()


def per_group_lists(scheduler: Any) -> list[tuple[str, list[Any]]]:
    """Return the lists that a learning-rate scheduler keeps with an entry for each parameter group, by name."""
    names = ("base_lrs", "max_lrs", "min_lrs", "lr_lambdas", "base_momentums", "max_momentums", "_last_lr")
    found = [(name, getattr(scheduler, name, None)) for name in names]
    return [(name, values) for name, values in found if isinstance(values, list)]


def inner_schedulers(scheduler: Any) -> list[LRScheduler]:
    """Return the schedulers that a SequentialLR or ChainedScheduler drives."""
    return [inner for inner in getattr(scheduler, "_schedulers", ()) if isinstance(inner, LRScheduler)]


def attached_trainer(module: Any) -> Any:
    """Return the trainer of a LightningModule, None where it has none: the public property raises."""
    if not hasattr(type(module), "automatic_optimization"):  # a plain nn.Module
        return None
    return _attribute(module, "_trainer", "pass total_steps and steps_per_epoch where they are needed")


def logged_step(trainer: Any) -> int:
    """Return the step that Lightning logs the metrics of this batch at."""
    off, stand_in = "metrics of the monitor are logged at the step before", trainer.global_step - 1
    return int(_attribute(trainer.fit_loop.epoch_loop, "_batches_that_stepped", off, stand_in))


def is_finders(ckpt_path: Any) -> bool:
    """Whether a finder of Lightning has written a checkpoint, to put the run back to where its search began."""
    return Path(str(ckpt_path)).name.startswith((".lr_find_", ".scale_batch_size_"))


def forget_loader(trainer: Any) -> None:
    """Let Lightning make the training loader again, and restore its position from a checkpoint as it does."""
    off = "a run resumed within an epoch may start that epoch over; pass total_steps and steps_per_epoch"
    if _attribute(trainer.fit_loop, "_combined_loader", off) is not None:
        trainer.fit_loop._combined_loader = None


def fill_mesh(strategy: Any) -> None:
    """Set an "auto" data-parallel size of Lightning's ModelParallelStrategy from its number of processes."""
    off = "pass data_parallel_size and tensor_parallel_size"
    tensor_parallel = _attribute(strategy, "_tensor_parallel_size", off, "auto")
    if tensor_parallel != "auto" and _attribute(strategy, "_data_parallel_size", off) == "auto":
        strategy._data_parallel_size = strategy.world_size // tensor_parallel


def instantiated_key(target: type) -> str | None:
    """Return the key of the node that Hydra's ``instantiate`` is building a ``target`` for; None where it is not.

    Hydra tells a target no key: only the frame of that call knows.
    """
    made = _locals_of("hydra._internal.instantiate._instantiate2", "_call_target", "errors do not name a nested group")
    return made.get("full_key") or None if made and made.get("_target_") is target else None


def current_job() -> Mapping[str, Any] | None:
    """Return the local variables of the Hydra ``run_job`` that is running us, or None outside a Hydra job.

    Hydra does not tell a job which function it runs, with which config, or when the job ends: only that call knows.
    """
    off = "ranks compare no configs, and a sweep runs whole on each rank"
    return _locals_of("hydra.core.utils", "run_job", off)


def _locals_of(module: str, function: str, off: str) -> Mapping[str, Any] | None:
    """Return the local variables of the innermost call of a function that we run in; None outside of any."""
    loaded = sys.modules.get(module)
    called: Any = getattr(loaded, function, None)
    if loaded is not None and called is None:
        _warn_missing(f"{module}.{function}", off)
    frame = sys._getframe() if called is not None else None
    while frame is not None and frame.f_code is not called.__code__:
        frame = frame.f_back
    return None if frame is None else frame.f_locals
