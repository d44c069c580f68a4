"""The compose files, and what they mount."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from labelcurve.serving.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())


def test_every_mount_is_a_volume_or_a_folder_here() -> None:
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert list((ROOT / "deploy" / source).iterdir())
            else:
                assert source in COMPOSE["volumes"]


def test_the_gpu_file_adds_to_services_that_exist() -> None:
    more = yaml.safe_load((ROOT / "deploy/compose.gpu.yaml").read_text())
    assert set(more["services"]) == {"train", "serve"}
    assert set(more["services"]) < set(COMPOSE["services"])


def test_monitoring_is_a_profile_of_its_own_with_dated_images() -> None:
    profiles = {name: service.get("profiles") for name, service in COMPOSE["services"].items()}
    assert profiles == {
        "train": None,
        "serve": None,
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }
    for name in ("prometheus", "grafana"):
        assert re.search(r":v?\d+\.\d+\.\d+$", COMPOSE["services"][name]["image"])


def test_every_port_is_published_on_this_machine_alone() -> None:
    for service in COMPOSE["services"].values():
        for port in service.get("ports", ()):
            assert port.startswith(("127.0.0.1:", "${BIND:-127.0.0.1}:"))


def test_prometheus_scrapes_the_service_and_finds_its_rules() -> None:
    folder = ROOT / "deploy/prometheus"
    config = yaml.safe_load((folder / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"serve:{Settings().port}"]
    for pattern in config["rule_files"]:
        files = list(folder.glob(Path(pattern).name))
        assert files
        for path in files:
            assert yaml.safe_load(path.read_text())["groups"]


def test_grafana_finds_its_dashboards_and_their_source() -> None:
    folder = ROOT / "deploy/grafana"
    sources = yaml.safe_load((folder / "provisioning/datasources/prometheus.yaml").read_text())
    (source,) = sources["datasources"]
    assert source["url"] == "http://prometheus:9090"
    dashboards = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert dashboards
    for dashboard in dashboards:
        (choice,) = [v for v in dashboard["templating"]["list"] if v["type"] == "datasource"]
        assert choice["query"] == source["type"]
