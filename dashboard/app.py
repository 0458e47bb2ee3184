"""The dashboard's entry: chooses the study, shows what runs, and hands over to the page. Start: `tunnel dashboard`."""

from __future__ import annotations

import streamlit as st

from dashboard import load, show

st.set_page_config(page_title="Wind tunnel", page_icon=":material/air:", layout="wide")

PAGES = [
    st.Page("pages/overview.py", title="Overview", icon=":material/dashboard:", default=True),
    st.Page("pages/valleys.py", title="Valleys", icon=":material/scatter_plot:"),
    st.Page("pages/curves.py", title="Curves", icon=":material/show_chart:"),
    st.Page("pages/laws.py", title="Laws", icon=":material/trending_down:"),
    st.Page("pages/recommendation.py", title="Recommendation", icon=":material/task_alt:"),
]


def main() -> None:
    page = st.navigation(PAGES)
    found = load.studies(show.folder())
    st.title(page.title)
    if not found:
        show.nothing(
            "There is no study here yet",
            f"{show.plain(str(show.folder()))} has no folder with a study.toml. "
            "`tunnel run studies/quickstart.toml` makes one; reload this page to see it.",
        )
        return
    root = show.choose(found)
    st.session_state["opened"] = seen = load.opened(root)
    if seen.asked is not None:
        st.caption(show.plain(seen.asked.question))
    if seen.problems:
        shown = "\n".join(f"- {show.plain(p)}" for p in seen.problems[:10])
        st.warning(f"Part of this folder cannot be read, and is left out:\n{shown}", icon=":material/warning:")
    show.live(root)
    page.run()
    st.session_state["looked"] = True


main()
