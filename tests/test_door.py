"""Who may come in: what the launcher refuses, whom a list lets in, and what an address of the page may say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit")
pytest.importorskip("authlib")

from streamlit.testing.v1 import AppTest

from dashboard import address, door, launch
from tunnel.errors import UserError

GOOD = {
    "redirect_uri": "https://wind.lab.org/oauth2callback",
    "cookie_secret": "0123456789abcdef0123456789abcdef",
    "client_id": "tunnel",
    "client_secret": "s",
    "server_metadata_url": "https://id.lab.org/.well-known/openid-configuration",
    "emails": ["ada@lab.org", " Bob@Lab.org "],
}


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes [auth] where Streamlit looks for it, readable by the owner alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def write(mode: int = 0o600, **changed: Any) -> Path:
        path = tmp_path / ".streamlit" / "secrets.toml"
        path.parent.mkdir(exist_ok=True)
        kept = {k: v for k, v in {**GOOD, **changed}.items() if v is not None}
        lines = [f"{k} = {v!r}" for k, v in kept.items() if not isinstance(v, dict)]
        tables = [
            f"[auth.{k}]\n" + "\n".join(f"{a} = {b!r}" for a, b in v.items())
            for k, v in kept.items()
            if isinstance(v, dict)
        ]
        path.write_text("\n".join(["[auth]", *lines, *tables]) + "\n")
        path.chmod(mode)
        return path

    return write


OTHERS = ["0.0.0.0", "::", "10.0.0.1", "example.com", ""]


@pytest.mark.parametrize("at", OTHERS)
def test_an_address_that_others_reach_is_refused(tmp_path: Path, secrets: Callable[..., Path], at: str) -> None:
    with pytest.raises(UserError, match="nobody would ask them who they are"):
        launch.command(tmp_path, 9999, at)
    secrets(emails=None)  # somebody else's secrets, without a list
    with pytest.raises(UserError, match="nobody would ask them who they are"):
        launch.command(tmp_path, 9999, at)


@pytest.mark.parametrize("at", [*OTHERS, "127.0.0.1"])
def test_a_list_of_addresses_opens_it_to_those_who_log_in(
    tmp_path: Path, secrets: Callable[..., Path], at: str
) -> None:
    path = secrets()
    flags = launch.command(tmp_path, 9999, at)
    assert flags[-2:] == [str(tmp_path), door.LOGIN]
    assert f"--secrets.files={path.resolve()}" in flags
    assert "--server.allowedHosts=wind.lab.org" in flags


def test_a_declared_proxy_opens_it_under_its_name(tmp_path: Path, secrets: Callable[..., Path]) -> None:
    flags = launch.command(tmp_path, 9999, "0.0.0.0", "wind.lab.org")
    assert flags[-1] == str(tmp_path)
    assert [f for f in flags if "allowedHosts" in f] == [
        f"--server.allowedHosts={h}" for h in (*door.LOOPBACK, "wind.lab.org")
    ]


WRONG = {
    "others can read": ({"mode": 0o644}, "chmod 600"),
    "an empty list": ({"emails": []}, "at least one"),
    "no addresses": ({"emails": ["lab.org"]}, "at least one"),
    "a text": ({"emails": "ada@lab.org"}, "at least one"),
    "no way back": ({"redirect_uri": None}, "oauth2callback"),
    "in the clear": ({"redirect_uri": "http://wind.lab.org/oauth2callback"}, "https"),
    "another path": ({"redirect_uri": "https://wind.lab.org/"}, "oauth2callback"),
    "a weak cookie": ({"cookie_secret": "short"}, "random characters"),
    "no provider": ({"client_id": None}, "lacks client_id"),
    "half a provider": ({"google": {"client_id": "x"}}, "lacks client_secret, server_metadata_url"),
}


@pytest.mark.parametrize(("changed", "said"), WRONG.values(), ids=list(WRONG))
def test_secrets_that_keep_nobody_out_are_refused(
    tmp_path: Path, secrets: Callable[..., Path], changed: dict[str, Any], said: str
) -> None:
    secrets(**changed)
    with pytest.raises(UserError, match=said) as e:
        launch.command(tmp_path, 9999, "0.0.0.0")
    assert GOOD["cookie_secret"] not in str(e.value)


def test_secrets_that_are_no_toml_are_refused(tmp_path: Path, secrets: Callable[..., Path]) -> None:
    secrets().write_text("[auth")
    with pytest.raises(UserError, match="cannot be read"):
        launch.command(tmp_path, 9999)


@pytest.mark.parametrize(
    ("claims", "admitted"),
    [
        ({"is_logged_in": True, "email": "ada@lab.org"}, True),
        ({"is_logged_in": True, "email": "ADA@lab.org", "email_verified": True}, True),
        ({"is_logged_in": True, "email": "bob@lab.org"}, True),
        ({"is_logged_in": True, "email": "ada@lab.org", "email_verified": False}, False),
        ({"is_logged_in": True, "email": "ada@lab.org", "email_verified": "false"}, False),
        ({"is_logged_in": False, "email": "ada@lab.org"}, False),
        ({"email": "ada@lab.org"}, False),
        ({"is_logged_in": True, "email": "eve@lab.org"}, False),
        ({"is_logged_in": True, "email": None}, False),
        ({"is_logged_in": True}, False),
        ({}, False),
    ],
)
def test_who_is_admitted(claims: dict[str, Any], admitted: bool) -> None:
    assert door.admitted(claims, GOOD) == admitted
    assert not door.admitted(claims, {**GOOD, "emails": "ada@lab.org"})
    assert not door.admitted(claims, {})


# the address of a page


def shown() -> None:
    import streamlit as st

    from dashboard import address

    st.write(
        repr([address.get(k, d) for k, d in (("s", "x"), ("i", 3), ("f", 0.5), ("b", False), ("t", ()), ("n", (1.0,)))])
    )
    address.put("kept", ("a", "b"))
    address.put("gone", None)
    address.put("flag", True)


def broken() -> None:
    from dashboard import show

    assert show.failed(ValueError("a secret <path>"))


def test_a_page_that_cannot_be_drawn_tells_nothing_of_the_folder() -> None:
    app = AppTest.from_function(broken).run(timeout=60)
    assert "cannot be drawn" in app.error[0].value
    assert "secret" not in app.error[0].value


DEFAULTS = ["x", 3, 0.5, False, (), (1.0,)]


@pytest.mark.parametrize(
    ("query", "read"),
    [
        ({}, DEFAULTS),
        ({"s": "y", "i": "4", "f": "1e-3", "b": "true", "t": ["a", "b"], "n": ["2", "3"]},
         ["y", 4, 0.001, True, ("a", "b"), (2.0, 3.0)]),
        ({"i": "4.5", "f": "nan", "b": "yes", "n": ["2", "x"]}, DEFAULTS),
        ({"f": "inf", "i": "", "b": ""}, DEFAULTS),
    ],
)  # fmt: skip
def test_an_address_is_read_in_the_defaults_type(query: dict[str, Any], read: list[Any]) -> None:
    app = AppTest.from_function(shown)
    for k, v in query.items():
        app.query_params[k] = v
    app.query_params["gone"] = "old"
    app.run(timeout=30)
    assert app.markdown[0].value == repr(read)
    assert app.query_params["kept"] == ["a", "b"]
    assert app.query_params["flag"] in ("true", ["true"])
    assert "gone" not in app.query_params


@pytest.mark.parametrize("stage", ["ladder", "a.b-c_d.0", "target:1.2B"])
def test_a_trials_name_is_read_back(stage: str) -> None:
    assert address.stage_and_number(address.trial_of(stage, 12)) == (stage, 12)


@pytest.mark.parametrize("name", ["", "ladder", "ladder.", ".3", "ladder.-1", "ladder.x", "ladder." + "9" * 5000])
def test_what_is_no_trials_name(name: str) -> None:
    assert address.stage_and_number(name) is None


def test_a_link_says_names_as_they_are() -> None:
    assert address.link("trial", study="a/b c&d=<x>", trial="s.1") == "trial?study=a%2Fb+c%26d%3D%3Cx%3E&trial=s.1"
