"""What a group of workers needs of a cluster: devices, Ray resources, places. Pure.

One placement group per rank, so that a rank can be replaced without touching its peers; all of a group's are asked
for together and given back together if one cannot be had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shoal.cluster.errors import StartError

PLACES = "shoal_place"
"""A resource that a Ray of our own declares, more than anybody will ask for."""

MOST_PLACES = 1024


@dataclass(frozen=True, slots=True)
class Need:
    """What one rank occupies: a whole GPU, or without one a share of the CPU."""

    cpus: int
    gpus: int
    places: int = 0
    """Places of a Ray of our own, which counts nothing else: its CPUs are ours to share."""

    @property
    def bundle(self) -> dict[str, float]:
        """The one bundle of a rank's placement group.

        >>> Need(cpus=2, gpus=0).bundle
        {'CPU': 2.0}
        """
        resources = {"CPU": float(self.cpus), "GPU": float(self.gpus), PLACES: float(self.places)}
        return {name: amount for name, amount in resources.items() if amount}


def resolve_device(device: str, gpus: float) -> str:
    """ "auto" becomes "cuda" where the cluster has a GPU, else "cpu"; anything else is kept.

    >>> resolve_device("auto", gpus=0.0), resolve_device("auto", gpus=8.0), resolve_device("cpu", gpus=8.0)
    ('cpu', 'cuda', 'cpu')
    """
    if device != "auto":
        return device
    return "cuda" if gpus >= 1 else "cpu"


def need_of(device: str, threads: int, local: bool = False) -> Need:
    """What one rank needs. `threads` CPU threads compute, or feed the GPU. `local`: on a Ray of our own."""
    assert device != "auto", "the device was not resolved"
    gpus = int(device.startswith("cuda"))
    return Need(0, gpus, places=1) if local else Need(threads, gpus)


def require_room(need: Need, ranks: int, total: Mapping[str, float]) -> None:
    """Raise StartError when `ranks` ranks can never be placed on a cluster with `total` resources."""
    for name, amount in need.bundle.items():
        wanted, there = amount * ranks, total.get(name, 0.0)
        if wanted > there:
            unit = {"CPU": "CPUs", "GPU": "GPUs"}.get(name, "places")
            raise StartError(
                f"{ranks} workers need {wanted:g} {unit}, the Ray cluster has {there:g}: "
                "lower cluster.ep_size, cluster.groups or worker.threads, or add nodes"
            )


def listen_hosts(places: Sequence[str], home: str, insecure: bool) -> tuple[str, ...]:
    """The address that each place's worker listens on, given the addresses of their nodes and of the router's, `home`.

    On one machine everything stays on loopback. Across machines workers must be reached from outside, in the clear
    until credentials are set up, so that needs `insecure`; StartError without it.

    >>> listen_hosts(["10.0.0.1", "10.0.0.1"], home="10.0.0.1", insecure=False)
    ('127.0.0.1', '127.0.0.1')
    >>> listen_hosts(["10.0.0.1", "10.0.0.2"], home="10.0.0.1", insecure=True)
    ('10.0.0.1', '10.0.0.2')
    """
    if set(places) <= {home}:
        return ("127.0.0.1",) * len(places)
    if not insecure:
        away = ", ".join(sorted(set(places) - {home}))
        raise StartError(
            f"workers on other machines ({away}) would be reached in the clear: "
            "set cluster.insecure = true on a network of your own, or use one machine"
        )
    return tuple(places)
