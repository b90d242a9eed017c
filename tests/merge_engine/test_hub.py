"""Models of the hub, from a hub on this machine: several workers of a machine start at the same time."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parents[2]
_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_FILES = {"config.json": b"{}", "model.safetensors": os.urandom(2**20)}
_RESOLVE = "import sys; from merge_engine.sources import resolve; print(resolve(sys.argv[1]))"


class _Hub(BaseHTTPRequestHandler):
    """Just enough of the hub's interface for a download; ``asked`` counts what files were sent."""

    asked: Counter[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        if "/resolve/" not in self.path:
            about = _tree() if "/tree/" in self.path else _model()
            self._send(json.dumps(about).encode(), "application/json", with_body)
            return
        name = self.path.rpartition("/")[2]
        if with_body:
            self.asked[name] += 1
        self._send(_FILES[name], "application/octet-stream", with_body)

    def _send(self, body: bytes, kind: str, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", _COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _model() -> dict[str, object]:
    names = [{"rfilename": name} for name in _FILES]
    return {"id": "org/model", "sha": _COMMIT, "siblings": names, "tags": [], "private": False}


def _tree() -> list[dict[str, object]]:
    return [
        {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha256(body).hexdigest()}
        for name, body in _FILES.items()
    ]


@pytest.fixture
def hub() -> Iterator[tuple[str, Counter[str]]]:
    """Its address, and how often each file was sent."""
    asked: Counter[str] = Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_workers_that_start_at_the_same_time_fetch_a_model_once(
    hub: tuple[str, Counter[str]], tmp_path: Path
) -> None:
    address, asked = hub
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(_ROOT),
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _RESOLVE, "org/model"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    found = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], found
    (folder,) = {Path(said.strip()) for said, _ in found}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == _FILES
    assert asked == {"config.json": 1, "model.safetensors": 1}
