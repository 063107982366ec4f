"""A real SLURM of two nodes on this machine, from Debian's packages unpacked into a folder: nothing is installed.

Its daemons and jobs live in a mount namespace of their own, whose /etc/hosts knows the nodes.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from runs import free_ports

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
PluginDir={libraries}/slurm-wlm
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SchedulerType=sched/builtin
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} RealMemory=2000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


class NoSlurm(Exception):
    """Why there is none here."""


class SmallSlurm:
    """Started; `stop` ends it.

    Raises:
        NoSlurm: where this machine is not Linux with Debian's packages, or this user may not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "root"
        if os.geteuid() or shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            raise NoSlurm("needs root and Debian's package tools")
        self._unpack()
        libraries = next(self.root.glob("usr/lib/*/slurm-wlm")).parent
        host = socket.gethostname()
        (folder / "slurm.conf").write_text(
            CONFIG.format(host=host, folder=folder, libraries=libraries, ports=free_ports(3))
        )
        (folder / "hosts").write_text(f"127.0.0.1 localhost n1 n2 {host}\n")
        for name in ("state", "spool/n1", "spool/n2"):
            (folder / name).mkdir(parents=True)
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SLURM")},
            "LD_LIBRARY_PATH": f"{libraries}:{libraries}/slurm-wlm", "SLURM_CONF": f"{folder}/slurm.conf",
            "PATH": f"{self.root}/usr/bin:{self.root}/usr/sbin:{os.environ['PATH']}",
        }  # fmt: skip
        # munged wants a folder that no other may write to.
        folder.chmod(0o755)
        self.run("mungekey", "--create", "--keyfile", f"{folder}/munge.key")
        self.run(
            "munged", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed",
        )  # fmt: skip
        stepd = self.root / "usr/sbin/slurmstepd-wlm"
        daemons = f"slurmctld-wlm -c && slurmd-wlm -N n1 -d {stepd} && slurmd-wlm -N n2 -d {stepd}"
        self.run("unshare", "-m", "sh", "-c", f"mount --bind {folder}/hosts /etc/hosts && {daemons}")
        deadline = time.monotonic() + 60
        while self.run("sinfo", "-h", "-o", "%t %D").split() != ["idle", "2"]:
            if time.monotonic() > deadline:
                self.stop()
                raise NoSlurm("its nodes did not come up")
            time.sleep(0.5)

    def _unpack(self) -> None:
        debs = self.folder / "debs"
        (debs / "partial").mkdir(parents=True)
        command = ["apt-get", "install", "--download-only", "--no-install-recommends", "--reinstall", "-y"]
        try:
            subprocess.run(
                [*command, "-o", f"Dir::Cache::archives={debs}", *PACKAGES],
                check=True,
                capture_output=True,
                timeout=120,
            )
            for package in debs.glob("*.deb"):
                subprocess.run(["dpkg", "-x", str(package), str(self.root)], check=True, capture_output=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise NoSlurm(f"Debian's packages cannot be had: {error}") from error
        if not (self.root / "usr/sbin/slurmctld-wlm").is_file():
            raise NoSlurm("Debian's packages are installed already or others")

    def run(self, *command: str, **options: str) -> str:
        done = subprocess.run(
            command, env={**self.environment, **options}, capture_output=True, text=True, timeout=60, cwd=self.folder
        )
        if done.returncode:
            raise NoSlurm(f"{command[0]} failed: {done.stderr or done.stdout}")
        return done.stdout

    def submit(self, script: Path, log: Path, **variables: str) -> str:
        """A job's number."""
        return self.run("sbatch", "--parsable", "--open-mode=append", "-o", str(log), str(script), **variables).strip()

    def field(self, job: str, name: str) -> str:
        """Of what `scontrol show job` says, as JobState or Restarts."""
        match = re.search(rf"\b{name}=(\S+)", self.run("scontrol", "show", "job", job))
        return match.group(1) if match else ""

    def stop(self) -> None:
        subprocess.run(["scancel", "-u", "root"], env=self.environment, capture_output=True)
        time.sleep(1)
        for name in ("n1", "n2", "slurmctld", "munged"):
            try:
                os.kill(int((self.folder / f"{name}.pid").read_text()), 9)
            except (OSError, ValueError):
                continue
