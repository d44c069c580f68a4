"""podman with all storage in one folder and without a registry; removing the folder cleans up."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

# crun 1.8, podman's first choice on Debian 12, fails where both versions of cgroups are mounted.
PACKAGES = ("podman", "runc", "catatonit", "mmdebstrap")

# What Debian leaves out of its slim images.
SLIM = tuple(
    f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "locale", "info")
)

# As in Debian's images: no sync for each file of a package, no translations.
FAST = ("--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Languages "none"')

ROOT = Path(__file__).resolve().parents[2]

CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


class Unavailable(Exception):
    """No container engine is installed, and none can be installed."""


class Failed(Exception):
    """A command failed; the message holds the end of its output."""


def install() -> None:
    """Installs what is missing of podman and mmdebstrap.

    Raises:
        Unavailable: not root, not Debian, or apt could not.
    """
    if os.geteuid() != 0:
        raise Unavailable("root is needed to build a base image and to run containers")
    missing = [name for name in PACKAGES if not _installed(name)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Unavailable(
            f"{', '.join(missing)} missing, and apt-get is not available to install them"
        )
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=120"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    steps = [[*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", *missing]]
    for step in steps:
        done = subprocess.run(
            step, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
        )
        if done.returncode and step is steps[-1]:
            raise Unavailable(f"{' '.join(step)} failed:\n{tail(done.stdout + done.stderr)}")


def _installed(name: str) -> bool:
    # sbin is not on every user's PATH.
    return any((Path(folder) / name).exists() for folder in ("/usr/bin", "/usr/sbin"))


class Engine:
    """podman with storage, configuration and temporary files below `folder`."""

    def __init__(self, folder: Path) -> None:
        """Writes the configuration into `folder`, which holds everything."""
        self.folder = folder
        self._running: set[subprocess.Popen[str]] = set()
        self._interrupted = False
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "TMPDIR": str(folder / "tmp"),  # the caches of the builds lie there
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        for name in ("bin", "tmp", "logs"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder / "graph"}"\n'
            f'runroot = "{folder / "run"}"\n'
        )
        self._configure("containers.conf", network="host")
        # The same with no network, for commands that are run verbatim.
        self._configure("offline.conf", network="none")
        shim = folder / "bin" / "docker"
        shim.write_text('#!/bin/sh\nexec podman "$@"\n')
        shim.chmod(0o755)

    def _configure(self, name: str, network: str) -> None:
        # podman requests more than the host may allow.
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        processes = Path("/proc/sys/kernel/pid_max").read_text().strip()
        # On busy cores, threads that wait for one another stall small networks.
        threads = os.environ.get("OMP_NUM_THREADS")
        env = f'env = ["OMP_NUM_THREADS={threads}"]\n' if threads else ""
        (self.folder / name).write_text(
            "[containers]\n"
            f'default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]\n'
            f'netns = "{network}"\nlog_driver = "k8s-file"\n{env}'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            # Locks and state of another podman on this machine are not ours.
            f'lock_type = "file"\ntmp_dir = "{self.folder / "run" / "libpod"}"\n'
        )

    def run(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs `podman COMMAND...` and returns its result."""
        return self.execute(["podman", *command], timeout=timeout)

    def execute(
        self,
        command: list[str],
        timeout: float = 120,
        offline: bool = False,
        folder: Path | None = None,
        log: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs any command in a folder, with this engine as `docker` and `podman`.

        With a `log` all its output goes there, each line with its time, to show what is slow.
        """
        environment = dict(self.environment)
        if offline:
            environment["CONTAINERS_CONF"] = str(self.folder / "offline.conf")
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if log else subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            cwd=folder,
        ) as process:
            self._running.add(process)
            try:
                if log:
                    _follow(process, log, timeout)
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as error:
                raise Failed(f"{' '.join(command)}: no end after {timeout:g} s") from error
            finally:
                self._running.discard(process)
                if process.poll() is None:
                    process.terminate()
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def interrupt(self) -> None:
        """Ends the commands that are running, in whichever thread, and begins no more builds."""
        self._interrupted = True
        for process in list(self._running):
            process.terminate()

    def output(self, *command: str, timeout: float = 120) -> str:
        """Returns the output of `podman COMMAND...`.

        Raises:
            Failed: it failed.
        """
        done = self.run(*command, timeout=timeout)
        if done.returncode:
            raise Failed(f"podman {' '.join(command)}:\n{tail(done.stdout + done.stderr)}")
        return done.stdout.strip()

    def bootstrap(self, name: str) -> None:
        """Makes Debian 12 from its packages, as the image `name`.

        Raises:
            Failed: it could not be made.
        """
        if self.run("image", "exists", name).returncode == 0:
            return
        archive = self.folder / "base.tar"
        sources = apt_sources()
        command = ["mmdebstrap", "--variant=minbase", *SLIM, *FAST, "bookworm", str(archive)]
        done = self.execute([*command, *([str(sources)] if sources else [])], timeout=900)
        if done.returncode:
            raise Failed(f"mmdebstrap:\n{tail(done.stderr)}")
        self.output("import", str(archive), name)
        archive.unlink()

    def build(self, arguments: list[str], folder: Path, name: str) -> None:
        """Runs `docker build ARGUMENTS...` in `folder`; the log is kept under `name`.

        Layers are not kept, since committing them takes as long as the build.

        Raises:
            Failed: the build failed.
        """
        if self._interrupted:
            raise Failed("interrupted")
        command = ["build", "--format", "docker", "--pull=never", "--network", "host"]
        command += ["--layers=false"]
        bundle = os.environ.get("SSL_CERT_FILE", CA_BUNDLE)
        if Path(bundle).is_file():
            command += ["--secret", f"id=ca,src={bundle}"]
            for variable in ("SSL_CERT_FILE", "PIP_CERT"):
                command += ["--build-arg", f"{variable}=/run/secrets/ca"]
        log = self.folder / "logs" / f"build-{name}.log"
        done = self.execute(["podman", *command, *arguments], timeout=1200, folder=folder, log=log)
        if done.returncode:
            raise Failed(tail(log.read_text()))

    def tools(self, *packages: str) -> Path:
        """A folder with packages of Python, in the lock's versions where it has them.

        Raises:
            Failed: they could not be installed.
        """
        lock = (ROOT / "requirements.lock").read_text()
        pins = [
            next(iter(re.findall(rf"(?m)^{re.escape(name)}==[^ ]+", lock)), name)
            for name in packages
        ]
        folder = self.folder / "tools" / "-".join(packages)
        uv = ROOT / ".venv/bin/uv"
        if not folder.exists():
            installer = (
                [str(uv), "pip", "--quiet"] if uv.exists() else [sys.executable, "-m", "pip"]
            )
            fresh = folder.with_suffix(".new")
            done = subprocess.run(
                [*installer, "install", "--target", str(fresh), "--no-deps", *pins],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise Failed(f"{' '.join(pins)}: {tail(done.stderr, 3)}")
            fresh.rename(folder)
        return folder

    def remove_containers(self) -> None:
        """Ends and removes every container and volume of this engine, one by one."""
        for container in self.run("ps", "--all", "--quiet").stdout.split():
            self.run("rm", "--force", "--time", "5", container)
        for volume in self.run("volume", "ls", "--quiet").stdout.split():
            self.run("volume", "rm", "--force", volume)
        self.run("image", "unmount", "--all")
        self.run("image", "prune", "--force")  # builds that were replaced

    def remove(self) -> None:
        """Removes everything with the folder."""
        self.remove_containers()
        self.run("system", "reset", "--force", timeout=300)
        # An interrupted mmdebstrap leaves /dev and /proc mounted here: they must not be removed.
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in sorted(mounts, reverse=True):
            if Path(mount).is_relative_to(self.folder):
                subprocess.run(["umount", "--lazy", mount], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _follow(process: subprocess.Popen[str], log: Path, timeout: float) -> None:
    """Writes the output of a process until it ends, each line with the seconds since its start.

    Raises:
        TimeoutExpired: it was ended after the timeout.
    """
    start = time.monotonic()
    ended = threading.Timer(timeout, process.terminate)
    ended.start()
    try:
        with log.open("w", buffering=1) as file:
            for line in process.stdout or ():
                file.write(f"{time.monotonic() - start:6.1f} {line}")
    finally:
        ended.cancel()
    if time.monotonic() - start >= timeout:
        raise subprocess.TimeoutExpired(process.args, timeout)


def apt_sources() -> Path | None:
    """The host's own list of Debian 12's packages; None leaves it to mmdebstrap."""
    folder = Path("/etc/apt/sources.list.d")
    candidates = [*sorted(folder.glob("*.sources")), Path("/etc/apt/sources.list")]
    for path in candidates:
        if path.is_file():
            text = re.sub(r"(?m)^\s*#.*", "", path.read_text())
            if re.search(r"\bbookworm\b", text) and re.search(r"\bbookworm-security\b", text):
                return path
    return None


def tail(text: str, lines: int = 30) -> str:
    """The last lines."""
    return "\n".join(text.strip().splitlines()[-lines:])
