"""The one way to read a study file: TOML in, a Study out, and one line for whatever is wrong with it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tunnel.errors import UserError
from tunnel.study import secret
from tunnel.study.models import Study
from tunnel.study.values import NAME

LARGEST_FILE = 1 << 16  # bytes; a long study file has 5,000  *assumed*
DEEPEST = 16  # tables in tables: the deepest key that there is has 5  *derived*
KEY = r"""[ \t]*+(?:"[^"\n]*+"|'[^'\n]*+'|[\w-]++)[ \t]*+"""
DEEP = re.compile(rf"(?:\.{KEY}){{{DEEPEST + 1}}}")  # tomllib takes minutes for 30,000 dots in a key  *measured here*
WHOLE_BELOW = 1 << 63  # TOML's integers have 64 bits: toml.io/en/v1.0.0#integer
# Control characters, lone surrogates, marks of direction: they make a terminal or a page show other than what is there.
HIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def load(path: str | Path, *, small: bool = False) -> Study:
    """Reads a study file (TOML, UTF-8); with `small`, its [small] table replaces what it names.

    Raises UserError, in one line, for everything that is wrong with it.
    """
    path = Path(path)
    if not NAME.fullmatch(path.stem):
        raise UserError("a study's name has letters, digits, '.', '_' and '-', at most 64", file=path, value=path.stem)
    return parse(read_text(path), path, small=small)


def read_text(path: Path) -> str:
    if not path.is_file():
        raise UserError("no such study file" if not path.exists() else "is not a file", file=path)
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"a study file has at most {LARGEST_FILE} bytes", file=path, value=path.stat().st_size)
    try:
        raw = path.read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"is not UTF-8 at byte {e.start}", file=path, value=raw[e.start : e.start + 1]) from None
    except OSError as e:
        raise UserError(f"cannot be read: {e.strerror}", file=path) from None


def parse(text: str, file: str | Path, *, small: bool = False) -> Study:
    """Builds the study from TOML text; `file` is for the error's line."""
    if deep := DEEP.search(text):
        line = text.count("\n", 0, deep.start()) + 1
        raise UserError(f"is nested more than {DEEPEST} deep", file=file, key=f"line {line}")
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as e:  # tomllib's own errors, and Python's at a number of 5,000 digits
        raise UserError(f"is not TOML: {e or 'nested too deeply'}", file=file) from None
    refuse(tables, file)
    if small:
        if not tables.get("small"):
            raise UserError("has no [small] table for --scale small", file=file)
        for key, value in tables["small"].items():
            replace(tables, key, value, file)
    try:
        return Study(**tables)
    except ValidationError as e:
        raise one_line(e, file, tables) from None


def refuse(tables: dict[str, Any], file: object) -> None:
    """Raises UserError for what no key may hold: secrets, hidden characters, numbers beyond 64 bits, nests."""
    left: list[tuple[str, object]] = [("", tables)]
    while left:  # no recursion: a line may nest thirty thousand tables
        key, value = left.pop()
        rule = ""
        if key.count(".") > DEEPEST:
            raise UserError(f"is nested more than {DEEPEST} deep", file=file, key=key[:20] + "...")
        if isinstance(value, dict):
            left += [(f"{key}.{k}".lstrip("."), v) for k, v in value.items()]
            rule = "has a key with a hidden character" if any(map(HIDDEN.search, value)) else ""
        elif isinstance(value, list):
            left += [(f"{key}.{i}", v) for i, v in enumerate(value)]
        elif broken := secret.refused(key, value):
            raise UserError(broken, file=file, key=key)  # and never the value
        elif isinstance(value, str):
            rule = "holds a hidden character" if HIDDEN.search(value) else ""
        elif isinstance(value, int) and abs(value) >= WHOLE_BELOW:
            rule = "is beyond 64 bits"
        if rule:
            raise UserError(rule, file=file, key=key or None, value=None if isinstance(value, dict) else value)


def replace(tables: dict[str, Any], key: str, value: Any, file: object) -> None:
    """Sets "stage.ladder.rungs": stages and targets are found by their name."""
    here: Any = tables
    *path, last = key.split(".")
    for part in path:
        if isinstance(here, list):
            here = next((t for t in here if isinstance(t, dict) and t.get("name") == part), None)
        elif isinstance(here, dict):
            here = here.get(part)
        if here is None:
            raise UserError("names nothing in this study", file=file, key=f"small.{key}")
    if not isinstance(here, dict):
        raise UserError("names a list, not one of its tables", file=file, key=f"small.{key}")
    here[last] = value


def one_line(e: ValidationError, file: object, tables: dict[str, Any]) -> UserError:
    """pydantic's first complaint as our one line; stages and targets are called by name."""
    first = min(e.errors(), key=lambda x: x["type"] != "extra_forbidden")  # a typo explains what is missing
    loc, here, names = list(first["loc"]), dict[str, Any](tables), list[str]()
    for part in loc:
        here = inside(here, part)
        names.append(here.get("name", str(part)) if isinstance(part, int) and isinstance(here, dict) else str(part))
    key = ".".join(names) or None
    if first["type"] == "extra_forbidden":
        return UserError("is not a key of a study file", file=file, key=key, choices=fields_at(loc[:-1]))
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return UserError("is missing", file=file, key=key)
    value = None if isinstance(first["input"], dict | BaseModel) else first["input"]
    return UserError(rule[:1].lower() + rule[1:], file=file, key=key, value=value)


def inside(table: Any, part: int | str) -> Any:
    if isinstance(table, dict):
        return table.get(str(part))
    return table[part] if isinstance(table, list) and isinstance(part, int) and part < len(table) else None


def fields_at(loc: list[int | str]) -> list[str]:
    """The keys that a study file may have at a place."""
    model: Any = Study
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = next(
            (t for t in (annotation, *getattr(annotation, "__args__", ())) if hasattr(t, "model_fields")),
            None,
        )
        if model is None:
            return []
    return list(model.model_fields)


def schema() -> dict[str, Any]:
    """The JSON schema of study files, for editors."""
    return Study.model_json_schema()
