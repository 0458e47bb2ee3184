"""What can be taken to a trainer: bundles made in memory, and the model's card. The study's folder is only read."""

from __future__ import annotations

import io
import shlex
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from dashboard import load
from dashboard.records import stamp
from tunnel import export
from tunnel.errors import UserError
from tunnel.export import _model
from tunnel.folder.store import Store
from tunnel.run import RunSpec

LARGEST_BUNDLE = 200_000_000  # bytes that are zipped in memory; weights beyond it are named by their path  *assumed*
CARDS = ("model-hf", "model-llama")  # where `tunnel export --model` puts a card


@dataclass(frozen=True)
class Bundle:
    """A bundle as a zip with what it says of itself; or `why` the trainer cannot take the recommendation."""

    packed: bytes = b""
    readme: str = ""
    exact: int = 0
    approximated: tuple[str, ...] = ()
    impossible: tuple[str, ...] = ()
    lossy: tuple[str, ...] = ()
    why: str = ""


# what `tunnel export` wrote


def exported(root: Path, target: str = "hf") -> tuple[Path, int] | None:
    """The exported bundle's folder and its bytes; None before the export."""
    folder = root / "export" / target
    sizes = [p.stat().st_size for p in files_of(folder)]
    return (folder, sum(sizes)) if sizes else None


def packed(folder: Path) -> bytes:
    """A bundle as a zip."""
    files = [stamp(p) or (0, 0) for p in files_of(folder)]
    return bundle_at(str(folder), tuple(n for f in files for n in f))


def files_of(folder: Path) -> list[Path]:
    """A bundle's own files: what a link points to is not part of it."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


@st.cache_data(max_entries=8, show_spinner="Packing the bundle …")
def bundle_at(folder: str, at: load.Stamp) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as z:
        for path in files_of(Path(folder)):
            z.write(path, path.relative_to(folder))
    return packed.getvalue()


# what is made here


@st.cache_data(max_entries=16, show_spinner="Making the bundle …")
def made(_told: Mapping[str, Any], identity: str, to: str, world_size: int, allow_lossy: bool) -> Bundle:
    """What `tunnel export` would write, made aside and packed. `identity` stands for the recommendation."""
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside) / to
        try:
            found = export.export(dict(_told), to, folder, allow_lossy=allow_lossy, world_size=world_size)
        except UserError as e:
            return Bundle(why=str(e))
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as z:
            for name in found["files"]:
                z.write(folder / name, name)
        said = found["fidelity"]
        return Bundle(
            packed=packed.getvalue(),
            readme=(folder / "README.md").read_text(),
            exact=said["exact"],
            approximated=tuple(said["approximated"]),
            impossible=tuple(said["impossible"]),
            lossy=tuple(said["lossy"]),
        )


def card(root: Path, told: Mapping[str, Any]) -> str | None:
    """The model's card as it was exported, or as it would be; None before the target is trained."""
    kept = [root / "export" / name / "README.md" for name in CARDS]
    record = root / "records" / f"{fingerprint(told)}.json"
    try:
        return card_at(str(root), tuple(map(stamp, (*kept, record))), dict(told))
    except load.UNREADABLE:
        return None


@st.cache_data(max_entries=load.KEPT, show_spinner=False)
def card_at(root: str, at: tuple[load.Stamp, ...], _told: dict[str, Any]) -> str | None:
    for name in CARDS:
        path = Path(root) / "export" / name / "README.md"
        if path.is_file() and not path.is_symlink():
            return path.read_text()
    run = RunSpec.model_validate(_told["run"])
    record = Store(Path(root)).record(run.fingerprint)
    return None if record is None or record.loss is None else _model.card(_told, run, record, "hf", True)


def fingerprint(told: Mapping[str, Any]) -> str:
    """The target's run; empty where the recommendation holds none."""
    try:
        return RunSpec.model_validate(told["run"]).fingerprint
    except load.UNREADABLE:
        return ""


def shell(root: Path, told: Mapping[str, Any], to: str, world_size: int, allow_lossy: bool) -> dict[str, str]:
    """Lines to paste into a shell: the target's settings as variables, the export, the full-size run."""
    where = shlex.quote(str(root))
    values = {k: s["value"] for k, s in told["settings"].items() if s["value"] is not None}
    more = f" --world-size {world_size}" * (world_size != 1) + " --allow-lossy" * allow_lossy
    return {
        "The settings as variables": " ".join(f"{k.upper()}={shlex.quote(str(v))}" for k, v in values.items()),
        f"The bundle for {to}": f"tunnel export {where} --to {to}{more}",
        "The full-size run, here": f"tunnel train {where} && tunnel check {where}",
    }
