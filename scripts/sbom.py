"""The parts of an image as CycloneDX 1.6: Debian's packages and Python's. It is run inside:

    docker run --rm -i --network none --entrypoint python train - < scripts/sbom.py > train.cdx.json

The standard library is enough for it. The same image gives the same document.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

DPKG = Path("/var/lib/dpkg/status")


def main() -> None:
    """Writes the document to stdout."""
    release = platform.freedesktop_os_release()
    parts = [*debian(release), *python()]
    try:
        project = metadata.version("labelcurve")
    except metadata.PackageNotFoundError:
        project = "unknown"
    image = {"type": "container", "bom-ref": "image", "name": "labelcurve", "version": project}
    system = {"type": "operating-system", "bom-ref": "os", "name": release["ID"]}
    system["version"] = release.get("VERSION_ID", "unknown")
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": image},
        "components": [system, *parts],
        "dependencies": [{"ref": "image", "dependsOn": ["os", *(p["bom-ref"] for p in parts)]}],
    }
    name = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(document, sort_keys=True))
    json.dump({**document, "serialNumber": f"urn:uuid:{name}"}, sys.stdout, indent=1)
    print()


def debian(release: dict[str, str]) -> list[dict[str, Any]]:
    """The packages that dpkg has installed."""
    found = []
    for entry in DPKG.read_text().split("\n\n") if DPKG.exists() else []:
        fields = dict(re.findall(r"(?m)^([A-Z][\w-]*): (.*)$", entry))
        if not fields.get("Status", "").endswith(" installed"):
            continue
        distro = f"{release['ID']}-{release.get('VERSION_ID', '')}".rstrip("-")
        purl = (
            f"pkg:deb/{release['ID']}/{quote(fields['Package'])}@{quote(fields['Version'])}"
            f"?arch={fields['Architecture']}&distro={distro}"
        )
        # Debian's advisories are of source packages; scanners look for theirs here.
        if source := re.fullmatch(r"(\S+)(?: \((.+)\))?", fields.get("Source", "")):
            name, version = source.groups()
            purl += f"&upstream={quote(name + (f'@{version}' if version else ''), safe='')}"
        found.append(_library(fields["Package"], fields["Version"], purl))
    return sorted(found, key=lambda part: str(part["purl"]))


def python() -> list[dict[str, Any]]:
    """The distributions that this Python finds, each once, with the licence that it declares."""
    found: dict[str, dict[str, Any]] = {}
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.name).lower()
        version = distribution.version
        purl = f"pkg:pypi/{quote(name)}@{quote(version)}"
        part = _library(name, version, purl)
        if licence := _licence(distribution.metadata):
            part["licenses"] = [licence]
        found.setdefault(purl, part)
    return [found[purl] for purl in sorted(found)]


def _library(name: str, version: str, purl: str) -> dict[str, Any]:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _licence(fields: Any) -> dict[str, Any] | None:
    if expression := fields.get("License-Expression"):
        return {"expression": expression}
    # Some put the whole text into this field.
    declared = (fields.get("License") or "").strip()
    if not declared or "\n" in declared or len(declared) > 80:
        classifiers = fields.get_all("Classifier") or []
        declared = next(
            (c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License :: ")), ""
        )
    return {"license": {"name": declared}} if declared else None


if __name__ == "__main__":
    main()
