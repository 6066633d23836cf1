"""`secateur watch`: what the server answers, to whom, and how it ends."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secateur.core.measurement import Measurement as M
from secateur.core.measurement import Measurements
from secateur.errors import StoreError
from secateur.lab.outcomes import Outcome
from secateur.lab.store import Store
from secateur.lab.watching import Watch

RECIPE = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits"},
    "step": [{"kind": "measure", "label": "dense"}],
}
TRIALS = [
    ({"prune.budget": budget}, [("dense", "measure", f"{k}" * 64)]) for k, budget in enumerate((0.5, 0.7))
]


def _started(folder: Path) -> tuple[Store, object]:
    store = Store(folder)
    _, lock = store.start_run(
        name="sweep",
        recipe=RECIPE,
        command="secateur sweep",
        seed=0,
        device="cpu",
        versions={},
        hardware={},
        trials=TRIALS,
    )
    return store, lock


def _measured(store: Store, trial: int, accuracy: float) -> None:
    found = Measurements([M("accuracy", accuracy), M("params", 1000 + trial)])
    store.keep(Outcome(key=f"{trial}" * 64, kind="measure", state={}, seconds=0.1, measurements=found))


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Watch, Store]]:
    store, lock = _started(tmp_path)
    watch = Watch(tmp_path)
    thread = threading.Thread(target=watch.serve)
    thread.start()
    yield watch, store
    watch.close()
    thread.join(10)
    assert not thread.is_alive()
    lock.release()  # type: ignore[attr-defined]


def _asked(watch: Watch, path: str = "/", method: str = "GET", host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*watch.address, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"localhost:{watch.address[1]}")
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status != 200 or answer.getheader("Cache-Control") == "no-store"
    return answer.status, answer.read().decode()


def test_the_page_follows_the_run(watched: tuple[Watch, Store]) -> None:
    watch, store = watched
    status, page = _asked(watch)
    assert (status, page.count("Nothing is measured yet.")) == (200, 1)
    before = json.loads(_asked(watch, "/state")[1])
    assert before["text"] == "sweep #1, running: 0 of 2 trials done; 0 of 2 steps."
    _measured(store, 0, 0.5)
    after = json.loads(_asked(watch, "/state")[1])
    assert after["version"] != before["version"]
    assert after["running"]
    page = _asked(watch)[1]
    assert page.count("50.00 %") > 0
    assert page.count('id="following" role="status"') == 1
    assert page.count("connect-src 'self'") == 1
    _measured(store, 1, 0.25)
    assert _asked(watch)[1].count("25.00 %") > 0


def test_other_names_paths_and_methods_are_refused(watched: tuple[Watch, Store]) -> None:
    watch, _ = watched
    port = watch.address[1]
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "localhost",
        f"localhost.evil.example:{port}",
        f"127.0.0.1:{port}.x",
    ):
        status, text = _asked(watch, "/state", host=host)
        assert (status, "sweep" in text) == (421, False), host
    assert _asked(watch, "/../store.sqlite")[0] == 404
    for method in ("POST", "PUT", "DELETE"):
        assert _asked(watch, "/", method)[0] == 501
    assert _asked(watch, "/state", "HEAD") == (200, "")


def test_only_the_loopback_address_is_served(watched: tuple[Watch, Store]) -> None:
    watch, _ = watched
    assert watch.address[0] == "127.0.0.1"
    with pytest.raises(StoreError, match=r"cannot listen .*; name another with --port"):
        Watch(watch.folder, port=watch.address[1])
    with socket.socket() as other:
        other.settimeout(2)
        assert (
            other.connect_ex(("127.0.0.2", watch.address[1])) != 0
        )  # this machine, by an address not served


def test_no_store_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run store here"):
        Watch(tmp_path / "nowhere")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent there")
def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    store, lock = _started(tmp_path)
    words = [sys.executable, "-m", "secateur", "watch", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    lock.release()  # type: ignore[attr-defined]
    assert [row.status for row in store.runs()] == ["interrupted"]  # still there, and readable
