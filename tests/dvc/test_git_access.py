"""GIT_TOKEN is given only to git and only for GIT_HOST: checked with git itself and a real https server."""

import os
import shutil
import ssl
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dreamteacher.errors import UserError
from dreamteacher.git_access import with_token, without_token
from dreamteacher.versioning import Clone

PASSWORD = "Basic " + b64encode(b"me:s3cret").decode()


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"GIT_USERNAME": "me", "GIT_TOKEN": "s3cret", "GIT_CONFIG_NOSYSTEM": "1"}.items():
        monkeypatch.setenv(name, value)


def offered(url: str, scratch: Path, **description: str) -> bool:
    """Whether git, with remote `url`, would send the token for this credential request."""
    question = "".join(f"{key}={value}\n" for key, value in description.items())
    environment = with_token(url, scratch)
    command = ["git", "credential", "fill"]
    done = subprocess.run(command, input=f"{question}\n", cwd=scratch, env=environment, capture_output=True, text=True, check=False)
    return "password=s3cret" in done.stdout.split()


@pytest.mark.parametrize("setting", ["git.example.org", "https://git.example.org", "https://git.example.org/", "git.example.org\n"])
def test_the_token_is_offered_to_its_host_by_https_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str):
    monkeypatch.setenv("GIT_HOST", setting)
    url = "https://git.example.org/team/project.git"
    assert offered(url, tmp_path, protocol="https", host="git.example.org", path="team/project.git")
    for protocol, host in (
        ("http", "git.example.org"),
        ("https", "evil.example.org"),
        ("https", "git.example.org.evil.org"),
        ("https", "git.example.org:8443"),
        ("https", "example.org"),
    ):
        assert not offered(url, tmp_path, protocol=protocol, host=host), (protocol, host)


def test_a_host_may_be_narrowed_to_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_HOST", "https://git.example.org:8443/team")
    found = {
        path: offered("https://git.example.org:8443/team/a.git", tmp_path, protocol="https", host="git.example.org:8443", path=path)
        for path in ("team/a.git", "team/sub/b.git", "teams/a.git", "other/a.git")
    }
    assert found == {"team/a.git": True, "team/sub/b.git": True, "teams/a.git": False, "other/a.git": False}


@pytest.mark.parametrize(
    ("host", "url", "message"),
    [
        (None, "https://git.example.org/x.git", "GIT_TOKEN is set without GIT_HOST, the host to send it to; set GIT_HOST"),
        ("", "HTTPS://git.example.org/x.git", "GIT_TOKEN is set without GIT_HOST, the host to send it to; set GIT_HOST"),
        ("http://git.example.org", "https://git.example.org/x.git", "GIT_HOST = http://git.example.org is not a host"),
        ("*", "https://git.example.org/x.git", r"GIT_HOST = \* is not a host"),
        ("https://me:hunter2@host", "https://host/x.git", "GIT_HOST = https://host is not a host"),
        ("a b", "https://host/x.git", "GIT_HOST = a b is not a host"),
    ],
)
def test_a_token_for_no_host_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str | None, url: str, message: str
):
    monkeypatch.delenv("GIT_HOST", raising=False)
    if host is not None:
        monkeypatch.setenv("GIT_HOST", host)
    with pytest.raises(UserError, match=message) as caught:
        Clone(url, "main", tmp_path / "clone")
    assert "s3cret" not in str(caught.value) and "hunter2" not in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "clone").exists()


def test_dvc_and_what_it_starts_have_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_HOST", "git.example.org")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "for the remote")
    environment = without_token(tmp_path)
    assert "s3cret" not in str(environment) and "credential" not in str(environment)
    assert environment["AWS_SECRET_ACCESS_KEY"] == "for the remote"
    assert "s3cret" in str(with_token("https://git.example.org/x", tmp_path))


@dataclass
class Server:
    """git over https on this machine: `host` asks for the password and serves a repository, `elsewhere` is another host's address."""

    host: str
    elsewhere: str
    seen: list[tuple[str, str | None]] = field(default_factory=list)  # (host, Authorization) of each request


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the server's certificate")
    folder = tmp_path_factory.mktemp("git")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"], cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    for command in (
        "git init -q -b main work", "git -C work -c user.name=a -c user.email=a@b.c commit -q --allow-empty -m first",
        "git clone -q --bare work bare.git", "git -C bare.git config http.receivepack true",
    ):  # fmt: skip
        subprocess.run(command.split(), cwd=folder, check=True)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host, password = self.headers["Host"], self.headers.get("Authorization")
            found.seen.append((host, password))
            if self.path.startswith("/moved/"):
                self.send(302, {"Location": f"https://{found.elsewhere}{self.path.removeprefix('/moved')}"})
            elif password != PASSWORD:
                self.send(401, {"WWW-Authenticate": 'Basic realm="git"'})
            else:
                self.answer()

        do_POST = do_GET

        def answer(self) -> None:
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            environment = {
                "GIT_PROJECT_ROOT": str(folder), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path, "QUERY_STRING": query, "REMOTE_USER": "me",
                "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""), "PATH": os.environ["PATH"],
            }  # fmt: skip
            done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=True)
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
            self.send(int(headers.pop("Status", "200").split()[0]), headers, content)

        def send(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
        found = Server(f"localhost:{listening.server_port}", f"127.0.0.1:{listening.server_port}")
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GIT_SSL_CAINFO", str(folder / "cert.pem"))
            patch.setenv("no_proxy", "localhost,127.0.0.1")
            yield found
        listening.shutdown()


def test_a_repository_of_the_host_is_read_and_written_with_the_token(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_HOST", server.host)
    clone = Clone(f"https://{server.host}/bare.git", "main", tmp_path / "clone")
    clone.git("push", "--quiet", "origin", "HEAD:refs/heads/runs/1")
    assert clone.commit in clone.git("ls-remote", "origin", "runs/1")
    kept = [path for path in clone.folder.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert kept == []


def test_another_host_does_not_get_the_token_and_the_message_says_why(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_HOST", server.host)
    server.seen.clear()
    with pytest.raises(UserError, match=rf"GIT_TOKEN is used for https://{server.host} alone, as GIT_HOST says") as caught:
        Clone(f"https://{server.elsewhere}/bare.git", "main", tmp_path / "clone")
    assert "\n" not in str(caught.value)
    assert {password for _, password in server.seen} == {None}


def test_a_redirect_to_another_host_does_not_get_the_token(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_HOST", server.host)
    server.seen.clear()
    with pytest.raises(UserError, match="cannot read git repository"):
        Clone(f"https://{server.host}/moved/bare.git", "main", tmp_path / "clone")
    assert {host for host, _ in server.seen} == {server.host, server.elsewhere}
    assert {password for host, password in server.seen if host == server.elsewhere} == {None}
