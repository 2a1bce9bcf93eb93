"""Random values that the schema allows."""

from __future__ import annotations

import json
import math
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


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """What a schema refers to."""
    while "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    return schema


def _draw(schema: dict[str, Any], chance: random.Random, density: float) -> Any:
    schema = resolve(schema)
    if "enum" in schema:
        return chance.choice(schema["enum"])
    match schema.get("type"):
        case "object":
            return _object(schema, chance, density)
        case "array":
            count = max(chance.choice((0, 0, 1, 2)), schema.get("minItems", 0)) if "items" in schema else 0
            return [_draw(schema["items"], chance, 0.5) for _ in range(count)]
        case "boolean":
            return chance.random() < 0.5
        case "integer" | "number":
            least = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
            most = schema.get("maximum", 2**40)
            if "exclusiveMaximum" in schema:
                return (schema["exclusiveMinimum"] + schema["exclusiveMaximum"]) / 2
            least, most = math.ceil(least), math.floor(most)
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
            names = [_word(chance), f"{_word(chance)}.example/{_word(chance)}"]
            pattern = resolve(schema.get("propertyNames", {})).get("pattern", "")
            made[next(name for name in names if re.search(pattern, name))] = _draw(extra, chance, density)
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
               f"/{_word(chance)}/x y", f"/etc/shoal/files/{_word(chance)}",
               f"http://{_word(chance)}.example:{number}", f"s3://{_word(chance)}/m", f"https://{_word(chance)}.example",
               digest,
               f"{_word(chance)}.example:6379", f"{_word(chance)}.com/gpu", f"{number}s", f"*.{_word(chance)}.example",
               f"{_word(chance).upper()}_X", 'quote " and \\ {{ .Values }}: #', "a" * min(most, 63)]  # fmt: skip
    pattern = schema.get("pattern", "")
    least = schema.get("minLength", 0)
    fitting = [o for o in options if least <= len(o) <= most and re.search(pattern, o)]
    assert fitting, f"no text for {schema}"
    return str(chance.choice(fitting))
