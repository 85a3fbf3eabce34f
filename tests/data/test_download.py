"""Downloading archives, from a server on this machine that can be slow, wrong, silent or absent."""

import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from helpers import fake_set
from helpers.fake_set import FakeSet
from helpers.idx_files import archive, md5_of
from helpers.program import ENVIRONMENT
from torchvision.datasets import FashionMNIST

from rsnn_fmnist.data import download, fashion_mnist

# urllib's HTTPError holds a socket until it is collected
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


class Mirror(ThreadingHTTPServer):
    """Serves `files`; `fetched` lists the files that were requested, in order.

    torchvision first asks where an address leads, marked "Method: HEAD"; that does not count.
    """

    daemon_threads = True
    block_on_close = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.delay = 0.0  # seconds before an answer
        self.send: Callable[[Handler, bytes], object] = Handler.at_once

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        probe = self.headers.get("Method") == "HEAD"
        name = self.path.strip("/")
        if not probe:
            self.server.fetched.append(name)
            time.sleep(self.server.delay)
        content = self.server.files.get(name)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if content and not probe:
            self.server.send(self, content)

    def at_once(self, content: bytes) -> None:
        self.wfile.write(content)

    def first_half(self, content: bytes) -> None:
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    server = Mirror()
    monkeypatch.setattr(FashionMNIST, "mirrors", [server.url])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")
    yield
    gc.collect()  # while the warning of an unclosed socket is ignored


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Two archives of random content, one.gz and two.gz, which torchvision lists with their md5."""
    random = np.random.default_rng(0)
    files = {name: random.bytes(1000) for name in ("one.gz", "two.gz")}
    listed = [(name, md5_of(content)) for name, content in files.items()]
    monkeypatch.setattr(FashionMNIST, "resources", listed)
    return files


def refusal(raw: Path) -> str:
    """The one line of the error with which downloading both files fails; no part of one is left."""
    message = fake_set.refusal(lambda: download.fetch(raw, ["one", "two"]))
    assert message.startswith(f"cannot download FashionMNIST to {raw} (")
    assert "--dataset synthetic" in message
    if raw.is_dir():
        assert {path.name for path in raw.iterdir()} <= {"download.lock", "one.gz"}
    return message


def archives(raw: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in raw.glob("*.gz")}


def test_downloads_what_is_missing_into_a_new_folder(
    mirror: Mirror, tmp_path: Path, published: dict[str, bytes]
) -> None:
    mirror.files = published
    raw = tmp_path / "a" / "b"
    download.fetch(raw, ["one", "two"])
    assert archives(raw) == published
    assert mirror.fetched == ["one.gz", "two.gz"]
    assert {path.name for path in raw.iterdir()} <= {"one.gz", "two.gz", "download.lock"}
    assert socket.getdefaulttimeout() is None


def test_leaves_what_is_there_or_not_asked_for(
    mirror: Mirror, tmp_path: Path, published: dict[str, bytes]
) -> None:
    mirror.files = published
    there = tmp_path / "one.gz"
    there.write_bytes(b"something else")
    download.fetch(tmp_path, ["one"])
    assert mirror.fetched == []
    download.fetch(tmp_path, ["one", "two"])
    assert mirror.fetched == ["two.gz"]
    assert archives(tmp_path) == {"one.gz": b"something else", "two.gz": published["two.gz"]}


def test_loading_downloads_only_what_is_missing(
    mirror: Mirror, fake: FakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file is there unpacked, another one as an archive."""
    listed = [(f"{name}.gz", md5) for name, md5, _ in fashion_mnist.FILES.values()]
    monkeypatch.setattr(FashionMNIST, "resources", listed)
    for key, array in fake.arrays.items():
        mirror.files[fake.path(*key, ".gz").name] = archive(array)
    fake.archives().unpacked()
    for key, suffixes in {
        ("train", "images"): [".gz"],
        ("train", "labels"): ["", ".gz"],
        ("test", "images"): ["", ".gz"],
        ("test", "labels"): [""],
    }.items():
        for suffix in suffixes:
            fake.path(*key, suffix).unlink()
    fake.check(fake.load(download=True))
    assert sorted(mirror.fetched) == ["t10k-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]


def test_a_wrong_md5_is_refused(
    mirror: Mirror, tmp_path: Path, published: dict[str, bytes]
) -> None:
    mirror.files = {**published, "two.gz": b"<html>please log in to this network</html>"}
    refusal(tmp_path)
    assert set(archives(tmp_path)) == {"one.gz"}  # what arrived whole stays


def test_a_body_cut_short_is_refused(
    mirror: Mirror, tmp_path: Path, published: dict[str, bytes]
) -> None:
    mirror.files, mirror.send = published, Handler.first_half
    refusal(tmp_path)
    assert archives(tmp_path) == {}


def test_a_file_that_the_mirror_does_not_have(mirror: Mirror, tmp_path: Path) -> None:
    assert "404" in refusal(tmp_path)
    assert archives(tmp_path) == {}


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
    assert "refused" in refusal(tmp_path)


def test_a_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(FashionMNIST, "mirrors", [url])
        start = time.monotonic()
        assert "timed out" in refusal(tmp_path)
        assert 0.5 <= time.monotonic() - start < 5
    assert socket.getdefaulttimeout() is None


def test_a_server_that_stops_in_the_middle(
    mirror: Mirror, tmp_path: Path, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    given_up = threading.Event()

    def half_and_wait(handler: Handler, content: bytes) -> None:
        handler.first_half(content)
        handler.wfile.flush()
        given_up.wait(10)

    mirror.files, mirror.send = published, half_and_wait
    assert "timed out" in refusal(tmp_path)
    given_up.set()


def test_a_server_that_does_not_speak_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(
            FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.getsockname()[1]}/"]
        )

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"something else\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        refusal(tmp_path)
        thread.join()


def test_a_wait_for_another_process_is_said(tmp_path: Path, capsys: Any) -> None:
    """It may have been killed on another machine, where files are locked by their existence."""
    held, path = threading.Event(), tmp_path / "download.lock"

    def hold() -> None:
        with FileLock(path):
            held.set()
            while "waiting" not in seen:
                seen.append(capsys.readouterr().err and "waiting")
                time.sleep(0.01)

    seen: list[str] = []
    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(10)
    with download.locked(path):
        other.join()
    assert seen[-1] == "waiting"


@pytest.mark.parametrize("place", ["file", "download.lock"])
def test_a_folder_that_cannot_be_written(mirror: Mirror, tmp_path: Path, place: str) -> None:
    """A file is in its place, or a folder is in the place of the lock."""
    raw = tmp_path / "file"
    if place == "file":
        raw.write_bytes(b"")
    else:
        (raw / place).mkdir(parents=True)
    refusal(raw)
    assert mirror.fetched == []


def test_no_progress_bar_where_standard_error_is_not_a_terminal(
    mirror: Mirror,
    tmp_path: Path,
    published: dict[str, bytes],
    capfd: pytest.CaptureFixture[str],
) -> None:
    mirror.files = published
    download.fetch(tmp_path, ["one"])
    assert capfd.readouterr() == ("", "")


FETCH = """
import sys
from pathlib import Path
from torchvision.datasets import FashionMNIST
from rsnn_fmnist.data import download
FashionMNIST.mirrors = [sys.argv[1]]
FashionMNIST.resources = [("one.gz", sys.argv[3])]
print("ready", flush=True)
input()
download.fetch(Path(sys.argv[2]), ["one"])
"""


@pytest.mark.slow
def test_two_processes_download_a_file_once(
    mirror: Mirror, tmp_path: Path, published: dict[str, bytes]
) -> None:
    mirror.files, mirror.delay = published, 0.5
    command = [sys.executable, "-c", FETCH, mirror.url, str(tmp_path), md5_of(published["one.gz"])]
    pipe = subprocess.PIPE
    fetching = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT)
        for _ in range(2)
    ]
    for process in fetching:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in fetching:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in fetching]
    assert [process.returncode for process in fetching] == [0, 0], results
    assert mirror.fetched == ["one.gz"]
    assert archives(tmp_path) == {"one.gz": published["one.gz"]}
