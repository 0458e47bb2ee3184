"""The dashboard's entry: asks who comes, chooses the study, and hands over to the page. Start: `tunnel dashboard`."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

from dashboard import door, load, show

PAGES = {
    "studies": ("Studies", ":material/dashboard:"),
    "live": ("Live", ":material/sensors:"),
    "landscape": ("Landscape", ":material/landscape:"),
    "transfer": ("Valleys & transfer", ":material/swap_horiz:"),
    "curves": ("Curves", ":material/show_chart:"),
    "laws": ("Laws", ":material/trending_down:"),
    "recommendation": ("Recommendation", ":material/task_alt:"),
    "forecasts": ("Forecasts", ":material/insights:"),
    "retention": ("Retention", ":material/school:"),
    "compare": ("Compare", ":material/compare_arrows:"),
    "costs": ("Runs & cost", ":material/receipt_long:"),
}
HELP = {"glossary": ("Glossary", ":material/menu_book:")}
LINKED = {"trial": ("Trial", ":material/hub:")}  # pages that a click leads to
ICON = Path(__file__).with_name("icon.svg")  # our own: Streamlit fetches the others from elsewhere
FIRST, LIVE = "Studies", "Live"


def main() -> None:
    st.set_page_config(page_title="Wind tunnel", page_icon=str(ICON), layout="wide")
    pages = [st.Page(f"app_pages/{k}.py", title=t, icon=i, default=t == FIRST) for k, (t, i) in PAGES.items()]
    pages += [st.Page(f"app_pages/{k}.py", title=t, icon=i) for k, (t, i) in HELP.items()]
    pages += [st.Page(f"app_pages/{k}.py", title=t, icon=i, visibility="hidden") for k, (t, i) in LINKED.items()]
    page = st.navigation(pages)
    if not admitted():
        return
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
    if page.title != LIVE:
        show.live(root)
    page.run()


def admitted() -> bool:
    """Whether this visitor may look; who must log in first, or is not on the list, is shown that and nothing else."""
    if door.LOGIN not in sys.argv:
        return True
    auth = secrets()
    if door.admitted(st.user.to_dict(), auth):
        with st.sidebar:
            st.button("Log out", on_click=st.logout, icon=":material/logout:")
        return True
    st.title("Wind tunnel")
    if st.user.is_logged_in:
        st.error(f"{show.plain(str(st.user.get('email', 'This account')))} is not on this dashboard's list.")
        st.button("Log out", on_click=st.logout)
    for name in [] if st.user.is_logged_in or not auth else door.providers(auth):
        label = f"Log in with {show.plain(name)}" if name else "Log in"
        st.button(label, key=f"login {name}", on_click=st.login, args=(name,) if name else ())
    return False


def secrets() -> dict[str, object]:
    """The [auth] table as it is now; nothing where it cannot be read, and then nobody comes in."""
    try:
        return dict(st.secrets.get("auth", {}))
    except Exception:  # whatever Streamlit makes of a broken file: the door stays shut
        return {}


if __name__ == "__main__":  # Streamlit runs this file as a script
    main()
