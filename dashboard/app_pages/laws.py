"""Laws: what the ladder's minima follow, how well that forecast what it had not seen, and the target."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from dashboard import law_figures, load, show
from dashboard.style import short


def table(fit: dict[str, Any]) -> pd.DataFrame:
    """The forms that were tried, one a row."""
    rejected = {r.split(":", 1)[0]: r.split(":", 1)[1].strip() for r in fit["rejected"] if ":" in r}
    names = dict.fromkeys([fit["chosen"], *fit["laws"], *rejected])
    none: dict[str, Any] = {}
    return pd.DataFrame(
        [
            {
                "law": name,
                "decision": "chosen" if name == fit["chosen"] else "rejected" if name in rejected else "not chosen",
                "formula": fit["laws"].get(name, none).get("formula", "–"),
                "parameters": ", ".join(
                    f"{k} = {short(v)}"
                    for k, v in (fit["laws"].get(name, none).get("params") or {}).items()
                    if v is not None
                ),
                "status": fit["laws"].get(name, none).get("status", "–"),
                "why": rejected.get(name) or fit["laws"].get(name, none).get("reason", ""),
            }
            for name in names
        ]
    )


def page(seen: load.Opened) -> None:
    fit = seen.fit
    if fit is None and seen.asked is not None and ladder_of(seen) is None:
        show.nothing(
            "There is no law of this study's losses",
            "It has no stage of kind ladder; what its stages say of each setting is on the page Transfer.",
        )
        return
    if fit is None:
        n = len(seen.complete[seen.complete.stage == ladder]) if (ladder := ladder_of(seen)) else 0
        show.nothing(
            "No law is fitted yet",
            f"The ladder has {n} reading{'s' * (n != 1)} so far. `tunnel fit`, or `tunnel recommend`, "
            "fits it when it is done.",
        )
        return
    show.old(fit, seen, "tunnel fit")
    show.figure(law_figures.law(fit, seen.check), "law")
    if fit["holdouts"]:
        show.figure(law_figures.holdouts(fit), "holdouts")
    st.subheader("Forms that were tried")
    st.table(table(fit).map(show.plain), hide_index=True)


def ladder_of(seen: load.Opened) -> str | None:
    names = [s.name for s in seen.asked.stage if s.kind == "ladder"] if seen.asked else []
    return names[-1] if names else None


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
