"""What Streamlit serves: the app, over our wire, and the newest study read before anybody asks for it."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.middleware import Middleware

from dashboard.wire import Wire, pack

FIRST = ("index", "protobuf", "PlotlyChart", "DataFrame", "arrowFormatUtils", "StreamlitMarkdown")  # how they begin


def read_ahead(folder: Path) -> None:
    """Packs the scripts that every page needs, and reads and draws what a first visitor is likely to see."""
    from dashboard import load, studies, study_figures

    pack(*FIRST)
    found = load.studies(folder)
    if found:
        done = load.opened(found[load.newest(found)]).complete
        studies.table(found)
        if len(done):
            study_figures.progress(done).to_json()


@asynccontextmanager
async def begun(app: Any) -> AsyncIterator[None]:
    threading.Thread(target=read_ahead, args=(Path(sys.argv[1]),), daemon=True, name="read ahead").start()
    yield


def failed(e: Exception) -> bool:
    from dashboard import show  # not before the server runs: its caches ask for one

    return show.failed(e)


app = st.App(Path(__file__).with_name("app.py"), lifespan=begun, middleware=[Middleware(Wire)], on_script_error=failed)
