"""Retention: what students keep of their teacher's score, against their size and their speed."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import load, retention_figures, show

KEPT, TASKS, DEPTHS = (
    "What students keep",
    "Retention by task",
    "Depth against width",
)  # titles of `answers.comparisons.TABLES`


def page(seen: load.Opened) -> None:
    found = load.comparison(seen)
    if KEPT not in found and DEPTHS not in found:
        show.nothing(
            "No student is compared here",
            "A study with stages of kind distill and finetune has students, and what they keep: "
            "`tunnel run studies/narrow_deep.toml` is one.",
        )
        return
    if KEPT in found:
        rows = pd.DataFrame(found[KEPT]["rows"])
        tuned = [s for s in seen.asked.stage if s.kind == "finetune"] if seen.asked else []
        accept = tuned[-1].accept if tuned else 1.0
        with show.figures():
            for against in retention_figures.AGAINST:
                fig = retention_figures.kept(rows, against, accept)
                show.figure(fig, f"retention {against} {seen.root.name}", rows)
    for title in (KEPT, TASKS, DEPTHS):
        if title in found:
            st.subheader(title)
            st.dataframe(pd.DataFrame(found[title]["rows"]), hide_index=True, placeholder="–", alt=title)
            for line in found[title]["words"]:
                st.markdown(f"- {show.plain(line)}")


if __name__ == "__main__":  # Streamlit runs a page as a script
    page(show.opened())
