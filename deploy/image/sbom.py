"""Print what is installed beside this interpreter as a CycloneDX bill of materials (JSON)."""

from __future__ import annotations

import json
from importlib.metadata import Distribution, distributions
from typing import Any


def component(found: Distribution) -> dict[str, Any]:
    """One package."""
    name, version = found.metadata["Name"], found.version
    licence = found.metadata.get("License-Expression") or found.metadata.get("License") or ""
    made: dict[str, Any] = {
        "type": "library",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{version}",
    }
    if licence:
        made["licenses"] = [{"license": {"name": licence.splitlines()[0][:100]}}]
    return made


def bill() -> dict[str, Any]:
    """Everything, by name."""
    found = {d.metadata["Name"].lower(): d for d in distributions()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "components": [component(found[name]) for name in sorted(found)],
    }


if __name__ == "__main__":
    print(json.dumps(bill(), indent=1))
