"""The compose files, and what they mount."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

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
        assert all(port.startswith("127.0.0.1:") for port in COMPOSE["services"][name]["ports"])
