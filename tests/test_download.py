"""Fetching archives, from a server on this machine that can be slow, wrong, mute or absent."""

import gc
import gzip
import hashlib
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from rsnn_fmnist.data import download, fashion_mnist
from rsnn_fmnist.errors import RunError

CHUNK = 32 * 1024  # torchvision writes so much at a time


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Mirror(ThreadingHTTPServer):
    """Serves `files`; `fetched` names what was asked for in earnest, in order.

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

    def holds(self, *names: str) -> dict[str, str]:
        """Serve NAME.gz of random content -> the argument for fetch, {name: md5}."""
        wanted = {}
        for seed, name in enumerate(names):
            content = np.random.default_rng(seed).bytes(1000)
            self.files[f"{name}.gz"] = content
            wanted[name] = md5_of(content)
        return wanted


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

    def dripping(self, content: bytes) -> None:
        for start in range(0, len(content), CHUNK):
            self.wfile.write(content[start : start + CHUNK])
            time.sleep(0.2)

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
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")


def refusal(raw: Path, wanted: dict[str, str]) -> str:
    """The message of the RunError that fetching raises: one line, after which no part is left."""
    with pytest.raises(RunError) as caught:
        download.fetch(raw, wanted)
    message = str(caught.value)
    assert "\n" not in message
    assert "--dataset synthetic" in message
    assert archives(raw, "*.part") == {}
    return message


def archives(raw: Path, pattern: str = "*.gz*") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in raw.glob(pattern)}


def test_fetches_every_archive_into_a_new_folder(mirror: Mirror, tmp_path: Path) -> None:
    raw = tmp_path / "a" / "b"
    download.fetch(raw, mirror.holds("one", "two", "three"))
    assert archives(raw) == mirror.files
    assert mirror.fetched == ["one.gz", "two.gz", "three.gz"]


def test_leaves_what_is_there_alone(mirror: Mirror, tmp_path: Path) -> None:
    wanted = mirror.holds("one", "two")
    there = tmp_path / "one.gz"
    there.write_bytes(b"whatever it is")
    before = there.stat()
    download.fetch(tmp_path, wanted)
    assert mirror.fetched == ["two.gz"]
    assert archives(tmp_path) == {"one.gz": b"whatever it is", "two.gz": mirror.files["two.gz"]}
    assert there.stat().st_mtime_ns == before.st_mtime_ns
    download.fetch(tmp_path, wanted)
    assert mirror.fetched == ["two.gz"]


def test_load_fetches_only_what_is_missing(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound set of 10 + 10 pictures, of which one file lies there unpacked, one packed."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    files, content = {}, {}
    for (part, kind), (name, _, _) in fashion_mnist.FILES.items():
        sizes = (10, 28, 28) if kind == "images" else (10,)
        array = (np.arange(np.prod(sizes)) % 10).astype(np.uint8)
        header = bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)
        content[name] = header + array.tobytes()
        mirror.files[f"{name}.gz"] = gzip.compress(content[name])
        files[part, kind] = (name, md5_of(mirror.files[f"{name}.gz"]), 10)
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    unpacked, packed = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
    (raw / unpacked).write_bytes(content[unpacked])
    (raw / f"{packed}.gz").write_bytes(mirror.files[f"{packed}.gz"])

    splits = fashion_mnist.load("fashion-mnist", tmp_path)
    assert sorted(mirror.fetched) == ["t10k-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
    assert splits.train.labels.tolist() == splits.test.labels.tolist() == list(range(10))
    assert splits.test.columns[0, :3, 0].tolist() == [0, 1, 2]
    assert {path.name for path in raw.iterdir()} - {"download.lock"} == {
        unpacked, f"{packed}.gz", *mirror.fetched
    }  # fmt: skip


def test_body_of_another_sum_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    wanted = mirror.holds("one", "two")
    mirror.files["two.gz"] = b"<html>please log in to this network</html>"
    assert "two.gz" in refusal(tmp_path, wanted)
    assert set(archives(tmp_path)) == {"one.gz"}  # what came whole stays


def test_body_cut_short_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    mirror.send = Handler.first_half
    assert "one.gz" in refusal(tmp_path, mirror.holds("one"))
    assert archives(tmp_path) == {}


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_file_that_the_mirror_has_not(mirror: Mirror, tmp_path: Path) -> None:
    assert "404" in refusal(tmp_path, {"one": md5_of(b"")})
    assert archives(tmp_path) == {}
    gc.collect()  # urllib's HTTPError holds a socket; let it go while its warning is ignored


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
    message = refusal(tmp_path, {"one": md5_of(b"")})
    assert message.startswith("cannot download one.gz (")
    assert str(tmp_path) in message
    assert archives(tmp_path) == {}


def test_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/"
        monkeypatch.setattr(FashionMNIST, "mirrors", [url])
        before, start = set(threading.enumerate()), time.monotonic()
        message = refusal(tmp_path, {"one": md5_of(b"")})
        assert 1 <= time.monotonic() - start < 3
        left = set(threading.enumerate()) - before
        assert all(thread.daemon for thread in left)  # it cannot keep the process alive
        connection, _ = mute.accept()
        connection.close()
    assert "no answer for 1 s" in message
    for thread in left:
        thread.join(5)
    assert archives(tmp_path) == {}


def test_server_that_stops_in_the_middle(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 0.6)
    given_up = threading.Event()

    def half_and_wait(handler: Handler, content: bytes) -> None:
        handler.first_half(content)
        handler.wfile.flush()
        given_up.wait(10)

    mirror.send = half_and_wait
    wanted = mirror.holds("one")
    mirror.files["one.gz"] *= 4 * CHUNK // 1000
    before = set(threading.enumerate())
    message = refusal(tmp_path, wanted)
    given_up.set()
    assert "no answer for 0.6 s" in message
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert archives(tmp_path) == {}  # nor does the thread bring it back


def test_slow_is_not_stalled_even_over_what_a_killed_process_left(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALL_SECONDS", 1)
    mirror.delay, mirror.send = 0.5, Handler.dripping
    content = np.random.default_rng(0).bytes(8 * CHUNK)
    mirror.files["one.gz"] = content
    (tmp_path / "one.gz.part").write_bytes(bytes(10 * CHUNK))
    download.fetch(tmp_path, {"one": md5_of(content)})
    assert archives(tmp_path) == {"one.gz": content}


def test_folder_that_cannot_be_made(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    raw = tmp_path / "file" / "raw"
    message = refusal(raw, mirror.holds("one"))
    assert message.startswith(f"cannot download FashionMNIST to {raw} (")
    assert "--data-path" in message
    assert mirror.fetched == []


def test_a_failure_leaves_nothing_behind(mirror: Mirror, tmp_path: Path) -> None:
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    wanted = mirror.holds("one")
    mirror.files["one.gz"] = b"another body"
    with pytest.raises(RunError):
        download.fetch(raw, wanted)
    assert not list(tmp_path.iterdir())


def test_lock_that_cannot_be_had(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "download.lock").mkdir()
    assert "--data-path" in refusal(tmp_path, mirror.holds("one"))
    assert mirror.fetched == []


def test_no_progress_on_a_standard_error_that_is_no_terminal(
    mirror: Mirror, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    download.fetch(tmp_path, mirror.holds("one"))
    assert capfd.readouterr() == ("", "")


def test_two_threads_download_each_file_once(mirror: Mirror, tmp_path: Path) -> None:
    wanted = mirror.holds("one", "two")
    mirror.delay = 0.3
    threads = [threading.Thread(target=download.fetch, args=(tmp_path, wanted)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert mirror.fetched == ["one.gz", "two.gz"]
    assert archives(tmp_path) == mirror.files


FETCH = """
import sys
from pathlib import Path
from torchvision.datasets import FashionMNIST
from rsnn_fmnist import download
FashionMNIST.mirrors = [sys.argv[1]]
print("ready", flush=True)
input()
download.fetch(Path(sys.argv[2]), dict([sys.argv[3:]]))
"""


@pytest.mark.slow
def test_three_processes_download_a_file_once(mirror: Mirror, tmp_path: Path) -> None:
    ((name, md5),) = mirror.holds("one").items()
    mirror.delay = 0.5
    command = [sys.executable, "-c", FETCH, mirror.url, str(tmp_path), name, md5]
    pipe = subprocess.PIPE
    fetching = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(3)
    ]
    for process in fetching:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in fetching:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in fetching]
    assert [process.returncode for process in fetching] == [0, 0, 0], results
    assert mirror.fetched == ["one.gz"]
    assert archives(tmp_path) == mirror.files
