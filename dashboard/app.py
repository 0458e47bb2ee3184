"""The dashboard's entry: chooses the study, shows what runs, and hands over to the page. Start: `tunnel dashboard`."""

from __future__ import annotations

import streamlit as st

from dashboard import load, show

PAGES = {
    "overview": ("Overview", ":material/dashboard:"),
    "valleys": ("Valleys", ":material/scatter_plot:"),
    "transfer": ("Transfer", ":material/swap_horiz:"),
    "curves": ("Curves", ":material/show_chart:"),
    "laws": ("Laws", ":material/trending_down:"),
    "recommendation": ("Recommendation", ":material/task_alt:"),
    "forecasts": ("Forecasts", ":material/insights:"),
    "costs": ("Runs & cost", ":material/receipt_long:"),
}


def main() -> None:
    st.set_page_config(page_title="Wind tunnel", page_icon=":material/air:", layout="wide")
    pages = [st.Page(f"app_pages/{k}.py", title=t, icon=i, default=k == "overview") for k, (t, i) in PAGES.items()]
    page = st.navigation(pages)
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
    show.live(root, table=page.title == "Overview")
    page.run()


if __name__ == "__main__":  # Streamlit runs this file as a script
    main()
