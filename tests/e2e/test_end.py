"""Deaths and ends: of a worker, of a cluster in order, at once, and by SIGKILL."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil

from tests.e2e.served import Client, becomes, serving


def test_killed_workers_and_controller_are_a_pause_and_a_stop_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """kill -9 of a rank in the middle of a stream: the stream goes on, token by token, and a replacement comes.
    The controller is killed too, and the cluster still grows afterwards. `shoal stop` ends it in order. Ray's own
    authentication is on, as it is by default."""
    with serving(tiny_model, tmp_path / "state") as served:
        client = Client(served.wait_until_ready())
        undisturbed = client.ids(seed=1, tokens=400)
        call = client.generate(seed=1, tokens=400)
        said = list(next(event for event in call if event.WhichOneof("event") == "tokens").tokens.ids)
        os.kill(client.workers()[1].pid, signal.SIGKILL)
        said += [token for event in call for token in event.tokens.ids]
        assert undisturbed == said
        assert becomes(lambda: len(client.workers()) == 2, within=60.0), served.output()
        controller = next(
            process
            for process in psutil.Process(served.process.pid).children(recursive=True)
            if "ControllerActor" in " ".join(process.cmdline())
        )
        controller.kill()
        scaled = served.shoal("scale", "--ep-size", "3", "--wait", "80")
        assert scaled.returncode == 0, scaled.stderr
        assert undisturbed == client.ids(seed=1, tokens=400)
        client.close()

        served.look()
        stopped = served.shoal("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert served.process.wait(60) == 0, served.output()
        assert served.leaves_nothing(within=60.0), served.left()
        assert served.running() is None


def test_a_second_ctrl_c_stops_at_once_and_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """With a request running, the first waits for it, the second does not."""
    with serving(tiny_model, tmp_path / "state", RAY_AUTH_MODE="disabled") as served:
        client = Client(served.wait_until_ready())
        call = client.generate(seed=1, tokens=7000)
        next(call)
        served.process.send_signal(signal.SIGINT)
        time.sleep(0.7)
        assert served.process.poll() is None, "the first Ctrl-C waits for the request"
        served.look()
        begin = time.monotonic()
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(60) == 128 + signal.SIGINT, served.output()
        assert time.monotonic() - begin < 8.0
        assert served.leaves_nothing(within=60.0), served.left()
        assert "Traceback" not in served.output()
        client.close()


def test_ctrl_c_while_starting_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """In the middle of Ray's own start, when Ray does not yet know what it has to stop."""
    with serving(tiny_model, tmp_path / "state", RAY_AUTH_MODE="disabled") as served:
        served.wait_until_it_says("starting Ray")
        assert becomes(lambda: served.look() >= 4, within=60.0), served.output()
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(120) == 0, served.output()
        assert served.leaves_nothing(within=60.0), served.left()
        assert "Traceback" not in served.output()


def test_sigkill_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """A process that is killed can do nothing, so the kernel ends what it started; Ray's two idle agents, whose parent
    it was not, notice within a minute by themselves."""
    with serving(tiny_model, tmp_path / "state", RAY_AUTH_MODE="disabled") as served:
        served.wait_until_it_says("ready")
        served.process.kill()
        served.process.wait(10)
        assert served.leaves_nothing(within=90.0, besides="Agent"), served.left()
