"""A real SLURM on this machine, for the tests: one node, two CPUs, requeueing, started as root and stopped by pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
ReturnToService=2
JobRequeue=1
SchedulerParameters=requeue_setup_env_fail,sched_interval=1,sched_min_interval=0
KillWait=30
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why SLURM cannot be started here, or nothing."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "starting SLURM's daemons takes root"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and slurmd below a folder; yield the environment in which sbatch and srun find them."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    config = folder / "slurm.conf"
    controller, daemon = _free_ports(2)
    host = socket.gethostname().split(".")[0]
    config.write_text(CONFIG.format(folder=folder, host=host, controller=controller, daemon=daemon))
    environment = {**os.environ, "SLURM_CONF": str(config)}
    munge = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}"]
    munge += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command, ready in (
            (munge, ["munge", f"--socket={folder}/munge.socket", "--no-input"]),
            (["slurmctld", "-D", "-f", str(config)], ["scontrol", "ping"]),
            (["slurmd", "-D", "-f", str(config)], ["srun", "--immediate=5", "true"]),
        ):
            with (folder / f"{command[0]}.out").open("wb") as out:
                daemons.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
            _wait_for(ready, environment, folder)
        yield environment
        # slurmd's helpers outlive it: let every job end first, those of a failed test by force
        _wait_for(["sh", "-c", 'scancel --user=root; test -z "$(squeue --noheader)"'], environment, folder)
    finally:
        for process in reversed(daemons):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(command: list[str], environment: dict[str, str], folder: Path, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode == 0 and "DOWN" not in done.stdout:
            return
        if time.monotonic() > deadline:
            logs = "\n".join(f"{path}:\n{path.read_text()[-2000:]}" for path in folder.glob("*.[lo]*[gt]"))
            raise RuntimeError(f"{' '.join(command)} failed: {done.stdout}\n{logs}")
        time.sleep(0.3)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
