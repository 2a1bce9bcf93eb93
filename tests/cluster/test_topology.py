"""What a group needs of a cluster."""

from __future__ import annotations

import pytest

from shoal.cluster.errors import StartError
from shoal.cluster.topology import Need, listen_hosts, need_of, require_room


def test_a_gpu_worker_takes_one_gpu() -> None:
    """On CUDA a rank is placed with a whole GPU and its CPU threads; without, with its threads alone."""
    assert need_of("cuda", threads=2).bundle == {"CPU": 2.0, "GPU": 1.0}
    assert need_of("cpu", threads=2).bundle == {"CPU": 2.0}


def test_a_cluster_that_is_too_small_is_refused_with_figures() -> None:
    """Waiting for ever for GPUs that do not exist is refused at once, and says what to change."""
    with pytest.raises(StartError, match=r"4 workers need 4 GPUs, the Ray cluster has 2: lower cluster\.ep_size"):
        require_room(Need(cpus=1, gpus=1), 4, {"CPU": 64.0, "GPU": 2.0})


def test_a_cluster_that_is_large_enough_is_taken() -> None:
    """Exactly enough is enough."""
    require_room(Need(cpus=1, gpus=1), 2, {"CPU": 2.0, "GPU": 2.0})


def test_workers_elsewhere_need_leave_to_be_reached_in_the_clear() -> None:
    """Off this machine nothing listens without encryption unless asked for."""
    with pytest.raises(StartError, match=r"cluster\.insecure = true"):
        listen_hosts(["10.0.0.1", "10.0.0.2"], home="10.0.0.1", insecure=False)
    with pytest.raises(StartError, match=r"10\.0\.0\.2"):
        listen_hosts(["10.0.0.2"], home="10.0.0.1", insecure=False)


def test_on_one_machine_everything_stays_on_loopback() -> None:
    """Even with leave, a cluster of one machine is not reachable from outside."""
    assert listen_hosts(["10.0.0.1"], home="10.0.0.1", insecure=True) == ("127.0.0.1",)
