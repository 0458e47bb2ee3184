"""Who may come in: anybody on loopback, those on a list of e-mail addresses by OIDC, or whom a proxy lets through.

The list is `emails` in the `[auth]` table of Streamlit's secrets.toml, beside what `st.login` needs. It is read anew
at every look, so who is taken off it is out at the next one; a file that cannot be read lets nobody in.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tunnel.errors import UserError

SECRETS = (Path(".streamlit/secrets.toml"), Path("~/.streamlit/secrets.toml"))  # as Streamlit's own, the first wins
LOOPBACK = ("127.0.0.1", "localhost")
CALLBACK = "/oauth2callback"  # the path where Streamlit hears of a login
COOKIE_LENGTH = 32  # characters of a secret that signs cookies: 128 bits, where they are hexadecimal  *assumed*
PROVIDER = ("client_id", "client_secret", "server_metadata_url")
LOGIN = "--login"  # what the launcher tells the app


@dataclass(frozen=True)
class Door:
    """`hosts`: names that the dashboard answers to, so that a page elsewhere cannot rebind its own to us."""

    hosts: tuple[str, ...]
    login: Path | None = None  # the secrets that it rests on


def opened(address: str, proxy: str | None, secrets: Iterable[Path] = SECRETS) -> Door:
    """The door for an address to listen on; `proxy`: the name under which an authenticating proxy serves us.

    Raises UserError for an address that others reach where nobody asks them who they are.
    """
    found = next((p for p in (s.expanduser() for s in secrets) if p.is_file()), None)
    auth = table(found) if found is not None else {}
    if found is not None and "emails" in auth:
        name = checked(auth, found)
        return Door(tuple(dict.fromkeys([*LOOPBACK, name, *([proxy] if proxy else [])])), found.resolve())
    if proxy is not None:
        return Door((*LOOPBACK, proxy))
    if loopback(address):
        return Door(LOOPBACK)
    raise UserError(
        "others reach this address, and nobody would ask them who they are: give [auth] with emails = [...] in "
        f"{SECRETS[0]} (OIDC), or --proxy NAME where an authenticating proxy stands before it; else loopback only",
        key="--address",
        value=address,
    )


def loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def table(path: Path) -> dict[str, Any]:
    """The [auth] table of a secrets file; raises UserError where it cannot be read."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get("auth", {})
    except (OSError, ValueError) as e:
        raise UserError(f"cannot be read: {e}", file=path) from None
    if not isinstance(found, dict):
        raise UserError("is no table", file=path, key="auth")
    return found


def checked(auth: Mapping[str, Any], path: Path) -> str:
    """The host that a login comes back to; raises UserError where [auth] would not keep anybody out."""
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError("others can read it: chmod 600", file=path)
    if not emails(auth):
        raise UserError("needs at least one e-mail address", file=path, key="auth.emails", value=auth["emails"])
    back = urlsplit(str(auth.get("redirect_uri", "")))
    if back.path != CALLBACK or not back.hostname or not (back.scheme == "https" or loopback(back.hostname)):
        rule = f"must be https://NAME{CALLBACK} (http on loopback alone)"
        raise UserError(rule, file=path, key="auth.redirect_uri", value=auth.get("redirect_uri"))
    if len(str(auth.get("cookie_secret", ""))) < COOKIE_LENGTH:
        raise UserError(f"needs {COOKIE_LENGTH} random characters", file=path, key="auth.cookie_secret")
    for name in providers(auth):
        own, key = (auth, "auth") if name is None else (auth[name], f"auth.{name}")
        missing = [k for k in PROVIDER if not own.get(k)]
        if missing:
            raise UserError(f"lacks {', '.join(missing)}", file=path, key=key)
    if importlib.util.find_spec("authlib") is None:
        raise UserError("a login needs the login extra: pip install '.[login]'", file=path, key="auth")
    return back.hostname


def providers(auth: Mapping[str, Any]) -> list[str | None]:
    """The names of the tables in [auth], one for each provider; None alone where [auth] itself is the only one."""
    return [k for k, v in auth.items() if isinstance(v, Mapping) and k != "client_kwargs"] or [None]


def emails(auth: Mapping[str, Any]) -> frozenset[str]:
    """The addresses on the list; none where it is no list of addresses."""
    told = auth.get("emails")
    if not isinstance(told, list | tuple) or not all(isinstance(e, str) and "@" in e for e in told):
        return frozenset()
    return frozenset(e.strip().casefold() for e in told)


def admitted(claims: Mapping[str, Any], auth: Mapping[str, Any]) -> bool:
    """Whether a provider's word about a visitor is that of somebody on the list: an address that it does not doubt."""
    address = claims.get("email")
    sure = claims.get("email_verified", True) in (True, "true")
    return bool(claims.get("is_logged_in")) and sure and str(address).strip().casefold() in emails(auth)
