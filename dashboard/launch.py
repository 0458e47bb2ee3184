"""How the dashboard is started: Streamlit on loopback, with its unsafe defaults set."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from pathlib import Path

from dashboard.style import PALETTE
from tunnel.errors import UserError

APP = Path(__file__).with_name("app.py")
ADDRESS = "127.0.0.1"
PORT = 8501  # Streamlit's own
ON_DARK = "#4DA3E0"  # the same blue, light enough for text on a dark ground
HOSTS = ("127.0.0.1", "localhost")  # Host headers that are answered: a page elsewhere cannot rebind its name to us


def command(folder: Path, port: int = PORT, address: str = ADDRESS) -> list[str]:
    """The command line that serves a study's folder, or a folder of studies.

    Raises UserError for an address that others could reach: nobody is asked who they are.
    """
    if not loopback(address):
        raise UserError("the dashboard has no login, so it listens on loopback only", key="--address", value=address)
    options = {
        "server.address": address,
        "server.port": port,
        "server.headless": "true",
        "server.enableCORS": "true",
        "server.enableXsrfProtection": "true",
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
    flags = [f"--{name}={value}" for name, value in options.items()]
    hosts = [f"--server.allowedHosts={host}" for host in HOSTS]
    return [sys.executable, "-m", "streamlit", "run", str(APP), *flags, *hosts, "--", str(folder.resolve())]


def loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def serve(folder: Path, port: int = PORT, address: str = ADDRESS) -> int:
    """Serves until it is stopped; returns Streamlit's exit code. Raises UserError where there is no such folder."""
    if not folder.is_dir():
        raise UserError("is no folder", file=folder)
    try:
        return subprocess.run(command(folder, port, address), check=False).returncode
    except KeyboardInterrupt:
        return 0
