"""The manifests as kustomize renders them: against the schema, and against what they deploy."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import tyro
import yaml

from serving import metrics, openapi
from serving.settings import Settings
from tests.models import publish_digits
from training.options import parse

FOLDER = Path(__file__).parents[2] / "deploy/kubernetes"
KUBECTL = Path(sys.executable).with_name("kubectl")
VERSIONS = ("1.33", "1.35")
OVERLAYS = ("cpu", "gpu")


def render(overlay: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [str(KUBECTL), "kustomize", str(FOLDER / overlay)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[dict[str, Any]]]:
    return {overlay: render(overlay) for overlay in OVERLAYS}


@pytest.fixture(params=OVERLAYS)
def manifests(
    request: pytest.FixtureRequest, rendered: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    return rendered[request.param]


def only(manifests: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    return found


def pods(manifests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for kind in ("Job", "Deployment"):
        yield only(manifests, kind)["spec"]["template"]


@pytest.mark.parametrize("version", VERSIONS)
def test_they_fit_the_schema(manifests: list[dict[str, Any]], version: str) -> None:
    assert len(manifests) == 9
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schema_refuses_a_misspelt_field(manifests: list[dict[str, Any]]) -> None:
    job = only(manifests, "Job")
    wrong = {**job, "spec": {**job["spec"], "completionmode": "Indexed"}}
    with pytest.raises(kubernetes_validate.ValidationError, match="completionmode"):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_selectors_meet_labels_and_claims_exist(manifests: list[dict[str, Any]]) -> None:
    deployment = only(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        only(manifests, "Service")["spec"]["selector"],
        only(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only(manifests, "NetworkPolicy", "labelcurve-serve")["spec"]["podSelector"]["matchLabels"],
        *(constraint["labelSelector"]["matchLabels"] for constraint in spread),
    ):
        assert selector.items() <= labels.items()
    target = only(manifests, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    job = only(manifests, "Job")["spec"]["template"]["metadata"]["labels"]
    policy = only(manifests, "NetworkPolicy", "labelcurve-train")["spec"]["podSelector"]
    assert policy["matchLabels"].items() <= job.items()
    claims = {m["metadata"]["name"] for m in manifests if m["kind"] == "PersistentVolumeClaim"}
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in pods(manifests)
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert used == claims


def test_pods_are_locked_down(manifests: list[dict[str, Any]]) -> None:
    for pod in pods(manifests):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["automountServiceAccountToken"] is False
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"]["drop"] == ["ALL"]
            assert "memory" in container["resources"]["limits"]
        (container,) = spec["containers"]
        assert "cpu" in container["resources"]["limits"]  # the number of threads
        written = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert "/tmp" in written


def test_each_pod_of_the_job_trains_another_pair(
    manifests: list[dict[str, Any]], tmp_path: Path
) -> None:
    spec = only(manifests, "Job")["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    environment = {row["name"]: row["value"] for row in container["env"]}
    stub = tmp_path / "train"
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    found = []
    for index in range(spec["completions"]):
        done = subprocess.run(
            container["command"],
            env={
                **environment,
                "PATH": f"{tmp_path}:/usr/bin:/bin",
                "JOB_COMPLETION_INDEX": str(index),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(done.stdout.split())
    pairs = itertools.product(environment["SEEDS"].split(), environment["FRACTIONS"].split())
    others = environment["OPTIONS"].split()
    assert found == [
        ["--data", environment["DATA"], "--fraction", fraction, "--seed", seed, *others]
        for seed, fraction in pairs
    ]
    for arguments in found:
        parse(arguments)
    gpu = "nvidia.com/gpu" in container["resources"]["limits"]
    assert others == ["--device", "cuda"] * gpu, "a CPU must not take the place of a GPU in silence"


def test_probes_ask_routes_that_exist_on_the_port_that_is_served(
    manifests: list[dict[str, Any]],
) -> None:
    (container,) = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == Settings().port
    assert only(manifests, "Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    for probe, path in (
        ("startupProbe", "/readyz"),
        ("readinessProbe", "/readyz"),
        ("livenessProbe", "/livez"),
    ):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
        assert path in openapi.document()["paths"]


def test_the_service_waits_for_a_bundle(manifests: list[dict[str, Any]], tmp_path: Path) -> None:
    spec = only(manifests, "Deployment")["spec"]["template"]["spec"]
    (waiting,), (serving,) = spec["initContainers"], spec["containers"]
    assert waiting["image"] == serving["image"]
    command = [word.replace("/models", str(tmp_path)) for word in waiting["command"]]
    (tmp_path / ".runs/digits-10").mkdir(parents=True)
    (tmp_path / ".runs/digits-10/manifest.json").touch()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("waiting for a bundle")
        assert process.poll() is None
        publish_digits(tmp_path)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "manifest.json" in out


def test_there_is_time_to_drain(manifests: list[dict[str, Any]]) -> None:
    spec = only(manifests, "Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    settings = tyro.cli(Settings, args=container["args"])
    assert spec["terminationGracePeriodSeconds"] > settings.lame_duck + settings.drain + 5
    probe = container["readinessProbe"]
    assert settings.lame_duck >= probe["periodSeconds"] * probe["failureThreshold"]


@pytest.mark.parametrize(("overlay", "device"), [("cpu", "cpu"), ("gpu", "cuda")])
def test_the_service_runs_on_what_it_is_given(
    rendered: dict[str, list[dict[str, Any]]], overlay: str, device: str
) -> None:
    (container,) = only(rendered[overlay], "Deployment")["spec"]["template"]["spec"]["containers"]
    assert tyro.cli(Settings, args=container["args"]).device == device


def test_scaling_is_by_a_metric_that_is_exported(manifests: list[dict[str, Any]]) -> None:
    (metric,) = only(manifests, "HorizontalPodAutoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name == metrics.QUEUE._name
    adapter = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    assert rule["name"]["matches"] == f"^({name})_sum$"
    assert f"{name}_sum{{" in rule["seriesQuery"]
    assert f"{name}_count{{" in rule["metricsQuery"]


def test_the_pod_monitor_finds_the_pods_and_their_port(manifests: list[dict[str, Any]]) -> None:
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())["spec"]
    template = only(manifests, "Deployment")["spec"]["template"]
    assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (endpoint,) = monitor["podMetricsEndpoints"]
    (container,) = template["spec"]["containers"]
    assert endpoint["port"] == container["ports"][0]["name"]
    assert endpoint["path"] == template["metadata"]["annotations"]["prometheus.io/path"]


def test_gpus_are_asked_for_in_one_overlay(rendered: dict[str, list[dict[str, Any]]]) -> None:
    for overlay in OVERLAYS:
        for pod in pods(rendered[overlay]):
            spec = pod["spec"]
            (container,) = spec["containers"]
            wanted = container["resources"]["limits"].get("nvidia.com/gpu")
            assert wanted == (1 if overlay == "gpu" else None)
            assert ("nodeSelector" in spec) == (overlay == "gpu")
    images = [pod["spec"]["containers"][0]["image"] for pod in pods(rendered["cpu"])]
    assert images == ["train:latest", "serve-cpu:latest"]
