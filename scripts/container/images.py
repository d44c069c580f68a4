"""Checks of an image's configuration, contents and size."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from container.engine import Engine
from container.report import Report
from container.running import LOCKED

BUDGET_MB = {"train": 6500, "serve": 3000, "serve-cpu": 550}
"""Maximum size of each image on disk, in MB of 1,000,000 bytes."""

TOOL = re.compile(
    r"([\w.-]+-)?"
    r"(cc|cc1\w*|c\+\+|cpp|gcc|g\+\+|clang(\+\+)?|ld(\.bfd|\.gold|\.lld)?|as|make|cmake|ninja|git"
    r"|pip[\d.]*|uvx?|curl|wget)"
    r"(-[\d.]+)?"
)
"""With the machine's name before it and a version after it, too: x86_64-linux-gnu-gcc-12."""
HEAVY = ("torch", "torchvision", "triton", "scipy", "onnx", "matplotlib")
"""Packages that serving does not need."""
HOME = {".bashrc", ".profile"}
"""Files that Debian puts into root's home."""
CUDA_LIBRARY = re.compile(r"lib(cu|nv)\w*\.so(\.\d+)*")


def inspect(engine: Engine, report: Report, tag: str) -> int:
    """Checks an image's configuration and contents; returns its size in bytes."""
    image = json.loads(engine.output("image", "inspect", tag))[0]
    config = image["Config"]
    size = int(image["Size"])
    budget, user = BUDGET_MB[tag], config["User"].split(":")[0]
    report.check(f"{tag}: {size / 1e6:,.0f} MB, budget {budget:,}", size <= budget * 1e6)
    report.check(f"{tag}: not root by default", user not in ("", "0", "root"))
    labels = {name for name in config["Labels"] if name.startswith("org.opencontainers.image.")}
    report.check(f"{tag}: {len(labels)} OCI labels", len(labels) >= 5, labels)
    command = tag.split("-")[0]
    entry = config["Entrypoint"]
    report.check(f"{tag}: entry point", entry[:2] == ["labelcurve", command], entry)
    if command == "serve":
        health = image.get("HealthCheck") or image.get("Healthcheck")
        report.check(f"{tag}: has a health check", health)
    root = Path(engine.output("image", "mount", tag))
    try:
        contents(report, tag, root)
    finally:
        engine.run("image", "unmount", tag)
    imports(engine, report, tag)
    return size


def contents(report: Report, tag: str, root: Path) -> None:
    """Checks which files an image contains; `root` is its file system."""
    packages = root / "opt/labelcurve/lib/python3.11/site-packages"
    installed = {path.name.rsplit("-", 2)[0] for path in packages.glob("*.dist-info")}
    tools, caches = set(), set()
    for folder, folders, files in os.walk(root):
        caches |= {Path(folder, name) for name in folders if name == ".cache"}
        paths = [Path(folder, name) for name in files if TOOL.fullmatch(name)]
        tools |= {path for path in paths if path.lstat().st_mode & 0o111}
    report.check(f"{tag}: no compiler, installer or downloader", not tools, tools)
    report.check(f"{tag}: neither pip nor uv", not installed & {"pip", "uv"}, installed)
    wanted = {"bundle", "training", "benchmarks"} if tag == "train" else {"bundle", "serving"}
    there = {path.name for path in (packages / "labelcurve").iterdir() if path.is_dir()}
    there -= {"__pycache__"}
    report.check(f"{tag}: labelcurve with {', '.join(sorted(wanted))}", there == wanted, there)
    report.check(f"{tag}: its command", (root / "opt/labelcurve/bin/labelcurve").exists())
    caches |= {
        path
        for pattern in (
            *("root/*", "home/*", "media/*", "mnt/*", "tmp/*", "var/tmp/*"),
            *("var/lib/apt/lists/*", "var/cache/apt/*", "var/cache/ldconfig/*"),
            "run/secrets/*",  # the folder is where the build mounts them
        )
        for path in root.glob(pattern)
        if path.name not in HOME
    }
    report.check(f"{tag}: no caches", not caches, caches)
    n_sources = len([path for path in (root / "src", packages / "tests") if path.exists()])
    report.check(f"{tag}: the project is installed, without its working tree", n_sources == 0)
    runtimes = installed & {"onnxruntime", "onnxruntime_gpu"}
    runtime = "onnxruntime" if tag == "serve-cpu" else "onnxruntime_gpu"
    report.check(f"{tag}: {runtime} alone", runtimes == {runtime}, runtimes)
    libraries = [
        path.name
        for path in packages.rglob("*.so*")
        if CUDA_LIBRARY.fullmatch(path.name) and not path.is_symlink()
    ]
    if tag == "serve-cpu":
        report.check(f"{tag}: no CUDA", not libraries, libraries)
    else:
        stems = [name.split(".so")[0] for name in libraries]
        twice = {name for name in stems if stems.count(name) > 1}
        once = libraries and not twice
        report.check(f"{tag}: each of {len(libraries)} CUDA libraries once", once, twice)
    if tag != "train":
        heavy = installed & set(HEAVY)
        # Wherever they are, ignoring metadata that an installer writes next to them.
        heavy |= {
            str(path.relative_to(root))
            for folder in ("opt", "usr/lib", "usr/local")
            for name in HEAVY
            for path in (root / folder).glob(f"**/{name}/__init__.py")
            if path.parent.parent.name.endswith("-packages")
        }
        report.check(f"{tag}: no torch", not heavy, heavy)
    if tag == "serve":
        nvidia = {name for name in installed if name.startswith("nvidia_")} - {"nvidia_ml_py"}
        # What onnxruntime-gpu's extras name, and what those need.
        needed = {
            *("nvidia_cublas", "nvidia_cuda_nvrtc", "nvidia_cuda_runtime", "nvidia_cudnn_cu13"),
            *("nvidia_cufft", "nvidia_curand", "nvidia_nvjitlink"),
        }
        report.check(f"{tag}: no CUDA but onnxruntime-gpu's", nvidia <= needed, nvidia - needed)


def imports(engine: Engine, report: Report, tag: str) -> None:
    """Checks that neither Python of an image can import pip, uv or unneeded packages."""
    names = ["pip", "uv", *(HEAVY if tag != "train" else ("triton",))]
    find = "[name for name in sys.argv[1:] if importlib.util.find_spec(name)]"
    code = f"import importlib.util, sys; print({find})"
    for python in ("python", "/usr/bin/python3"):
        with report.attempt(f"{tag}: imports of {python}"):
            command = ["run", "--rm", *LOCKED, "--entrypoint", python, tag, "-c", code, *names]
            found = engine.output(*command)
            report.check(f"{tag}: {python} finds no {', '.join(names)}", found == "[]", found)
