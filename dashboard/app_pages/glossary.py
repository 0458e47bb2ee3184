"""Glossary: what the words of these pages mean."""

from __future__ import annotations

import streamlit as st

from dashboard.glossary import WORDS


def page() -> None:
    wanted = st.text_input("Look for", key="word", bind="query-params", placeholder="a word, or a part of its meaning")
    look = (wanted or "").strip().casefold()
    found = {
        part: {w: is_ for w, is_ in words.items() if look in f"{w} {is_}".casefold()} for part, words in WORDS.items()
    }
    if not any(found.values()):
        st.info("No word here says that; all of them come back when the box is empty.", icon=":material/search_off:")
    with st.grid(2, min_column_width=560, gap="medium"):
        for part, words in found.items():
            if words:
                with st.container():
                    st.subheader(part)
                    st.markdown("\n".join(f"- **{word}**: {meaning}" for word, meaning in words.items()))


if __name__ == "__main__":  # Streamlit runs a page as a script
    page()
