"""Lightning's DDP and FSDP2 for Hydra jobs.

Lightning starts rank 1 and up with rank 0's own command line. Under ``--multirun`` that line is the whole sweep, so
each rank sweeps for itself: twice the output, and with a sweeper that draws its values (``shuffle``, Optuna) the ranks
train different configs together, silently. Here the other ranks are given one job, the one that rank 0 runs.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy

from lightning_wd._lightning import either
from lightning_wd._private import NAMES, fill_mesh
from lightning_wd.distributed.agree import check_ranks_agree
from lightning_wd.distributed.launch import JobLauncher, leave_group_in_time, watch_rank_zero
from lightning_wd.errors import ConfigError

__all__ = ["HydraDDPStrategy", "HydraFSDP2Strategy", "HydraLaunch", "HydraShards"]

log = logging.getLogger(__name__)


if TYPE_CHECKING:
    _Strategy = ParallelStrategy
else:  # of whichever package the class below it has
    _Strategy = object


class HydraLaunch(_Strategy):
    """What the strategies add to Lightning's: one Hydra job on every rank, torchrun's numbers, and the comparison."""

    _joined = False

    def set_world_ranks(self) -> None:
        """Take the number of processes from torchrun, then set the ranks as Lightning does."""
        if self._under_torchrun():
            self._follow_torchrun()
        super().set_world_ranks()  # type: ignore[misc]

    def setup_environment(self) -> None:
        """Join the process group, to be left before the interpreter ends, then compare configs."""
        watch_rank_zero()
        if self._under_torchrun() and os.environ["WORLD_SIZE"] != "1":
            _refuse_sweep()
        super().setup_environment()
        atexit.unregister(leave_group_in_time)
        atexit.register(leave_group_in_time)
        config = check_ranks_agree()
        if config is not None and not self._joined:  # a Trainer sets up again for each fit and test
            self._joined = True
            where = f"rank {dist.get_rank()} of {dist.get_world_size()} on {socket.gethostname()}"
            log.info(f"{where}: config {config[:12]}")

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        made: Any = self._launcher
        if isinstance(made, either(NAMES["SubprocessScriptLauncher"].path)):
            self._launcher = JobLauncher(made.cluster_environment, made.num_processes, made.num_nodes)

    def _under_torchrun(self) -> bool:
        torchelastic = either("lightning.fabric.plugins.environments.TorchElasticEnvironment")
        return isinstance(self.cluster_environment, torchelastic)

    def _follow_torchrun(self: Any) -> None:
        devices, nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
        asked = self.parallel_devices or []
        if (devices, nodes) == (len(asked), self.num_nodes):
            return
        if asked and asked[0].type == "cpu":
            asked = [torch.device("cpu")] * devices
        if devices > len(asked):
            return  # more processes than devices: leave the error to Lightning
        self.parallel_devices, self.num_nodes = asked[:devices], nodes
        if os.environ["RANK"] == "0":
            log.info(f"torchrun has started {devices} process(es) on each of {nodes} node(s): these are used")


def _refuse_sweep() -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError(
            "under torchrun each rank runs the whole sweep by itself, with values and folders of its own.",
            found=f"--multirun on {os.environ['WORLD_SIZE']} processes of torchrun",
            fix="start the sweep once, without torchrun: python train.py --multirun ... trainer=ddp",
        )


class HydraDDPStrategy(HydraLaunch, DDPStrategy):
    r"""Lightning's DDPStrategy whose other ranks run this Hydra job only, and which stops when ranks' configs differ.

    Every rank computes the gradient of its own part of the batch, and all ranks step with the mean
    :math:`g = \frac{1}{N} \sum_{r=1}^{N} g_r`.

    - The other ranks are started with the overrides of the current job, in its output folder.
    - The processes, the process group and the environment variables of a job end with it: the next one starts clean.
    - At set-up the ranks compare their configs, whoever started them (this class, torchrun, SLURM), and each
      logs the hash of its own.
    - Under torchrun, its number of processes and nodes holds, not ``Trainer(devices=, num_nodes=)``.

    Without Hydra this is the plain DDPStrategy.

    Args:
        kwargs: the arguments of :class:`lightning.pytorch.strategies.DDPStrategy`.

    Raises:
        ConfigError: at set-up, when the ranks' configs differ.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(strategy=HydraDDPStrategy(), accelerator="cpu", devices=2, logger=False)
        >>> trainer.world_size
        2

    References:
        Li et al., PyTorch Distributed: Experiences on Accelerating Data Parallel Training,
        https://arxiv.org/abs/2006.15704
    """


class HydraShards(HydraLaunch):
    """What the FSDP2 strategies add: defaults that fit one model on any number of processes, and the mesh's size."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"tensor_parallel_size": 1, "save_distributed_checkpoint": False, **kwargs})

    def set_world_ranks(self) -> None:
        """Set the ranks, then the size of the mesh from the number of processes."""
        super().set_world_ranks()
        if self.root_device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
            raise ConfigError(
                "FSDP2 on CPU processes needs a newer torch.",
                found=f"torch {torch.__version__}",
                fix="install a newer torch, or write trainer=ddp_cpu",
            )
        fill_mesh(self)


class HydraFSDP2Strategy(HydraShards, ModelParallelStrategy):
    """FSDP2 by Lightning's ModelParallelStrategy, launched as :class:`HydraDDPStrategy`.

    As DDP, but each rank keeps only its part of the weights, the gradients and the optimizer's state, and gathers a
    layer while it computes with it. The module calls ``fully_shard`` in ``configure_model``. A checkpoint is one file
    with the whole weights, so it resumes on any number of processes, and under ``trainer=default`` too.

    Args:
        kwargs: the arguments of :class:`lightning.pytorch.strategies.ModelParallelStrategy`, with
            ``tensor_parallel_size=1`` (so ``data_parallel_size`` is the number of processes) and
            ``save_distributed_checkpoint=False`` unless given.

    Raises:
        ConfigError: at set-up, when the ranks' configs differ; on CPU processes with torch 2.6, which cannot.

    References:
        Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, https://arxiv.org/abs/2304.11277
    """
