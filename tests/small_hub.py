"""A model hub on this machine that serves one folder."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class SmallHub(BaseHTTPRequestHandler):
    """Answers as the Hub does, for one repository, tiny/trunk; tiny/gated is gated and everything else unknown."""

    folder: Path
    revision = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        files = {file.name: file.read_bytes() for file in self.folder.iterdir()}
        if path.startswith("/api/models/tiny/trunk/tree/"):
            tree = [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in files.items()]
            self.answer(json.dumps(tree).encode())
        elif path.startswith("/api/models/tiny/trunk"):
            siblings = [{"rfilename": name} for name in files]
            self.answer(json.dumps({"id": "tiny/trunk", "sha": self.revision, "siblings": siblings}).encode())
        elif path.startswith("/tiny/trunk/resolve/"):
            name = path.rsplit("/", 1)[-1]
            self.answer(files[name], {"X-Repo-Commit": self.revision, "ETag": f'"{name}"'})
        elif path.startswith("/api/models/tiny/gated"):
            self.answer(b"{}", {"X-Error-Code": "GatedRepo"}, status=403)
        else:
            self.answer(b"{}", {"X-Error-Code": "RepoNotFound"}, status=404)

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean."""


@contextmanager
def small_hub(folder: Path, cache: Path) -> Iterator[dict[str, str]]:
    """A hub that serves `folder` as tiny/trunk; yields the environment of a process that is to ask it."""
    handler = type("Handler", (SmallHub,), {"folder": folder})
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "no_proxy")}
    environment |= {"HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield environment | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        server.shutdown()
