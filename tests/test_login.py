"""A login from the first click to the page, with a provider of our own on loopback: who is on the list comes in."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

pytest.importorskip("streamlit")
pytest.importorskip("authlib")

from browsing import browsing
from conftest import TINY
from joserfc import jwt
from joserfc.jwk import RSAKey

from dashboard import launch

pytestmark = pytest.mark.slow
LONG = 180_000  # ms; the machine is shared


class Provider(ThreadingHTTPServer):
    """OpenID Connect, as little as there is: whoever asks is `who`, and says yes at once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.at = f"http://127.0.0.1:{self.server_port}"
        self.key, self.who, self.nonces = RSAKey.generate_key(2048, {"kid": "k"}), "", dict[str, str]()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def token(self, code: str, client: str) -> dict[str, Any]:
        claims = {
            "iss": self.at,
            "sub": self.who,
            "aud": client,
            "iat": int(time.time()),
            "exp": int(time.time()) + 600,
        }
        claims |= {"nonce": self.nonces[code], "email": self.who, "email_verified": True}
        signed = jwt.encode({"alg": "RS256", "kid": "k"}, claims, self.key)
        return {"access_token": "a", "token_type": "Bearer", "expires_in": 600, "id_token": signed}


class Answers(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        at, url = self.server.at, urlsplit(self.path)
        if url.path == "/authorize":
            asked = {k: v[0] for k, v in parse_qs(url.query).items()}
            code = secrets.token_hex(8)
            self.server.nonces[code] = asked.get("nonce", "")
            self.send_response(302)
            self.send_header(
                "Location", f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"
            )
            self.end_headers()
        elif url.path == "/jwks":
            self.say({"keys": [self.server.key.as_dict(private=False)]})
        else:
            found = {k: f"{at}/{k}" for k in ("authorize", "token", "jwks")}
            named = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "jwks"}
            self.say({"issuer": at, **{k: found[v] for k, v in named.items()}})

    def do_POST(self) -> None:
        body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.say(self.server.token(body["code"][0], "tunnel"))

    def say(self, told: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(told).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()
    yield found
    found.shutdown()


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: Provider) -> Iterator[str]:
    """A folder behind a login, and its address."""
    (tmp_path / "runs" / "s").mkdir(parents=True)
    (tmp_path / "runs" / "s" / "study.toml").write_text(TINY)
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    told = {
        "redirect_uri": f"http://127.0.0.1:{port}/oauth2callback",
        "cookie_secret": secrets.token_hex(32),
        "client_id": "tunnel",
        "client_secret": "s",
        "server_metadata_url": f"{provider.at}/.well-known/openid-configuration",
    }
    path = tmp_path / ".streamlit" / "secrets.toml"
    path.parent.mkdir()
    lines = [f'{k} = "{v}"' for k, v in told.items()]
    path.write_text("\n".join(["[auth]", *lines, 'emails = ["Ada@lab.org"]']))
    path.chmod(0o600)
    monkeypatch.chdir(tmp_path)
    call = launch.command(tmp_path / "runs", port)
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(call, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": ""})
    for _ in range(600):
        try:
            assert urllib.request.urlopen(f"http://127.0.0.1:{port}{launch.HEALTH}").read() == b"ok"
            break
        except OSError:
            time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(20)


@pytest.mark.parametrize("page", ["", "live", "costs"])
def test_who_is_on_the_list_comes_in_and_nobody_else(guarded: str, provider: Provider, page: str) -> None:
    provider.who = "eve@lab.org"
    with browsing() as view:
        view.set_default_timeout(LONG)
        view.goto(f"{guarded}/{page}")
        view.get_by_role("button", name="Log in").wait_for()
        assert view.get_by_text("Which lr?").count() == 0
        view.get_by_role("button", name="Log in").click()
        view.get_by_text("eve@lab.org is not on this dashboard's list").wait_for()
        assert view.get_by_text("Which lr?").count() == 0
        provider.who = "ada@lab.org"
        view.get_by_role("button", name="Log out").click()
        view.get_by_role("button", name="Log in").click()
        view.get_by_text("Which lr?").first.wait_for()
        assert view.get_by_role("button", name="Log out").count() == 1
