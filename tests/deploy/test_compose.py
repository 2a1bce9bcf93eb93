"""deploy/compose.yaml: what it says is what the product understands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from shoal.cluster.cli import app
from shoal.cluster.config import load
from shoal.cluster.errors import ConfigError

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GIVEN = {"MODEL_PATH": "/srv/m", "SHOAL_SECRET": "word", "EP_SIZE": "2", "MAX_CONCURRENT_REQUESTS": "64"}


def filled(text: str) -> str:
    """Variables as compose fills them in."""

    def value(match: re.Match[str]) -> str:
        name, default = match[1], match[2] or ""
        return GIVEN.get(name, default.removeprefix(":-"))

    return re.sub(r"\$\{([A-Z_]+)(:[-?][^}]*)?\}", value, text).replace("$$", "$")


def environment(service: str) -> dict[str, str]:
    """A service's variables."""
    return {name: filled(str(value)) for name, value in SERVICES[service].get("environment", {}).items()}


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_the_settings_of_every_service_are_the_product_s(profile: str) -> None:
    """Names, types and values are taken; familiar names mean what they say elsewhere."""
    workers = load(environment=environment(f"workers-{profile}"))
    assert ("/models/checkpoint", 2) == (workers.cluster().model, workers.cluster().ep_size)
    assert {"cpu": "cpu", "gpu": "cuda"}[profile] == workers.worker("m").device
    router = load(environment=environment(f"router-{profile}"))
    assert 64 == router.router(model_dir="m").max_running
    assert router.cluster().redis_url == workers.cluster().redis_url == "redis://:word@redis:6379/0"


@pytest.mark.parametrize(("said", "int8"), [("mxfp4", False), ("MXFP4", False), ("mxfp4-int8", True), ("", False)])
def test_quantization_says_what_the_experts_are_computed_with(said: str, int8: bool) -> None:
    """Weights as published; activations rounded to 8 bits where that is asked for."""
    assert int8 == load(environment={"QUANTIZATION": said}).worker("m").int8_activations


@pytest.mark.parametrize("said", ["awq", "fp8", "mxfp4 ", "none"])
def test_another_quantization_is_refused(said: str) -> None:
    """With what there is; nothing is served as something else than was asked for."""
    with pytest.raises(ConfigError, match=r"QUANTIZATION is .* not mxfp4 or mxfp4-int8"):
        load(environment={"QUANTIZATION": said})


def test_8_bit_activations_are_refused_on_a_gpu() -> None:
    """They are the CPU kernels' own; the worker says so before it reads a weight."""
    from shoal.kernels.target import BackendError, choose

    with pytest.raises(BackendError, match=r"8-bit activations|no CUDA device"):
        choose("cuda", int8=True)


def test_our_own_names_win_over_familiar_ones() -> None:
    """Whoever says both means ours."""
    both = {"MAX_CONCURRENT_REQUESTS": "1", "SHOAL_ROUTER__MAX_RUNNING": "9", "MODEL_PATH": "/a"}
    assert 9 == load(environment=both).router(model_dir="m").max_running
    assert "/b" == load(environment=both | {"SHOAL_CLUSTER__MODEL": "/b"}).cluster().model


def commands() -> list[list[str]]:
    """Every shoal command line in it."""
    found = []
    for service in SERVICES.values():
        words = [filled(word) for word in service["command"]]
        found += (
            [words] if words[0] == "shoal" else [line.split() for line in re.findall(r"shoal [\w=./ -]+", words[-1])]
        )
        found += [[filled(word) for word in check[1:]]] if (check := service["healthcheck"].get("test")) else []
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_exists_with_its_options(command: list[str]) -> None:
    """The product's own parser takes it; --help keeps it from running."""
    result = CliRunner().invoke(app, [*command[1:], "--help"])
    assert 0 == result.exit_code, result.output
    for option in (word.split("=")[0] for word in command if word.startswith("--")):
        assert option in result.output


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_locked_down(name: str) -> None:
    """Read-only, not root, no capability, nothing to gain, and its image is a target of the Dockerfile."""
    service = SERVICES[name]
    assert (True, "10001:10001", ["ALL"]) == (service["read_only"], service["user"], service["cap_drop"])
    assert ["no-new-privileges:true"] == service["security_opt"]
    assert f"AS {service['build']['target']}\n" in (DEPLOY / "Dockerfile").read_text()
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_no_secret_is_copied_into_a_read_only_container() -> None:
    """Compose does that with every secret that is no file, and the engine refuses it: nothing would start."""
    assert not [name for name, said in COMPOSE.get("secrets", {}).items() if "file" not in said]


def test_volumes_and_networks_resolve() -> None:
    """Everything that a service names exists."""
    for service in SERVICES.values():
        assert set(service.get("secrets", [])) <= set(COMPOSE.get("secrets", {}))
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        if mode := service.get("network_mode"):
            assert "profiles" not in SERVICES[mode.removeprefix("service:")]


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "network_mode" in service])
def test_a_container_that_is_started_again_leaves_nobody_without_a_network(name: str) -> None:
    """The network that it shares belongs to a container that does nothing, and so never ends; its ports are there."""
    owner = SERVICES[SERVICES[name]["network_mode"].removeprefix("service:")]
    assert ["sleep", "infinity"] == owner["command"]
    assert "ports" not in SERVICES[name]
    assert ["50051", "8000"] == [port.rpartition(":")[2] for port in owner["ports"]]
    assert SERVICES[name]["depends_on"]["network"]["restart"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_compiled_can_be_loaded(name: str) -> None:
    """Engines mount a tmpfs noexec unless told otherwise, and no library could be loaded from it."""
    [tmp] = SERVICES[name]["tmpfs"]
    assert ("/tmp", True) == (tmp.partition(":")[0], "exec" in tmp.partition(":")[2].split(","))


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_what_workers_say_is_heard(profile: str) -> None:
    """Ray would keep it in files of the container."""
    assert "1" == environment(f"workers-{profile}")["RAY_LOG_TO_STDERR"]
