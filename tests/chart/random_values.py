"""Random values that the schema allows, and which of them contradict each other, told apart without Helm."""

from __future__ import annotations

import json
import random
import re
from typing import Any

from tests.chart.rendering import CHART

SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())


def random_values(seed: int) -> dict[str, Any]:
    """One set; every key is given with a chance that changes from set to set."""
    chance = random.Random(seed)
    density = chance.choice((0.1, 0.3, 0.7, 1.0))
    made = _object(SCHEMA, chance, density)
    made.pop("global", None)
    return made


def contradictions(values: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """The keys that Helm must name when it refuses these values; none: they must render."""

    def get(path: str) -> Any:
        at, default = values, defaults
        for part in path.split("."):
            at, default = at.get(part, {}) if isinstance(at, dict) else {}, default[part]
        return default if at == {} and not isinstance(default, dict) else at

    found = []
    size, per = get("expertParallel.size"), get("worker.ranksPerPod")
    if size % per:
        found.append("expertParallel.size")
    if get("redis.mode") == "external" and not (get("redis.existingSecret") and get("redis.external.address")):
        found.append("redis.mode")
    if get("model.source") == "objectStore" and not get("model.objectStore.uri"):
        found.append("model.source")
    if get("gateway.enabled") and not get("gateway.parentRefs"):
        found.append("gateway.enabled")
    if get("router.service.grpcPort") == get("router.service.httpPort"):
        found.append("router.service.httpPort")
    if get("router.autoscaling.enabled") and get("router.autoscaling.maxReplicas") < get("router.replicas"):
        found.append("router.autoscaling.maxReplicas")
    if abs(get("worker.grpcPort") - get("worker.metricsPort")) < per:
        found.append("worker.metricsPort")
    tls, manager = get("tls.enabled"), get("tls.certManager.enabled")
    if tls and not manager and not (get("tls.existingSecret") and get("tls.internalSecret")):
        found.append("tls.enabled")
    if manager and not (tls and get("tls.certManager.issuerName")):
        found.append("tls.certManager.enabled")
    if get("tls.clientCertificates") and not tls:
        found.append("tls.clientCertificates")
    if get("auth.existingSecret") and not get("auth.required"):
        found.append("auth.existingSecret")
    if not get("serviceAccount.create") and not get("serviceAccount.name"):
        found.append("serviceAccount.create")
    for part in ("worker", "head", "router"):
        names = [variable["name"] for variable in values.get(part, {}).get("env", [])]
        if len(set(names)) != len(names):
            found.append(f"{part}.env")
    for part in ("worker", "head", "router", "redis.bundled"):
        resources = get(f"{part}.resources")
        if isinstance(resources, dict) and resources and _upside_down(resources):
            found.append(f"{part}.resources")
    return found


def _upside_down(resources: dict[str, Any]) -> bool:
    from tests.chart.rules import amount

    limits = resources["limits"]
    return any(k not in limits or amount(v) > amount(limits[k]) for k, v in resources["requests"].items())


def _resolve(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    return schema


def _draw(schema: dict[str, Any], chance: random.Random, density: float) -> Any:
    schema = _resolve(schema)
    if "enum" in schema:
        return chance.choice(schema["enum"])
    match schema.get("type"):
        case "object":
            return _object(schema, chance, density)
        case "array":
            count = chance.choice((0, 0, 1, 2)) if "items" in schema else 0
            return [_draw(schema["items"], chance, 0.5) for _ in range(count)]
        case "boolean":
            return chance.random() < 0.5
        case "integer" | "number":
            least, most = schema.get("minimum", 0), schema.get("maximum", 2**40)
            return chance.choice((least, most, min(most, least + chance.randrange(16)), chance.randint(least, most)))
        case _:
            return _text(schema, chance)


def _object(schema: dict[str, Any], chance: random.Random, density: float) -> dict[str, Any]:
    made = {}
    for name, below in schema.get("properties", {}).items():
        if name in schema.get("required", ()) or chance.random() < density:
            made[name] = _draw(below, chance, density)
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        for _ in range(chance.choice((0, 1, 3))):
            made[_word(chance)] = _draw(extra, chance, density)
    if len(made) < schema.get("minProperties", 0):
        name, below = next(iter(schema["properties"].items()))
        made[name] = _draw(below, chance, density)
    return made


def _word(chance: random.Random) -> str:
    return "".join(chance.choice("abcdefghijkmnpqrstuvwxyz") for _ in range(chance.randint(1, 12)))


def _text(schema: dict[str, Any], chance: random.Random) -> str:
    """A text that matches the schema's pattern: tried among texts of the kinds that our patterns are about."""
    most = int(schema.get("maxLength", 200))
    number = chance.choice((1, 2, 500, 4096))
    digest = f"sha256:{chance.getrandbits(256):064x}"
    options = ["", _word(chance), f"{_word(chance)}-{number}", f"{number}Gi", f"{number}Mi", f"{number}m", str(number),
               f"/{_word(chance)}/x y", f"s3://{_word(chance)}/m", f"https://{_word(chance)}.example", digest,
               f"{_word(chance)}.example:6379", f"{_word(chance)}.com/gpu", f"{number}s", f"*.{_word(chance)}.example",
               f"{_word(chance).upper()}_X", 'quote " and \\ {{ .Values }}: #', "a" * min(most, 63)]  # fmt: skip
    pattern = schema.get("pattern", "")
    least = schema.get("minLength", 0)
    fitting = [o for o in options if least <= len(o) <= most and re.search(pattern, o)]
    assert fitting, f"no text for {schema}"
    return str(chance.choice(fitting))
