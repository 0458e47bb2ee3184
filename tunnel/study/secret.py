"""What looks like a secret. A study file is copied, shown and logged: it names an environment variable instead."""

from __future__ import annotations

import re
from typing import Any

WORDS = re.compile(  # of a key, at its end: `token`, `hub_token`, `apiKey`; not `tokens`, `batch_tokens`, `tokenizer`
    r"(^|[^a-z])(passw(or)?d|passphrase|pwd|secrets?|token|credentials?|(api|access|private|signing)[_-]?key)$"
)
IN_URL = re.compile(r"(?<=://)([^/?#\s:@]*):[^/?#\s]+@")  # user:password@
KNOWN = re.compile(  # how issuers write theirs  *from paper* (their documentation)
    r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}|xox[abprs]-[A-Za-z0-9-]{10,})"
    r"|hooks\.slack\.com/services/|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # of a variable
VARIABLES = {"storage": "TUNNEL_DB_PASSWORD", "data": "HF_TOKEN", "resources": "RAY_AUTH_TOKEN_PATH"}  # by table
HIDDEN = "***"


def looks(key: str) -> bool:
    """Whether a key's name says that it holds a secret.

    >>> [k for k in ("db_password", "token", "apiKey", "tokens", "tokenizer", "secret_env") if looks(k)]
    ['db_password', 'token', 'apiKey']
    """
    return bool(WORDS.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()))


def holds(value: object) -> bool:
    """Whether a value is one, by its form."""
    return isinstance(value, str) and bool(IN_URL.search(value) or KNOWN.search(value))


def refused(key: str, value: object) -> str:
    """The rule that a key of a study file ("notify.url", "data.paths.0") breaks by its value; "" where none."""
    table, *rest = [part for part in key.split(".") if not part.isdigit()] or [key]
    last = rest[-1] if rest else table
    if last.endswith("_env"):
        fits = isinstance(value, str) and NAME.fullmatch(value) and not KNOWN.search(value)
        return "" if fits else "is the name of a variable of the environment, which holds the secret"
    if not looks(last) and not holds(value):
        return ""
    what = "looks like" if looks(last) else "holds"
    return f"{what} a secret: keep it in the environment, as {VARIABLES.get(table, 'TUNNEL_' + last.upper())}"


def without(value: Any, key: str = "") -> Any:
    """A JSON value whose secrets are hidden, for a log."""
    if isinstance(value, dict):
        return {k: without(v, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without(v, key) for v in value]
    if looks(key) and value is not None:
        return HIDDEN
    return KNOWN.sub(HIDDEN, IN_URL.sub(rf"\1:{HIDDEN}@", value)) if isinstance(value, str) else value
