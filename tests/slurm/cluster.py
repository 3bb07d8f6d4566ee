"""A real Slurm of several nodes on this machine, for the time of a test session; no root, no systemd, nothing in /etc.

Every node is a set of namespaces with its own network, host name, processes and shared memory, so that what a real
cluster refuses is refused here too: 127.0.0.1 is the node itself, and names must resolve. All of it hangs on one
process whose standard input is a pipe from the tests: whatever becomes of them, nothing is left.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from .packages import Programs, SlurmMissingError

NODES = ("node01", "node02")
GPUS = 8
NAMESPACES = ["--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(10.77.0.254)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={base}/munge.sock
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd-%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd-%n.log
PlugStackConfig={base}/plugstack.conf
{plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
KillWait=15
MinJobAge=3600
GresTypes=gpu
PropagateResourceLimits=NONE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
"""
SCRIPT = """
set -e
mount --bind {base}/hosts /etc/hosts
ip link set lo up
ip link add br0 type bridge
ip addr add 10.77.0.254/24 dev br0
ip link set br0 up
{drop} munged -F --force --socket={base}/munge.sock --key-file={base}/munge/munge.key --pid-file={base}/munge/pid \
    --log-file={base}/munge/log --seed-file={base}/munge/seed >>{base}/log/munged.out 2>&1 &
while [ ! -S {base}/munge.sock ]; do sleep .05; done
{drop} slurmctld -D >>{base}/log/slurmctld.out 2>&1 &
# node NUMBER NAME: runs while up/NAME exists; to kill its first process is to cut its power
node() {{
    while :; do
        while [ ! -e {base}/up/$2 ]; do sleep .1; done
        unshare --net --uts --mount --pid --fork --kill-child=KILL --mount-proc bash -c "hostname $2
            mount -t tmpfs tmpfs /dev/shm
            ip link set lo up
            while ! ip link show eth0 >/dev/null 2>&1; do sleep .02; done
            ip addr add 10.77.0.$1/24 dev eth0
            ip link set eth0 up
            exec {drop} slurmd -D -N $2 {stepd}" >>{base}/log/slurmd-$2.out 2>&1 &
        first=$!
        echo $first >{base}/$2.pid
        while [ "$(readlink /proc/$first/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep .02; done
        ip link add veth$1 type veth peer name eth0 netns $first
        ip link set veth$1 master br0 up
        wait $first || true
        ip link del veth$1 2>/dev/null || true
    done
}}
{start}
cat >/dev/null
"""


class Cluster:
    """Two nodes that claim eight GPUs each. Times are Slurm's: a test polls."""

    def __init__(self, base: Path, programs: Programs) -> None:
        self.base, self.programs = base, programs
        self.environment = {**programs.environment, "SLURM_CONF": str(base / "slurm.conf")}
        self._outer: subprocess.Popen[bytes] | None = None
        self._inner = 0

    def start(self) -> None:
        """Return when all nodes are idle.

        Raises:
            SlurmMissingError: this machine refuses namespaces.
        """
        probe = "ip link add br0 type bridge && ip link add veth0 type veth peer name veth1"
        tried = subprocess.run([*_unshare(), "sh", "-c", probe], env=self.environment, capture_output=True, text=True)
        if tried.returncode:
            raise SlurmMissingError(f"no network namespaces here: {tried.stderr.strip()[:200]}")
        self._configure()
        log = (self.base / "log" / "cluster.out").open("ab")
        self._outer = subprocess.Popen(
            [*_unshare(), "bash", str(self.base / "cluster.sh")],
            env=self.environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        self.until(lambda: children.read_text().split() and (self.base / "munge.sock").exists(), "namespaces")
        self._inner = int(children.read_text().split()[0])
        self.until(lambda: self.run("sinfo", "-hNp", "main", "-o", "%t", check=False).split() == ["idle"] * 2, "nodes")

    def stop(self) -> None:
        """End all of it at once."""
        if self._outer is not None:
            assert self._outer.stdin is not None
            self._outer.stdin.close()
            self._outer.kill()
            self._outer.wait()

    def run(self, *words: str | Path, check: bool = True, cwd: Path | None = None, **environment: str) -> str:
        """What a command prints, run where the cluster's users are."""
        done = subprocess.run(
            [*self._inside(cwd or Path.cwd()), *map(str, words)],
            env={**self.environment, **environment}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{' '.join(map(str, words))}: code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def cut_power(self, node: str) -> None:
        """End every process of ``node``; it stays away."""
        (self.base / "up" / node).unlink()
        self.run("bash", "-c", f"kill -9 $(cat {self.base / node}.pid)")

    def restore_power(self, node: str) -> None:
        """Start ``node`` again; returns when it takes jobs."""
        (self.base / "up" / node).touch()
        self.until(lambda: self.run("sinfo", "-hn", node, "-p", "main", "-o", "%t").strip() == "idle", node)

    def until(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Wait for ``condition``."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or (self._outer is not None and self._outer.poll() is not None):
                logs = [f"== {log}\n{log.read_text()[-1500:]}" for log in sorted((self.base / "log").iterdir())]
                raise AssertionError(f"no {what} after {seconds} s\n" + "\n".join(logs))
            time.sleep(0.05)

    def _inside(self, cwd: Path) -> list[str]:
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self._inner}", *user, "--net", "--mount", "--pid", f"--wdns={cwd}", "--"]

    def _configure(self) -> None:
        base, root = self.base, self.programs.root
        for name in ("munge", "state", "log", "spool", "up"):
            (base / name).mkdir(parents=True)
        base.chmod(0o755)
        (base / "munge").chmod(0o700)
        (base / "munge" / "munge.key").write_bytes(os.urandom(1024))
        (base / "munge" / "munge.key").chmod(0o400)
        host = os.uname().nodename.split(".")[0]
        nodes, gpus, hosts = [], ["AutoDetect=off"], ["127.0.0.1 localhost", f"10.77.0.254 {host}"]
        for number, node in enumerate(NODES, 1):
            address = f"10.77.0.{number}"
            where = f"NodeName={node} NodeHostname={node} NodeAddr={address}"
            nodes.append(f"{where} CPUs=64 RealMemory=512000 Gres=gpu:{GPUS}")
            hosts.append(f"{address} {node}")
            devices = base / "devices" / node
            devices.mkdir(parents=True)
            for gpu in range(GPUS):  # slurmd wants device files
                (devices / f"nvidia{gpu}").symlink_to("/dev/null")
            gpus.append(f"NodeName={node} Name=gpu File={devices}/nvidia[0-{GPUS - 1}] Flags=nvidia_gpu_env")
            (base / "up" / node).touch()
        plugins = f"PluginDir={self.programs.libraries}/slurm-wlm" if root else ""
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        files = {
            "slurm.conf": CONFIG.format(base=base, host=host, user=user, plugins=plugins, nodes="\n".join(nodes)),
            "gres.conf": "\n".join(gpus) + "\n",
            "plugstack.conf": "",
            "hosts": "\n".join(hosts) + "\n",
            "cluster.sh": SCRIPT.format(
                base=base,
                drop="" if os.geteuid() == 0 else "setpriv --ambient-caps=-all --inh-caps=-all",
                stepd=f"-d {root}/usr/sbin/slurmstepd" if root else "",
                start="\n".join(f"node {number} {node} &" for number, node in enumerate(NODES, 1)),
            ),
        }
        for name, text in files.items():
            (base / name).write_text(text)


def _unshare() -> list[str]:
    for name in ("unshare", "nsenter", "ip"):
        if not shutil.which(name):
            raise SlurmMissingError(f"no {name} here")
    return (
        ["unshare", *NAMESPACES] if os.geteuid() == 0 else ["unshare", "--map-current-user", "--keep-caps", *NAMESPACES]
    )
