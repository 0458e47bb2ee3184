"""How the dashboard is started: Streamlit on loopback, with its unsafe defaults set.

Whether it lives: GET /_stcore/health answers 200 "ok", without a login, and tells nothing of the studies.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dashboard import door
from dashboard.style import PALETTE
from tunnel.errors import UserError

SERVER = Path(__file__).with_name("server.py")
ADDRESS = "127.0.0.1"
PORT = 8501  # Streamlit's own
HEALTH = "/_stcore/health"
ON_DARK = "#4DA3E0"  # the same blue, light enough for text on a dark ground


def command(folder: Path, port: int = PORT, address: str = ADDRESS, proxy: str | None = None) -> list[str]:
    """The command line that serves a study's folder, or a folder of studies; `door.opened` says to whom.

    Raises UserError for an address that others could reach unasked.
    """
    way = door.opened(address, proxy)
    options = {
        "server.address": address,
        "server.port": port,
        "server.headless": "true",
        "server.enableCORS": "true",
        "server.enableXsrfProtection": "true",
        "server.enableWebsocketCompression": "true",
        "server.fileWatcherType": "none",
        "client.showErrorDetails": "none",
        "client.toolbarMode": "viewer",
        "runner.magicEnabled": "false",
        "theme.light.primaryColor": PALETTE[0],
        "theme.dark.primaryColor": ON_DARK,
        "theme.paddingTop": "1rem",
        "theme.metricValueFontSize": "1.5rem",
        "browser.gatherUsageStats": "false",
    }
    options |= {"secrets.files": str(way.login)} if way.login else {}
    flags = [f"--{name}={value}" for name, value in options.items()]
    hosts = [f"--server.allowedHosts={host}" for host in way.hosts]
    told = [str(folder.resolve()), *([door.LOGIN] if way.login else [])]
    return [sys.executable, "-m", "streamlit", "run", str(SERVER), *flags, *hosts, "--", *told]


def serve(folder: Path, port: int = PORT, address: str = ADDRESS, proxy: str | None = None) -> int:
    """Serves until it is stopped; returns Streamlit's exit code. Raises UserError where there is no such folder."""
    if not folder.is_dir():
        raise UserError("is no folder", file=folder)
    try:
        return subprocess.run(command(folder, port, address, proxy), check=False).returncode
    except KeyboardInterrupt:
        return 0
