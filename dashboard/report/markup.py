"""HTML as a value: what is a string is text and is escaped, what is Markup was made here."""

from __future__ import annotations

import html

VOID = ("br", "meta")  # of HTML: they are not closed
DRAWN = ("path", "line", "rect")  # of SVG: nothing stands in them


class Markup(str):
    """Text that is HTML already."""


Child = Markup | str | None


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """An element; strings among its children and all attributes are escaped, None and False are left out.

    >>> tag("p", "a < b", tag("b", "c"), class_="d", aria_label='"')
    '<p class="d" aria-label="&quot;">a &lt; b<b>c</b></p>'
    """
    said = "".join(
        f" {k.rstrip('_').replace('_', '-')}" + ("" if v is True else f'="{html.escape(str(v))}"')
        for k, v in attributes.items()
        if v is not None and v is not False
    )
    if name in (*VOID, *DRAWN):
        return Markup(f"<{name}{said}{'/' * (name in DRAWN)}>")
    return Markup(f"<{name}{said}>{joined(*children)}</{name}>")


def joined(*children: Child) -> Markup:
    """Children one after another."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children if c is not None))


def table(head: list[str], rows: list[list[Child]], caption: str, numbers: tuple[int, ...] = ()) -> Markup:
    """A table whose first column names its rows; `numbers`: columns that stand to the right."""
    looks = ["number" if i in numbers else None for i in range(len(head))]
    top = tag("tr", *(tag("th", h, scope="col", class_=k) for h, k in zip(head, looks, strict=True)))
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", c, class_=looks[i]) for i, c in enumerate(row) if i))
        for row in rows
    ]
    return tag("table", tag("caption", caption), tag("thead", top), tag("tbody", *body))
