"""`Watch`: the report of a run while it is computed, served to browsers of this machine alone.

The server listens on the loopback address. A page of another site can have a browser ask it under a name of its own
that points to 127.0.0.1 (DNS rebinding); such a request says so in its Host header, and is refused. Nothing can be sent
to it: it answers GET and HEAD, and only for its two paths.

    /         the report, as `secateur report` writes it, without the pictures of stored weights
    /state    JSON: a version, which changes when there is more to show, and how far the run is, in a sentence
"""

from __future__ import annotations

import contextlib
import html
import http.server
import json
import os
import threading
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from secateur.errors import NothingToDoError, SecateurError, StoreError
from secateur.lab.reporting import gather
from secateur.lab.store import Store
from secateur.report import Report

__all__ = ["Watch"]

_LOOPBACK = "127.0.0.1"


class Watch:
    """A server that shows one run of a store, or whichever is the last.

    Args:
        folder: The store. It must be there.
        which: A run's number, or `last`.
        port: The port; 0 for any that is free.

    Raises:
        StoreError: There is no store.
    """

    def __init__(self, folder: str | os.PathLike[str], which: int | str = "last", port: int = 0):
        self.folder, self.which = Path(folder), which
        Store(self.folder, create=False).close()
        self._building = threading.Lock()
        self._page: tuple[str, str] = ("", "")
        try:
            self._server = http.server.ThreadingHTTPServer((_LOOPBACK, port), _handler(self))
        except OSError as error:
            raise StoreError(
                f"port {port} of {_LOOPBACK}: cannot listen ({error.strerror}); name another with --port, or none"
            ) from error
        self._server.daemon_threads = True

    @property
    def address(self) -> tuple[str, int]:
        """The address and the port that it listens on."""
        return _LOOPBACK, self._server.server_address[1]

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{_LOOPBACK}:{self.address[1]}/"

    def serve(self) -> None:
        """Answer until `close` is called or Ctrl-C arrives."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            pass
        finally:
            self._server.server_close()

    def close(self) -> None:
        """End `serve`, from another thread."""
        self._server.shutdown()

    def answers(self, host: str | None) -> bool:
        """Whether a request under this name is answered: this machine's own names with the port, and no other.

        Args:
            host: The Host header.
        """
        return host in {f"{name}:{self.address[1]}" for name in (_LOOPBACK, "localhost", "[::1]")}

    def state(self) -> dict[str, str | bool]:
        """How far the run is: `version`, `text`, and whether it is `running`."""
        store = Store(self.folder, create=False)
        try:
            row = store.run(self.which)
            trials = store.trials(row.id)
        finally:
            store.close()
        steps = [step for trial in trials for step in trial["steps"]]
        done = sum(step["seconds"] is not None for step in steps)
        of = [sum(trial["status"] == word for trial in trials) for word in ("done", "failed")]
        text = f"{row.name} #{row.id}, {row.status}: {of[0]} of {len(trials)} trials done"
        text += f", {of[1]} failed" if of[1] else ""
        return {
            "version": f"{row.id} {row.status} {of} {done}",
            "text": f"{text}; {done} of {len(steps)} steps.",
            "running": row.status == "running",
        }

    def page(self) -> str:
        """The report as it is now; a page that waits where nothing is measured yet."""
        with self._building:
            try:
                state = self.state()
            except StoreError as error:
                return _waiting(str(error))
            version = str(state["version"])
            if self._page[0] != version:
                store = Store(self.folder, create=False)
                try:
                    made = Report([gather(store, self.which, pictures=False)]).html(str(state["text"]))
                except NothingToDoError:
                    return _waiting(f"{state['text']} Nothing is measured yet.")
                finally:
                    store.close()
                self._page = (version, made)
            return self._page[1]


def _waiting(text: str) -> str:
    """A page that asks again every two seconds."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>secateur watch</title></head>'
        f"<body><main><h1>secateur watch</h1><p>{html.escape(text)}</p></main></body></html>"
    )


def _handler(watch: Watch) -> type[http.server.BaseHTTPRequestHandler]:
    """What answers the requests of one server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 20  # a connection over which nothing comes is closed

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if not watch.answers(self.headers.get("Host")):
                self._send(
                    HTTPStatus.MISDIRECTED_REQUEST, "text/plain", "not a name of this machine: " + watch.url
                )
            elif path in ("/", "/state"):
                self._answer(path)
            else:
                self._send(
                    HTTPStatus.NOT_FOUND, "text/plain", f"nothing is here: expected / or /state; {watch.url}"
                )

        do_HEAD = do_GET

        def _answer(self, path: str) -> None:
            try:
                text = watch.page() if path == "/" else json.dumps(watch.state())
            except SecateurError as error:
                self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", str(error))
            else:
                self._send(HTTPStatus.OK, "text/html" if path == "/" else "application/json", text)

        def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
            data = text.encode("utf-8")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("X-Frame-Options", "DENY")
            self.send_header("Cross-Origin-Resource-Policy", "same-origin")
            with contextlib.suppress(ConnectionError):  # the browser may be gone
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing of each request."""

    return Handler
