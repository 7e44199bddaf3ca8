"""PostgreSQL, an S3 server and MLflow as k8s/components start them, on this machine; for tests."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from helpers import PROJECT, free_port, wait_for

PASSWORD = "p@ss/w:rd %40 'x'"  # characters that a URL would need encoded
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
DATABASE = next(
    (path for path in [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr/local").glob("pgsql*/bin")] if path.exists()), None
)


def manifest(component: str, kind: str) -> dict[str, Any]:
    """The one object of this kind in a component."""
    files = (PROJECT / "k8s/components" / component).glob("*.yaml")
    (found,) = [each for file in files for each in yaml.safe_load_all(file.read_text()) if each["kind"] == kind]
    return found


@dataclass
class Postgres:
    """A server of PostgreSQL: where it is, and an owner's connection."""

    host: str
    port: int

    @property
    def environment(self) -> dict[str, str]:
        """By which libpq, as in the manifest, gets user and password."""
        return {"PGUSER": "mlflow", "PGPASSWORD": PASSWORD}

    def uri(self, database: str = "mlflow") -> str:
        return f"postgresql://{self.host}:{self.port}/{database}"

    def execute(self, statement: str, database: str = "mlflow") -> list[tuple]:
        import psycopg

        with psycopg.connect(host=self.host, port=self.port, dbname=database, user="mlflow", password=PASSWORD, autocommit=True) as link:
            cursor = link.execute(statement)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def running_postgres(folder: Path) -> Iterator[Postgres]:
    """One that asks for PASSWORD; PostgreSQL refuses to run as root, so its own user runs it then."""
    assert DATABASE
    user = "postgres" if os.geteuid() == 0 else None
    password, port = folder / "password", free_port()
    password.write_text(PASSWORD)
    if user:
        entry = pwd.getpwnam(user)
        for path in (folder, password):
            os.chown(path, entry.pw_uid, entry.pw_gid)
        for above in folder.parents:  # pytest's folders are of the user who started it alone
            if above.stat().st_uid == os.geteuid() and not above.stat().st_mode & 0o001:
                above.chmod(above.stat().st_mode | 0o011)
    arguments: dict[str, Any] = {"user": user, "group": user and entry.pw_gid, "extra_groups": [] if user else None, "cwd": folder}
    make = [DATABASE / "initdb", "--pgdata=data", "--username=mlflow", "--pwfile=password", "--auth=scram-sha-256", "--no-sync"]
    subprocess.run(make, check=True, capture_output=True, **arguments)
    options = [
        "-D",
        "data",
        "-p",
        str(port),
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        f"unix_socket_directories={folder}",
        "-c",
        "fsync=off",
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([DATABASE / "postgres", *options], stdout=log, stderr=log, **arguments)
    found = Postgres("127.0.0.1", port)
    try:
        ready = [DATABASE / "pg_isready", "--host=127.0.0.1", f"--port={port}", "--timeout=30"]
        while subprocess.run(ready, capture_output=True, check=False).returncode:
            assert server.poll() is None, (folder / "log").read_text()
        yield found
    finally:
        server.send_signal(signal.SIGINT)  # at once, whoever is connected
        server.wait(30)


def environment(postgres: Postgres, s3: str) -> dict[str, str]:
    """What the container of k8s/components/mlflow has, with the addresses of this machine, and nothing of the caller's AWS or MLflow."""
    settings = manifest("mlflow", "ConfigMap")["data"]
    (container,) = manifest("mlflow", "Deployment")["spec"]["template"]["spec"]["containers"]
    literal = {each["name"]: each["value"] for each in container["env"] if "value" in each and each["name"] != "HOME"}
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
    address = settings["MLFLOW_BACKEND_STORE_URI"].replace("dreamteacher-postgres:5432", f"{postgres.host}:{postgres.port}")
    here = {"MLFLOW_BACKEND_STORE_URI": address, "MLFLOW_S3_ENDPOINT_URL": s3, "AWS_DEFAULT_REGION": "us-east-1"}
    return mine | settings | literal | postgres.environment | here | KEYS


class MlflowServer:
    """The server as its container starts it, but for the port."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment, self.port = folder, environment, free_port()
        self.url = f"http://localhost:{self.port}"

    def start(self) -> None:
        (container,) = manifest("mlflow", "Deployment")["spec"]["template"]["spec"]["containers"]
        command = [f"--port={self.port}" if word == "--port=5000" else word for word in container["command"]]
        command[0] = shutil.which(command[0], path=str(Path(sys.executable).parent)) or command[0]
        log = self.folder / "log"
        with log.open("a") as file:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=file, stderr=file, start_new_session=True
            )
        wait_for(f"{self.url}/health", self.process, log)

    def stop(self, by: int = signal.SIGTERM) -> None:
        """With its workers."""
        os.killpg(self.process.pid, by)
        self.process.wait(30)
