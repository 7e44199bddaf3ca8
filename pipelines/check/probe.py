"""Runs in a pod of `check`, by itself and in any image with Python: what a step would find there, one line of JSON each.

No import of ours: it is handed to the pod as text.
"""

import base64
import importlib.util
import json
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

TIMEOUT = 10  # seconds


def report(about: str, error: str = "", **facts: Any) -> None:
    """Print one result as JSON. `error`: what is wrong, in a word or two; "" if nothing."""
    print(json.dumps({"about": about, "error": error, **facts}), flush=True)


def image() -> None:
    """The packages that each step imports."""
    missing = [name for name in ("dreamteacher", "kfp") if importlib.util.find_spec(name) is None]
    report("image", "missing" if missing else "", packages=missing)


def volume(mount: str) -> None:
    """Whether a folder can be created in `mount` and a file written, there and in the folders of earlier runs."""
    user: dict[str, Any] = {"uid": os.getuid(), "groups": sorted({os.getgid(), *os.getgroups()})}
    try:
        found = Path(mount).stat()
        user |= {"owner": found.st_uid, "group": found.st_gid, "mode": f"{found.st_mode & 0o7777:o}"}
        with tempfile.TemporaryDirectory(prefix=".dreamteacher-check-", dir=mount) as folder:
            Path(folder, "file").write_bytes(bytes(1 << 20))
        space = os.statvfs(mount)
        locked = [each.name for each in os.scandir(mount) if each.is_dir() and not os.access(each.path, os.W_OK | os.X_OK)]
        locked = [name for name in locked if name != "lost+found"]
        report("volume", locked=sorted(locked)[:3], free=space.f_bavail * space.f_frsize, **user)
    except OSError as error:
        report("volume", error.strerror or type(error).__name__, **user)


def mlflow(address: str) -> None:
    """Whether the tracking server answers, at the address and with the credentials of the steps."""
    parts = urllib.parse.urlsplit(address)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    if parts.scheme not in ("http", "https"):
        report("mlflow", address=shown.geturl(), skipped=True)
        return
    request = urllib.request.Request(f"{shown.geturl().rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1")
    user = urllib.parse.unquote(parts.username or "") or os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = urllib.parse.unquote(parts.password or "") or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {os.environ['MLFLOW_TRACKING_TOKEN']}")
    elif user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    error, status, body = answer(request)
    if not error and status == 200 and "html" in body[:200].lower():
        error = "a page, and not the API of MLflow"
    report("mlflow", error or ("" if status == 200 else f"{status} {' '.join(body.split())[:100]}"), address=shown.geturl(), status=status)


def s3(address: str, bucket: str) -> None:
    """Whether the store accepts the credentials and has the bucket of the results (if one is named)."""
    try:
        from botocore.client import Config
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
        from botocore.session import get_session
    except ImportError:
        error, status, _ = answer(urllib.request.Request(address))
        report("s3", error, address=address, status=status)
        return
    settings = Config(connect_timeout=TIMEOUT, read_timeout=TIMEOUT, retries={"max_attempts": 0}, s3={"addressing_style": "path"})
    try:
        client = get_session().create_client("s3", endpoint_url=address or None, config=settings)
        if bucket:
            client.head_bucket(Bucket=bucket)
        else:
            client.list_buckets()
        report("s3", address=address, bucket=bucket)
    except NoCredentialsError:
        report("s3", "no keys", address=address)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        refused = code in ("403", "AccessDenied") and not bucket  # keys for one bucket need not list all
        report("s3", "" if refused else code, address=address, bucket=bucket)
    except (BotoCoreError, ValueError) as error:
        report("s3", " ".join(str(error).split())[:150], address=address)


def answer(request: urllib.request.Request) -> tuple[str, int, str]:
    """(connection error or "", HTTP status, beginning of the body)."""
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as found:
            return "", found.status, found.read(2000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return "", error.code, error.read(2000).decode(errors="replace")
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", None) or error), 0, ""


def main() -> None:
    """Run all probes that the environment configures."""
    environment = os.environ
    image()
    if mount := environment.get("DREAMTEACHER_RUNS"):
        volume(mount)
    if address := environment.get("MLFLOW_TRACKING_URI"):
        mlflow(address)
    results = urllib.parse.urlsplit(environment.get("DREAMTEACHER_RESULTS", ""))
    bucket = results.netloc if results.scheme == "s3" else ""
    addresses = [environment[name] for name in ("AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL") if name in environment]
    for address in dict.fromkeys(addresses):
        s3(address, bucket)


if __name__ == "__main__":
    main()
