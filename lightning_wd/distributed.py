"""Distributed training that is right under Hydra: single runs, ``--multirun`` and every sweeper and launcher.

Lightning starts rank 1 and up with rank 0's own command line. Under ``--multirun`` that line is the whole sweep, so
each rank sweeps for itself: twice the output, and with a sweeper that draws its values (``shuffle``, Optuna) the ranks
train different configs together, silently. Here the other ranks are given one job, the one that rank 0 runs.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import unwrap
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lightning_wd._hydra import SEED_AT_START
from lightning_wd.errors import ConfigError, explain
from lightning_wd.run import names_secret, redact, variables_read

__all__ = ["HydraDDPStrategy", "HydraFSDP2Strategy", "check_ranks_agree"]

log = logging.getLogger(__name__)

# What a launch writes into the environment of rank 0; the next job of a sweep must find none of it.
_LAUNCH_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
_RANK_ZERO = "LIGHTNING_WD_RANK_ZERO"  # in the other ranks' environment: the process that has started them
_inside = threading.Event()  # while rank 0 is in what a Trainer launches: only there can it wait for the other ranks
_raised = threading.Event()  # set where what a Trainer launched last has raised, also if the job has caught it
_OF_A_RANK = re.compile(r"RANK|HOST|NODE|PROCID|LOCALID|(^|_)PID$", re.I)  # in the names of variables
_SHORTEST_TEXT = 4  # a shorter one stands in others by chance
_NOTICE = 15.0  # seconds for rank 0 to notice that another rank has failed
_TICK = 1.0  # seconds between two looks at the other ranks
_JOIN = 5.0  # seconds to end by themselves: for the other ranks once rank 0 has failed, for a process group at exit


class _HydraLaunch(ParallelStrategy):
    """What both strategies add to Lightning's: one Hydra job on every rank, torchrun's numbers, and the comparison."""

    _joined = False

    def set_world_ranks(self) -> None:
        """Take the number of processes from torchrun, then set the ranks as Lightning does."""
        if isinstance(self.cluster_environment, TorchElasticEnvironment):
            self._follow_torchrun()
        super().set_world_ranks()  # type: ignore[misc]

    def setup_environment(self) -> None:
        """Join the process group, to be left before the interpreter ends, then compare configs."""
        if _RANK_ZERO in os.environ:
            arguments = (int(os.environ[_RANK_ZERO]), _NOTICE)
            threading.Thread(target=_end_with, args=arguments, daemon=True, name="rank-zero-watch").start()
        if isinstance(self.cluster_environment, TorchElasticEnvironment) and os.environ["WORLD_SIZE"] != "1":
            _refuse_sweep()
        super().setup_environment()
        atexit.unregister(_leave_group_in_time)
        atexit.register(_leave_group_in_time)
        config = check_ranks_agree(self.root_device)
        if config is not None and not self._joined:  # a Trainer sets up again for each fit and test
            self._joined = True
            where = f"rank {dist.get_rank()} of {dist.get_world_size()} on {socket.gethostname()}"
            log.info(f"{where}: config {config[:12]}")

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        made = self._launcher
        if isinstance(made, _SubprocessScriptLauncher):
            self._launcher = _JobLauncher(made.cluster_environment, made.num_processes, made.num_nodes)

    def _follow_torchrun(self: Any) -> None:
        devices, nodes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
        asked = self.parallel_devices or []
        if (devices, nodes) == (len(asked), self.num_nodes):
            return
        if asked and asked[0].type == "cpu":
            self.parallel_devices = [torch.device("cpu")] * devices
        elif devices <= len(asked):
            self.parallel_devices = asked[:devices]
        else:
            return  # more processes than devices: Lightning's own error says it best
        self.num_nodes = nodes
        if os.environ["RANK"] == "0":
            log.info(f"torchrun has started {devices} process(es) on each of {nodes} node(s): these are used")


def _refuse_sweep() -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError(
            explain(
                "under torchrun each rank runs the whole sweep by itself, with values and folders of its own.",
                found=f"--multirun on {os.environ['WORLD_SIZE']} processes of torchrun",
                fix="start the sweep once, without torchrun: python train.py --multirun ... trainer=ddp",
            )
        )


class HydraDDPStrategy(_HydraLaunch, DDPStrategy):
    r"""Lightning's DDPStrategy whose other ranks run this Hydra job only, and which stops when ranks' configs differ.

    Every rank computes the gradient of its own part of the batch, and all step with the mean
    :math:`g = \frac{1}{N} \sum_{r=1}^{N} g_r`.

    - The other ranks are started with the overrides of the current job, in its output folder.
    - When the job ends, its processes, its process group and its environment variables go with it, so that the next job
      of a sweep starts clean, distributed or not.
    - At set-up the ranks compare their resolved configs, whoever started them (this class, torchrun, SLURM), and each
      logs the hash of its own.
    - Under torchrun, torchrun's number of processes and nodes holds, not ``Trainer(devices=, num_nodes=)``.

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


class HydraFSDP2Strategy(_HydraLaunch, ModelParallelStrategy):
    """FSDP2 by Lightning's ModelParallelStrategy, launched as :class:`HydraDDPStrategy`.

    As DDP, but each rank keeps its part only of the weights, the gradients and the optimizer's state, and gathers a
    layer while it computes with it. The module calls ``fully_shard`` in ``configure_model``. A checkpoint is one file
    with the whole weights, so it resumes on any number of processes, and under ``trainer=default`` too.

    Args:
        kwargs: the arguments of :class:`lightning.pytorch.strategies.ModelParallelStrategy`. Other defaults than there:
            ``tensor_parallel_size=1``, ``data_parallel_size`` is then the number of processes, and
            ``save_distributed_checkpoint=False``.

    Raises:
        ConfigError: at set-up, when the ranks' configs differ.

    References:
        Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, https://arxiv.org/abs/2304.11277
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"tensor_parallel_size": 1, "save_distributed_checkpoint": False, **kwargs})

    def set_world_ranks(self) -> None:
        """Set the ranks; now the number of processes is known, hence the size of the mesh."""
        super().set_world_ranks()
        if self._data_parallel_size == "auto" and self._tensor_parallel_size != "auto":
            self._data_parallel_size = self.world_size // self._tensor_parallel_size


def _end_with(parent: int, notice: float) -> None:
    """End this rank when rank 0 was killed and this one, waiting for it to come, would do so for half an hour."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(notice)  # in a collective it has noticed, and ends by itself
    os.kill(os.getpid(), signal.SIGKILL)


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _leave_group_in_time() -> None:
    """End gloo's threads while Python still runs: one that comes back to it later aborts a rank that has succeeded.

    After a failure it would wait for a collective that the other ranks never join, so it is given a few seconds.
    """
    leaving = threading.Thread(target=_leave_group, daemon=True)
    leaving.start()
    leaving.join(_JOIN)


def check_ranks_agree(device: torch.device | None = None) -> str | None:
    """Raise on every rank unless all ranks of the process group run the same Hydra job.

    The resolved configs are compared by a hash, one small collective. Left out, for they may differ without harm: the
    clock (``${now:...}``), the job's own output folder and Hydra's mode; values under a secret's name; and of what
    reads the environment (``${oc.env:...}``) the paths, and what a launcher tells each rank (its rank, its host). Texts
    from there are shown by their hash.

    Args:
        device: where the process group's backend wants its tensors; None for the CPU.

    Returns:
        The hash of this rank's config, in hexadecimal digits; None outside of Hydra, or with a single process.

    Raises:
        ConfigError: names each key that differs, with the ranks and their values.
    """
    job = _current_job()
    if job is None or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    mine = _Settings(job["task_cfg"])
    digest = hashlib.sha256(repr(mine.without(mine.changing)).encode()).digest()
    own = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(device or "cpu")
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    if all(torch.equal(own, other) for other in everyone):
        return digest.hex()
    ranks: list[Any] = [None] * len(everyone)
    dist.all_gather_object(ranks, mine)
    changing = set().union(*(rank.changing for rank in ranks))  # one rank's clock may stand as plain text on another
    if differences := _differences([rank.without(changing) for rank in ranks], [rank.shown for rank in ranks]):
        raise ConfigError(
            explain(
                f"the {len(ranks)} ranks of this job have different configs.",
                found="; ".join(differences),
                fix="give every rank the same overrides and environment; "
                "start a sweep once and let trainer=ddp start the other ranks",
            )
        )
    return digest.hex()


class _Settings:
    """A job's config, flat: as ranks compare it and as it may be shown; and the texts that change from rank to rank."""

    def __init__(self, config: Any) -> None:
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        self.compared: dict[str, str] = {}
        self.shown: dict[str, str] = {}
        self._add("", redact(config), OmegaConf.to_container(config, resolve=True))
        job, clock = HydraConfig.get(), OmegaConf.get_cache(config)["now"].values()
        mode = {str(job.mode), repr(job.mode)}  # a sweep's rank 0 starts the other ranks as single runs
        self.changing = {job.runtime.output_dir, *mode, *map(str, clock)}
        # Other values may be made of what an excluded one reads, as `${paths.root}/data`.
        for name in variables_read(OmegaConf.to_container(config, resolve=False)):
            text = os.environ.get(name, "")
            if len(text) >= _SHORTEST_TEXT and (os.sep in text or _OF_A_RANK.search(name) or names_secret(name)):
                self.changing.add(text)

    def _add(self, path: str, shown: Any, resolved: Any, *, secret: bool = False) -> None:
        secret = secret or names_secret(path)
        if isinstance(shown, (dict, list)) and shown:
            items = shown.items() if isinstance(shown, dict) else enumerate(shown)
            for key, item in items:
                where = f"{path}[{key}]" if isinstance(shown, list) else f"{path}.{key}" if path else str(key)
                self._add(where, item, resolved[key], secret=secret)
            return
        if secret:
            resolved = shown
        elif isinstance(shown, str) and "${oc.env:" in shown:
            if redact(resolved) != resolved or _of_this_rank(shown, resolved):
                resolved = shown
            elif isinstance(resolved, str):
                shown = resolved = f"{shown} (sha256 {hashlib.sha256(resolved.encode()).hexdigest()[:8]})"
            else:
                shown = resolved
        self.compared[path], self.shown[path] = repr(resolved), repr(shown)

    def without(self, texts: Iterable[str]) -> dict[str, str]:
        """Return what is compared with these texts replaced, the longest first: a folder's name holds the time."""
        pattern = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))
        return {key: pattern.sub("<run>", value) for key, value in sorted(self.compared.items())}


def _of_this_rank(text: str, resolved: object) -> bool:
    """Whether what a text reads from the environment is a path, or what a launcher tells one rank, such as its host."""
    names = variables_read(text)
    return (isinstance(resolved, str) and os.sep in resolved) or (bool(names) and all(map(_OF_A_RANK.search, names)))


def _differences(settings: Sequence[Mapping[str, str]], shown: Sequence[Mapping[str, str]]) -> list[str]:
    """Name each key that differs, with the ranks of each value."""
    lines = []
    for key in sorted(set().union(*settings)):
        ranks: dict[str | None, list[int]] = {}
        for rank, of_rank in enumerate(settings):
            ranks.setdefault(of_rank.get(key), []).append(rank)
        if len(ranks) > 1:
            values = (
                f"{shown[which[0]].get(key, 'absent')} on rank {' '.join(map(str, which))}" for which in ranks.values()
            )
            lines.append(f"{key} is " + ", ".join(values))
    return lines


def _current_job() -> Mapping[str, Any] | None:
    """Return the local variables of Hydra's ``run_job`` that is running us, or None outside of a Hydra job.

    Hydra tells no one in a job which function it runs, with which config, nor when the job ends: only that call knows.
    """
    core = sys.modules.get("hydra.core.utils")
    frame = sys._getframe() if core is not None else None
    while frame is not None:
        if frame.f_code is core.run_job.__code__:  # type: ignore[union-attr]
            return frame.f_locals
        frame = frame.f_back
    return None


def _command(task_function: Callable[..., Any]) -> list[str]:
    """Return the command that runs the current Hydra job again, by itself, in the same output folder."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    job: Any = HydraConfig.get()
    command = [sys.executable, *_program(task_function)]
    for source in job.runtime.config_sources:
        path = f"{source.schema}://{source.path}" if source.schema == "pkg" else source.path
        if source.provider in ("main", "command-line"):
            command += ["--config-path" if source.provider == "main" else "--config-dir", path]
    if job.job.config_name is not None:
        command += ["--config-name", job.job.config_name]

    # as typed: a secret that `${oc.env:...}` reads stays out of the command line
    overrides: Any = OmegaConf.to_container(job.overrides, resolve=False)
    command += [*overrides["task"], *filter(_outlives_the_sweep, overrides["hydra"])]
    command += ["hydra.mode=RUN", f"hydra.run.dir={_quoted(job.runtime.output_dir)}", "hydra.output_subdir=null"]
    if job.mode == RunMode.MULTIRUN:  # configs may refer to these
        for key in ("sweep.dir", "sweep.subdir", "job.num", "job.id"):
            if (value := OmegaConf.select(job, key, default=None)) is not None:
                command.append(f"hydra.{key}={value if key == 'job.num' else _quoted(value)}")
    return command


def _program(task_function: Callable[..., Any]) -> list[str]:
    """Return the interpreter's arguments that start this app."""
    from hydra.utils import to_absolute_path

    main = sys.modules["__main__"]
    app = unwrap(task_function).__globals__
    if app.get("__name__") == "__main__" and app is not vars(main):
        # a launcher's worker process, into which the app's function came pickled: its globals say where it was, while
        # cloudpickle >= 3.1.2 has put <dynamic-code> for the code's file
        source = os.path.abspath(app["__file__"])
        if app.get("__package__") is None:
            return [source]
        stem = os.path.splitext(os.path.basename(source))[0]
        return ["-m", app["__package__"] if stem == "__main__" else f"{app['__package__']}.{stem}".lstrip(".")]
    if main.__spec__ is not None:
        return ["-m", main.__spec__.name]
    return [to_absolute_path(sys.argv[0])]


def _outlives_the_sweep(override: str) -> bool:
    """Say whether an override of Hydra's own config still holds for one job of the sweep."""
    key = re.split("[=@]", override.lstrip("+~"))[0].replace("/", ".")
    mine = ("hydra.mode", "hydra.run.dir", "hydra.output_subdir", "hydra.job.num", "hydra.job.id")
    return key not in mine and key.split(".")[1] not in ("sweep", "sweeper", "launcher")


def _quoted(value: object) -> str:
    return "'" + str(value).replace("'", r"\'") + "'"


class _JobLauncher(_SubprocessScriptLauncher):
    """Start the other ranks of one Hydra job, and take everything down again when Hydra says that the job has ended."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other ranks unless they run already, then call the function."""
        job = None if self.cluster_environment.creates_processes_externally else self._job()
        if job is not None:
            self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
            ending = _JobEnd(job["callbacks"].callbacks, self.procs)
            self._start(_command(job["task_function"]))
            threading.Thread(target=ending.watch, daemon=True, name="rank-watch").start()
            _set_num_threads_if_needed(num_processes=self.num_processes)
        _inside.set()
        try:
            if job is None:
                result = super().launch(function, *args, trainer=trainer, **kwargs)
            else:
                result = function(*args, **kwargs)
        except BaseException:
            _raised.set()
            raise
        finally:
            _inside.clear()
        _raised.clear()
        return result

    def _job(self) -> Mapping[str, Any] | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        job = _current_job()
        if job is None and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise ConfigError(
                explain(
                    "the other ranks of this job cannot be started: they would each run the whole sweep.",
                    found="a Trainer in a thread that the job of a sweep has started",
                    fix="call it in the function that hydra.main decorates, not in a thread of its own",
                )
            )
        return job

    def _start(self, command: list[str]) -> None:
        from hydra.utils import get_original_cwd

        environment = self.cluster_environment
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        os.environ["NODE_RANK"] = str(environment.node_rank())
        os.environ["LOCAL_RANK"] = str(environment.local_rank())
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        for local_rank in range(1, self.num_processes):
            variables = {**os.environ, "LOCAL_RANK": str(local_rank), _RANK_ZERO: str(os.getpid())}
            self.procs.append(subprocess.Popen(command, env=variables, cwd=get_original_cwd()))


class _JobEnd:
    """A Hydra callback for one job: wait for the other ranks, then remove what the launch has left in this process."""

    def __init__(self, callbacks: list[Any], processes: list[subprocess.Popen[bytes]]) -> None:
        self._callbacks = callbacks
        self._processes = processes
        self._variables = {name: os.environ.get(name) for name in _LAUNCH_VARIABLES} | SEED_AT_START
        self._threads = torch.get_num_threads()
        self._ended = threading.Event()
        callbacks.append(self)

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        """Called by Hydra when the job has returned or raised, before Hydra shows the error."""
        from hydra.core.utils import JobStatus

        self._callbacks.remove(self)
        succeeded = job_return.status is JobStatus.COMPLETED
        # After an error the other ranks may wait for rank 0 in a collective, also where the job has caught it.
        failed = self._join(_JOIN if _raised.is_set() or not succeeded else None)
        _raised.clear()
        self._ended.set()
        for name, value in self._variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        torch.set_num_threads(self._threads)
        _leave_group_in_time()
        if failed:
            message = f"local rank {failed[0][0]} ended with exit code {failed[0][1]}; its own error stands above."
            if succeeded:
                job_return.status, job_return.return_value = JobStatus.FAILED, RuntimeError(message)
            else:
                log.error(message)

    def watch(self) -> None:
        """End this process when another rank has failed and this one, waiting for it, does not notice."""
        waited = 0.0
        while not self._ended.wait(_TICK):
            # one that has ended well before the group began is missed too
            gone = self._failed() or (not dist.is_initialized() and self._ended_ranks())
            waited = waited + _TICK if gone and _inside.is_set() else 0.0
            if waited >= _NOTICE:
                log.error("a rank has failed and rank 0 still waits for it: killing this job; the error stands above.")
                for process in self._processes:
                    process.kill()
                os.kill(os.getpid(), signal.SIGKILL)  # stuck in a collective: no exception would reach it

    def _join(self, limit: float | None) -> list[tuple[int, int]]:
        """Wait for the other ranks and return who failed; past the limit they hang in a collective and are killed."""
        deadline = None if limit is None else time.monotonic() + limit
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        failed = self._failed()
        for process in self._processes:
            process.kill()  # a no-op for those that have ended
            process.wait()
        return failed

    def _failed(self) -> list[tuple[int, int]]:
        """Return local rank and exit code of every process that has ended with an error."""
        return [(rank, code) for rank, code in self._ended_ranks() if code]

    def _ended_ranks(self) -> list[tuple[int, int]]:
        codes = [(rank, process.poll()) for rank, process in enumerate(self._processes, start=1)]
        return [(rank, code) for rank, code in codes if code is not None]
