"""The manifests as kustomize renders them: against the schema, and against what they deploy."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import tyro
import yaml

from labelcurve.bundle.preprocess import MAX_BYTES
from labelcurve.serving.settings import Settings
from labelcurve.serving.telemetry import metrics
from labelcurve.serving.web import openapi
from labelcurve.serving.web.request import MAX_OVERHEAD
from labelcurve.training.options import DEFAULT_FRACTIONS, parse
from tests.models import publish_digits

FOLDER = Path(__file__).parents[2] / "deploy/kubernetes"
KUBECTL = Path(sys.executable).with_name("kubectl")
VERSIONS = ("1.33", "1.35")
OVERLAYS = ("cpu", "gpu")


def render(overlay: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    done = subprocess.run(
        [str(KUBECTL), "kustomize", str(folder / overlay)],
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
    stub = tmp_path / "labelcurve"
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
        ["train", "--data", environment["DATA"], "--fraction", fraction, "--seed", seed, *others]
        for seed, fraction in pairs
    ]
    said = (FOLDER.parents[1] / "docs/deploying.md").read_text()
    assert f"one pod per pair of fraction and seed, {len(found)} in total" in said
    assert sorted({float(arguments[4]) for arguments in found}) == sorted(DEFAULT_FRACTIONS)
    for arguments in found:
        parse(arguments[1:])
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


KSERVE = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}
"""Fields of a KServe predictor in addition to those of a pod. The file was validated as a whole
against KServe's CRD of 2026-08, unknown fields refused."""


@pytest.mark.parametrize("version", VERSIONS)
def test_kserves_predictor_is_a_pod_that_serves(
    rendered: dict[str, list[dict[str, Any]]], version: str
) -> None:
    service = yaml.safe_load((FOLDER / "kserve.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    predictor = service["spec"]["predictor"]
    spec = {name: value for name, value in predictor.items() if name not in KSERVE}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(pod, version, strict=True)
    (container,) = spec["containers"]
    settings = tyro.cli(Settings, args=container["args"])
    assert str(settings.models) == "/mnt/models"
    (port,) = container["ports"]
    assert port["containerPort"] == settings.port
    for probe, path in (
        ("startupProbe", "/v2/health/ready"),
        ("readinessProbe", "/v2/health/ready"),
        ("livenessProbe", "/v2/health/live"),
    ):
        assert container[probe]["httpGet"] == {"path": path, "port": settings.port}
        assert path in openapi.document()["paths"]
    (storage,) = container["env"]
    claims = [
        m["metadata"]["name"] for m in rendered["cpu"] if m["kind"] == "PersistentVolumeClaim"
    ]
    assert storage["name"] == "STORAGE_URI"
    assert storage["value"].removeprefix("pvc://") in claims
    # As locked down as the Deployment of the overlay.
    deployed = only(rendered["cpu"], "Deployment")["spec"]["template"]["spec"]
    for name in ("securityContext", "automountServiceAccountToken"):
        assert spec[name] == deployed[name]
    assert container["securityContext"] == deployed["containers"][0]["securityContext"]


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


COMBINATIONS = {
    "image": ("image",),
    "volume": ("volume",),
    "image on the internet": ("image", "internet"),
    "volume on the internet": ("volume", "internet"),
    "gpu with photos": ("gpu", "photos"),
    "cpu with everything": ("cpu", "photos", "internet"),
}
"""An overlay and the components that are added to it."""


@pytest.fixture(scope="module")
def combined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("combined") / "kubernetes"
    shutil.copytree(FOLDER, folder)
    (folder / "own").mkdir()
    found = {}
    for name, (overlay, *components) in COMBINATIONS.items():
        content = {
            "resources": [f"../{overlay}"],
            "components": [f"../{component}" for component in components],
        }
        (folder / "own/kustomization.yaml").write_text(yaml.safe_dump(content))
        found[name] = render("own", folder)
    return found


@pytest.mark.parametrize("name", COMBINATIONS)
@pytest.mark.parametrize("version", VERSIONS)
def test_overlays_and_components_fit_the_schema(
    combined: dict[str, list[dict[str, Any]]], name: str, version: str
) -> None:
    for manifest in combined[name]:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_service_alone_trains_nothing(combined: dict[str, list[dict[str, Any]]]) -> None:
    for name in ("image", "volume"):
        kinds = [manifest["kind"] for manifest in combined[name]]
        assert "Job" not in kinds
        assert kinds.count("PersistentVolumeClaim") == (name == "volume")
        spec = only(combined[name], "Deployment")["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert volumes == ({"models", "tmp"} if name == "volume" else {"tmp"})
        assert bool(spec.get("initContainers")) == (name == "volume")
        (container,) = spec["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_image_with_models_has_them_where_they_are_served_from() -> None:
    dockerfile = (FOLDER / "image/Dockerfile").read_text()
    assert "COPY models /models" in dockerfile
    served = (FOLDER.parents[1] / "Dockerfile.serve").read_text()
    assert "\nWORKDIR /\n" in served
    assert Settings().models == Path("models")


def test_the_pod_for_copying_fits_the_schema_and_the_claims(
    combined: dict[str, list[dict[str, Any]]],
) -> None:
    pod = yaml.safe_load((FOLDER / "volume/copy.yaml").read_text())
    for version in VERSIONS:
        kubernetes_validate.validate(pod, version, strict=True)
    (volume,) = pod["spec"]["volumes"]
    claim = only(combined["volume"], "PersistentVolumeClaim")["metadata"]["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim
    user = only(combined["volume"], "Deployment")["spec"]["template"]["spec"]["securityContext"]
    assert user.items() <= pod["spec"]["securityContext"].items()


@pytest.mark.parametrize("name", [name for name, parts in COMBINATIONS.items() if len(parts) > 1])
def test_components_fit_what_they_are_added_to(
    combined: dict[str, list[dict[str, Any]]], name: str
) -> None:
    manifests = combined[name]
    deployment = only(manifests, "Deployment")["spec"]["template"]
    (container,) = deployment["spec"]["containers"]
    if "internet" in COMBINATIONS[name]:
        settings = tyro.cli(Settings, args=container["args"])
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in deployment["spec"]["volumes"]}
        assert settings.api_keys
        keys = volumes[mounts[str(settings.api_keys.parent)]]
        assert keys["secret"]["secretName"] == "labelcurve-keys"
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"http": settings.port, "metrics": settings.metrics_port}
        annotations = deployment["metadata"]["annotations"]
        assert annotations["prometheus.io/port"] == str(settings.metrics_port)
        (rule,) = only(manifests, "Ingress")["spec"]["rules"]
        backend = rule["http"]["paths"][0]["backend"]["service"]
        service = only(manifests, "Service")
        assert backend["name"] == service["metadata"]["name"]
        assert backend["port"]["name"] == service["spec"]["ports"][0]["name"]
        (tls,) = only(manifests, "Ingress")["spec"]["tls"]
        assert tls["hosts"] == [rule["host"]]
        limit = only(manifests, "Ingress")["metadata"]["annotations"]
        megabytes = int(limit["nginx.ingress.kubernetes.io/proxy-body-size"].removesuffix("m"))
        assert megabytes * 2**20 >= MAX_BYTES * 4 // 3 + MAX_OVERHEAD
        traces = only(manifests, "NetworkPolicy", "labelcurve-traces")["spec"]
        assert (
            traces["podSelector"]["matchLabels"].items() <= deployment["metadata"]["labels"].items()
        )
        endpoint = urlsplit(settings.otlp_endpoint or "")
        assert {port["port"] for rule in traces["egress"] for port in rule["ports"]} == {
            53,
            endpoint.port,
        }
    if "photos" in COMBINATIONS[name]:
        job = only(manifests, "Job")["spec"]["template"]["spec"]
        (training,) = job["containers"]
        data = next(row["value"] for row in training["env"] if row["name"] == "DATA")
        (mount,) = [m for m in training["volumeMounts"] if m["mountPath"] == data]
        (volume,) = [v for v in job["volumes"] if v["name"] == mount["name"]]
        claim = volume["persistentVolumeClaim"]["claimName"]
        only(manifests, "PersistentVolumeClaim", claim)
        # For the pretrained weights, without which photos are trained on at 64 px.
        (egress,) = only(manifests, "NetworkPolicy", "labelcurve-train")["spec"]["egress"]
        assert 443 in {port["port"] for port in egress["ports"]}
        gpu = COMBINATIONS[name][0] == "gpu"
        assert ("nvidia.com/gpu" in training["resources"]["limits"]) == gpu
