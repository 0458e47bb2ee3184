"""A webhook that hears how a sweep fares. It never holds up a sweep, and never fails one.

A POST of JSON: `event` (one of `TEXTS`), `study`, `host`, `when`, `text` for people, and what there is to say of the
event. With a secret, `Tunnel-Signature` is "sha256=" and the hex HMAC-SHA256 of the header
`Tunnel-Timestamp` (UNIX seconds), a dot, and the body; who listens refuses old timestamps.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from tunnel.errors import Stopped
from tunnel.folder import store, trouble
from tunnel.folder.store import Store
from tunnel.study import Study

TIMEOUT = 5.0  # seconds to connect, and for an answer
LAST_SECONDS = 2.0  # that the end of a sweep waits for what is not yet heard; a stop has 10 in all  *assumed*
MOST = 100  # events that wait  *assumed*
TEXTS = {  # by event, of what there is to say of it
    "finished": "the sweep has finished",
    "stopped": "the sweep has stopped: {reason}",
    "failed": "{failed} of {ended} trials failed",
    "budget": "{percent}% of budget.{name} = {limit} ({unit}) is taken",
    "alarm": "{text}",
}

log = logging.getLogger(__name__)


class Notifier:
    """Sends events from a thread of its own, which dies with the process."""

    def __init__(self, url: str, secret: str | None, about: dict[str, Any]) -> None:
        self.url, self.secret, self.about = url, secret, about
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST)
        self.thread = threading.Thread(target=self.run, daemon=True, name="notify")
        self.thread.start()

    def tell(self, event: str, **what: Any) -> None:
        text = f"{self.about['study']}: {TEXTS[event].format(**what)}"
        said = {"event": event, **self.about, "when": store.now(), "text": text, **what}
        try:
            self.events.put_nowait(said)
        except queue.Full:
            log.warning("the webhook is too slow: %s is not told", event)

    def close(self) -> None:
        """Waits a little for what is not yet heard."""
        try:
            self.events.put_nowait(None)
        except queue.Full:
            return
        self.thread.join(LAST_SECONDS)

    def run(self) -> None:
        while (said := self.events.get()) is not None:
            try:
                status = post(self.url, self.secret, said)
                if not 200 <= status < 300:
                    log.warning("the webhook answered %d to %s", status, said["event"])
            except Exception as e:  # whatever a network does; the address may be a secret, so it is not shown
                log.warning("the webhook was not reached, %s is not told: %s", said["event"], type(e).__name__)


def post(url: str, secret: str | None, said: dict[str, Any]) -> int:
    """Sends one event; returns the HTTP status. No redirect is followed."""
    body = json.dumps(said, default=str, allow_nan=False).encode()  # money as text, to its last digit
    stamp = str(int(time.time()))
    headers = {"Content-Type": "application/json", "User-Agent": "tunnel", "Tunnel-Timestamp": stamp}
    if secret:
        headers["Tunnel-Signature"] = signature(secret, stamp, body)
    parts = urlsplit(url)
    made = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = made(parts.netloc.rpartition("@")[2], timeout=TIMEOUT)
    try:
        connection.request("POST", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def signature(secret: str, stamp: str, body: bytes) -> str:
    """
    >>> signature("key", "0", b"{}")[:20]
    'sha256=7314351dd949a'
    """
    return "sha256=" + hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()


def opened(asked: Study, keep: Store) -> Notifier | None:
    """The study's, where it has one and the environment holds what it names."""
    wants = asked.notify
    if wants is None:
        return None
    url, secret = os.environ.get(wants.url_env, ""), os.environ.get(wants.secret_env or "", "")
    if not url.startswith(("http://", "https://")):
        log.warning("nobody is notified: the environment's %s holds no http(s) address", wants.url_env)
        return None
    if wants.secret_env and not secret:
        log.warning("nobody is notified: the environment has no %s to sign with", wants.secret_env)
        return None
    return Notifier(url, secret or None, {"study": keep.root.resolve().name, "host": socket.gethostname()})


def once(asked: Study, keep: Store, event: str, **what: Any) -> None:
    """Tells one event, where somebody listens."""
    notifier = opened(asked, keep)
    if notifier is not None:
        notifier.tell(event, **what)
        notifier.close()


@contextmanager
def telling(asked: Study, keep: Store) -> Iterator[Any]:
    """What an account tells its events to; says how the block ended."""
    notifier = opened(asked, keep)
    if notifier is None:
        yield lambda event, **what: None
        return
    try:
        yield notifier.tell
        notifier.tell("finished")
    except Stopped as e:
        notifier.tell("stopped", reason=str(e))
        raise
    except BaseException as e:  # a disk's or a database's words are ours, others may name what is nobody else's
        notifier.tell("stopped", reason=trouble.said(e) or type(e).__name__)
        raise
    finally:
        notifier.close()
