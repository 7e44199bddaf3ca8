"""Environment of git and DVC: only git gets GIT_TOKEN, and only for URLs below GIT_HOST.

Also queries of the current directory.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from dreamteacher.errors import UserError
from dreamteacher.mlflow_server import without_password

# GIT_ASKPASS. The token is passed in the environment, so it appears neither in the process list nor in the clone.
_CREDENTIAL_HELPER = '!f() { printf "username=%s\\npassword=%s\\n" "${GIT_USERNAME:-git}" "$GIT_TOKEN"; }; f'
_OF_GIT = {"GIT_TOKEN", "GIT_USERNAME", "GIT_HOST"}  # environment variables


def output_of(*command: str) -> str:
    """The stripped output of a command in the current directory; "" if it fails or is not installed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def without_token(scratch: Path) -> dict[str, str]:
    """The caller's environment, adapted to a container: no prompts, a writable home, and no token.

    scratch: a folder for files of git and DVC.
    """
    ours = {"DVC_NO_ANALYTICS": "1", "GIT_TERMINAL_PROMPT": "0"}
    ours |= {"DVC_SITE_CACHE_DIR": os.environ.get("DVC_SITE_CACHE_DIR", str(scratch))}
    if not os.access(os.environ.get("HOME", ""), os.W_OK):  # a random user in a container
        ours["HOME"] = str(scratch)
    return {name: value for name, value in os.environ.items() if name not in _OF_GIT} | ours


def with_token(url: str, scratch: Path) -> dict[str, str]:
    """The same for git with `url`, with GIT_TOKEN for https URLs below GIT_HOST.

    Raises:
        UserError: GIT_HOST is no host or https URL, or there is a token for the https URL `url` but no GIT_HOST.
    """
    environment = without_token(scratch)
    settings = {"http.followRedirects": "initial"}  # git's default: follow only the initial redirect; a token is only sent to its own host
    settings |= {"http.lowSpeedLimit": "1", "http.lowSpeedTime": "600"}  # give up on a server that is silent for ten minutes
    token, scope = os.environ.get("GIT_TOKEN"), _scope()
    if token and not scope and url.lower().startswith("https://"):
        raise UserError(
            "GIT_TOKEN is set without GIT_HOST, the host to send it to; set GIT_HOST too (in the secret dreamteacher-git), "
            "such as git.example.org or https://git.example.org/team"
        )
    if token and scope:
        settings[f"credential.{scope}.helper"] = _CREDENTIAL_HELPER
        environment |= {name: os.environ[name] for name in ("GIT_TOKEN", "GIT_USERNAME") if name in os.environ}
    first = int(environment.get("GIT_CONFIG_COUNT", "0"))
    for number, (key, value) in enumerate(settings.items(), first):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return environment | {"GIT_CONFIG_COUNT": str(first + len(settings))}


def why_no_token(url: str) -> str:
    """Hint for git's refusal of `url` that GIT_TOKEN does not apply to it; "" if it does, or there is none, or it is no http URL."""
    scope = _scope()
    address = re.sub(r"(?<=://)[^/]*@", "", url).lower()
    if not os.environ.get("GIT_TOKEN") or not address.startswith(("http://", "https://")) or f"{address}/".startswith(f"{scope.lower()}/"):
        return ""
    return f" (GIT_TOKEN is used for {scope} alone, as GIT_HOST says)" if scope else " (GIT_TOKEN is used by https alone)"


def _scope() -> str:
    """The URL prefix that GIT_HOST means; "" if it is not set."""
    host = os.environ.get("GIT_HOST", "").strip().rstrip("/")
    if not host:
        return ""
    scope = host if "://" in host else f"https://{host}"
    if not re.fullmatch(r"https://[A-Za-z0-9.-]+(:[0-9]+)?(/[\w.~/-]*)?", scope):
        shown = without_password(host)
        raise UserError(f"GIT_HOST = {shown} is not a host or the beginning of an https URL, such as https://git.example.org/team")
    return scope
