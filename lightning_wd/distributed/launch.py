"""Starts the other ranks of one Hydra job, watches them, and cleans up when the job ends."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from inspect import unwrap
from typing import Any

import torch
import torch.distributed as dist

from lightning_wd._hydra import SEED_AT_START
from lightning_wd._private import SubprocessScriptLauncher, current_job, set_num_threads_if_needed
from lightning_wd.errors import ConfigError

__all__ = ["JobLauncher", "leave_group_in_time", "watch_rank_zero"]

log = logging.getLogger(__name__)

# Set on rank 0 by a launch, and restored before the next job.
_LAUNCH_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
_RANK_ZERO = "LIGHTNING_WD_RANK_ZERO"  # in the other ranks' environment: rank 0's process id
_inside = threading.Event()  # set while a Trainer runs on rank 0: only there can it wait for the other ranks
_raised = threading.Event()  # set when the last Trainer has raised, even if the job caught the error
_NOTICE = 15.0  # grace period in seconds before a stuck rank 0 is killed
_TICK = 1.0  # seconds between two looks at the other ranks
_JOIN = 5.0  # seconds that the other ranks get to end after rank 0 failed, and a process group at exit


def watch_rank_zero() -> None:
    """End this rank, if rank 0 has started it, when rank 0 is killed."""
    if _RANK_ZERO in os.environ:
        arguments = (int(os.environ[_RANK_ZERO]), _NOTICE)
        threading.Thread(target=_end_with, args=arguments, daemon=True, name="rank-zero-watch").start()


def _end_with(parent: int, notice: float) -> None:
    """End this rank when rank 0 was killed; otherwise it would wait for rank 0 for half an hour."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(notice)  # a rank in a collective notices, and ends by itself
    os.kill(os.getpid(), signal.SIGKILL)


def leave_group_in_time() -> None:
    """End gloo's threads before Python exits: a thread that returns later aborts a rank that has succeeded.

    After a failure this would wait for a collective that the other ranks never join, so it gets a few seconds.
    """
    if dist.is_initialized():
        leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
        leaving.start()
        leaving.join(_JOIN)


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


class JobLauncher(SubprocessScriptLauncher):  # type: ignore[misc]
    """Starts the other ranks of one Hydra job, and cleans up when Hydra says that the job has ended."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other ranks unless they run already, then call the function."""
        job = None if self.cluster_environment.creates_processes_externally else self._job()
        if job is not None:
            self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
            ending = _JobEnd(job["callbacks"].callbacks, self.procs)
            self._start(_command(job["task_function"]))
            threading.Thread(target=ending.watch, daemon=True, name="rank-watch").start()
            set_num_threads_if_needed(num_processes=self.num_processes)
        _inside.set()
        try:
            result = function(*args, **kwargs) if job else super().launch(function, *args, trainer=trainer, **kwargs)
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

        job = current_job()
        if job is None and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            raise ConfigError(
                "the other ranks of this job cannot be started: they would each run the whole sweep.",
                found="a Trainer in a thread that the job of a sweep has started",
                fix="call it in the function that hydra.main decorates, not in a thread of its own",
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
    """A Hydra callback for one job: waits for the other ranks, then removes what the launch left in this process."""

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
        # After an error, caught or not, the other ranks may wait for rank 0 in a collective.
        failed = self._join(_JOIN if _raised.is_set() or not succeeded else None)
        _raised.clear()
        self._ended.set()
        for name, value in self._variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        torch.set_num_threads(self._threads)
        leave_group_in_time()
        if failed:
            message = f"local rank {failed[0][0]} ended with exit code {failed[0][1]}; see its error above."
            if succeeded:
                job_return.status, job_return.return_value = JobStatus.FAILED, RuntimeError(message)
            else:
                log.error(message)

    def watch(self) -> None:
        """End this process when another rank has failed and this one waits for it without noticing."""
        waited = 0.0
        while not self._ended.wait(_TICK):
            # a rank that ended before the process group began is missing too, whatever its exit code
            gone = self._failed() or (not dist.is_initialized() and self._ended_ranks())
            waited = waited + _TICK if gone and _inside.is_set() else 0.0
            if waited >= _NOTICE:
                log.error("a rank has failed and rank 0 still waits for it: killing this job; see the error above.")
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
