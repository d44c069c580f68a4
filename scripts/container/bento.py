"""BentoML's own way: `bentoml build` and `bentoml containerize`, with podman, and the image run."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from container.engine import CA_BUNDLE, ROOT, Engine, Failed, tail
from container.report import Report
from container.running import LOCKED, classified, logs, until_ready

TAG = "labelcurve-bento"

# BentoML starts from Python's official image; without a registry, this stands in for it: python,
# pip, and the certificates of a proxy in front of the package index.
PYTHON = """FROM {base}
RUN apt-get update && apt-get install -y --no-install-recommends \\
    ca-certificates python3 python3-pip python3-venv && ln -s python3 /usr/bin/python
COPY ca.crt /etc/ssl/certs/ca-certificates.crt
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_CERT=/etc/ssl/certs/ca-certificates.crt \\
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
"""


MODELS = """
import sys
from pathlib import Path
from tests.models import digit_png, publish_digits
publish_digits(Path(sys.argv[1], "models"))
Path(sys.argv[1], "digit.png").write_bytes(digit_png(0))
"""


def bento(engine: Engine, report: Report, base: str) -> None:
    """Builds the bento and its image as docs/deploying.md says, serves from it, and queries it.

    Python's image is replaced by a stand-in that is built from the image `base`.
    """
    command = ROOT / ".venv/bin/bentoml"
    if not command.exists():
        report.check("bentoml build", False, f"no {command}: `make setup` installs it")
        return
    folder = engine.folder / "bento"
    shutil.rmtree(folder, ignore_errors=True)
    project = folder / "project"
    caches = shutil.ignore_patterns("__pycache__")
    for name in ("labelcurve", "bundle", "serving", "training", "benchmarks"):
        shutil.copytree(ROOT / name, project / name, symlinks=True, ignore=caches)
    shutil.copy(ROOT / "bentofile.yaml", project)
    engine.environment["BENTOML_HOME"] = str(folder / "home")
    engine.environment["BENTOML_DO_NOT_TRACK"] = "True"
    with report.attempt("bentoml build"):
        python = [str(ROOT / ".venv/bin/python"), "-c", MODELS, str(project)]
        done = engine.execute(python, folder=ROOT)
        if done.returncode:
            raise Failed(f"a model for the bento: {tail(done.stderr)}")
        start = time.monotonic()
        build = [str(command), "build", "--version", "1"]
        done = engine.execute(build, timeout=300, folder=project)
        if not report.ran(f"`bentoml build` ({time.monotonic() - start:.0f} s)", done):
            return
        dockerfile = folder / "home/bentos/labelcurve/1/env/docker/Dockerfile"
        (image,) = re.findall(r"(?mi)^FROM (\S+) AS", dockerfile.read_text())
        stand_in(engine, base, image, folder)
        start = time.monotonic()
        options = ["--backend", "podman", "--image-tag", TAG]
        # Of podman's defaults: the image is made in docker's format, over the host's network.
        options += ["--opt", "format=docker", "--opt", "network=host"]
        done = engine.execute(
            [str(command), "containerize", "labelcurve:1", *options],
            timeout=1500,
            log=engine.folder / "logs/bento.log",
        )
        said = tail((engine.folder / "logs/bento.log").read_text())
        what = f"`bentoml containerize --backend podman` ({time.monotonic() - start:.0f} s)"
        if report.check(what, done.returncode == 0, said):
            size = int(engine.output("image", "inspect", "--format", "{{.Size}}", TAG))
            print(f"   {TAG}: {size / 1e6:,.0f} MB", flush=True)
            run(engine, report, (project / "digit.png").read_bytes())


def stand_in(engine: Engine, base: str, name: str, folder: Path) -> None:
    """Makes the image `name` that BentoML starts from.

    Raises:
        Failed: it could not be made.
    """
    context = folder / "python"
    context.mkdir()
    (context / "Dockerfile").write_text(PYTHON.format(base=base))
    shutil.copy(os.environ.get("SSL_CERT_FILE", CA_BUNDLE), context / "ca.crt")
    engine.build(["-t", name, "."], context, "python")


def run(engine: Engine, report: Report, digit: bytes) -> None:
    """Serves from the image with no network, as an unprivileged user, and queries it."""
    with report.attempt(f"{TAG} serves"):
        # BentoML writes to its home, which is in the image.
        options = [option for option in LOCKED if option != "--read-only"]
        container = engine.output("run", "--detach", *options, TAG).splitlines()[-1]
        try:
            classified(report, TAG, until_ready(engine, report, TAG, container), digit)
        except Failed as error:
            raise Failed(f"{error}\n{tail(logs(engine, container))}") from error
        finally:
            engine.run("rm", "--force", "--time", "10", container)
