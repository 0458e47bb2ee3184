"""`tunnel report`: a study as one page for people who open no dashboard, in English or Japanese; HTML, and PDF.

The page holds everything and fetches nothing: figures are static SVG, there is no script, and its own policy says so.
The same study gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from dashboard import load
from dashboard.report import answer, facts, figures, pdf, rest
from dashboard.report.markup import Markup, joined, tag
from dashboard.report.words import Words
from tunnel.errors import UserError
from tunnel.folder import files

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
MARK = "tunnel report"  # the page's generator: what `tunnel report` may replace
BEGIN = 2000  # bytes in which it stands


def write(root: Path, lang: str = "en", out: Path | None = None, *, print_pdf: bool = True) -> dict[str, Any]:
    """Writes a study's page, and beside it the PDF where a browser and the letters are there.

    Returns path, pdf (None, and `no_pdf` says why), lang, state, bytes. Raises UserError for a language without texts,
    a study that has no folder yet, and where another file, or a link, stands in the way.
    """
    path = out if out is not None else root / ("report.html" if lang == "en" else f"report.{lang}.html")
    words, beside = Words(lang), path.with_suffix(".pdf")
    if path.suffix != ".html":
        raise UserError("must end in .html", key="--out", value=str(path))
    if not (root / "study.toml").is_file():
        raise UserError("is no study's folder yet: `tunnel sweep` begins it", file=root)
    for each in (path, *([beside] if print_pdf else [])):
        require_ours(each)
    known = facts.read(root)
    try:
        made = page(known, words)
    except load.UNREADABLE as e:  # a file of the folder that holds something else than its name says
        raise UserError(f"cannot be told of: {type(e).__name__} {load.said(e)}", file=root) from e
    files.write_text(path, made)
    why = "" if print_pdf else "--no-pdf"
    try:
        if print_pdf:
            content = pdf.printed(path, lang)
            with files.whole(beside) as temporary:
                temporary.write_bytes(content)
    except pdf.NoPdf as e:
        why = str(e)
        files.discard(beside)  # an earlier page's
    told = {"path": str(path), "pdf": None if why else str(beside), "no_pdf": why or None}
    return {**told, "lang": lang, "state": known.state, "bytes": len(made.encode())}


def require_ours(path: Path) -> None:
    """Raises UserError where something lies at a path that `tunnel report` did not write."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError("is no report, and is not replaced; try --out", file=path)
    if path.exists():
        content = path.read_bytes()
        ours = content.endswith(pdf.OURS) if path.suffix == ".pdf" else tag_of_ours().encode() in content[:BEGIN]
        if not ours:
            raise UserError("is no report of the tunnel's, and is not replaced; try --out", file=path)


def tag_of_ours() -> Markup:
    return tag("meta", name="generator", content=MARK)


def page(known: facts.Facts, w: Words) -> str:
    """The whole page, as text."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag_of_ours(),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", w("title", study=known.name)),
        tag("style", Markup(STYLE)),
    )
    shown = [figures.element(f, w) for f in figures.all_of(known, w)]
    seen = tag("section", tag("h2", w("h_figures")), *shown) if shown else None
    parts = (answer.answer(known, w), answer.settings(known, w), seen, rest.trust(known, w), rest.cost(known, w))
    main = tag("main", *parts, rest.steps(known, w), rest.glossary(w))
    body = tag("body", answer.head(known, w), main, rest.origin(known, w))
    return f"<!doctype html>\n{joined(tag('html', head, body, lang=w.lang))}\n"
