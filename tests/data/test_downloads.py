"""Downloads from a server on this machine: whole files only, resumed, and failures that say what to do."""

import hashlib
import http.server
import re
import socket
import threading

import pytest
import torchvision

from lrp.data import downloads
from lrp.data.downloads import Item, check, fetch, manifest
from lrp.errors import DataError

CONTENT = bytes(range(256)) * 4000  # 1 MB


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT at every path, understands Range, and cuts the first `server.cuts` connections."""

    def do_GET(self):
        self.server.requests.append(self.headers.get("Range"))
        if self.path == "/gone":
            return self.send_error(404, "Not Found")
        start = 0
        if (asked := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")) and self.server.ranges:
            start = int(asked[1])
            if start >= len(CONTENT):
                return self.send_error(416, "Range Not Satisfiable")
        self.send_response(206 if start else 200)
        body = self.server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.cuts, server.ranges, server.content = [], 0, True, CONTENT
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def an_item(server, address="/thing.bin", **changes):
    values = {
        "name": "thing",
        "url": f"http://127.0.0.1:{server.server_port}{address}",
        "path": "weights/thing.bin",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "bytes": len(CONTENT),
    }
    return Item(**values | changes)


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_arrives_whole_and_only_once(server, tmp_path):
    item = an_item(server)
    assert check(item, tmp_path) == "missing"
    path = fetch(item, tmp_path)
    assert path == tmp_path / "weights" / "thing.bin" and path.read_bytes() == CONTENT
    assert files(tmp_path) == ["thing.bin"] and check(item, tmp_path) == "whole"
    fetch(item, tmp_path)
    assert len(server.requests) == 1


def test_a_cut_connection_is_taken_up_again(server, tmp_path):
    server.cuts = 2
    assert fetch(an_item(server), tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=512000-", "bytes=768000-"]


def test_a_part_of_an_earlier_run_is_taken_up_again(server, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "thing.bin.part").write_bytes(CONTENT[:1000])
    assert check(an_item(server), tmp_path) == "half"
    assert fetch(an_item(server), tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=1000-"]


def test_a_part_that_was_complete_needs_no_connection(server, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "thing.bin.part").write_bytes(CONTENT)
    assert fetch(an_item(server), tmp_path).read_bytes() == CONTENT and not server.requests


def test_a_part_that_is_too_long_is_thrown_away(server, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "thing.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(an_item(server), tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    server.cuts, server.ranges = 1, False
    assert fetch(an_item(server), tmp_path).read_bytes() == CONTENT


def test_a_connection_that_always_breaks_keeps_what_came(server, tmp_path):
    server.cuts, server.ranges = 99, False
    with pytest.raises(
        DataError, match=r"thing: .* cannot be read .* are kept: check the network and run `make data` again"
    ):
        fetch(an_item(server), tmp_path)
    assert files(tmp_path) == ["thing.bin.part"]


@pytest.mark.parametrize(
    "changes", [{}, {"bytes": 0, "megabytes": 0.977, "sha256": hashlib.sha256(CONTENT).hexdigest()[:8]}]
)
def test_a_tampered_file_is_not_kept(server, tmp_path, changes):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(DataError, match=r"thing: .* SHA-256 is .* instead of .*; nothing was kept"):
        fetch(an_item(server, **changes), tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize("changes", [{"bytes": 999}, {"bytes": 0, "megabytes": 2.0}])
def test_a_file_of_another_size_is_not_kept(server, tmp_path, changes):
    with pytest.raises(DataError, match=r"thing: .* it has .* instead of"):
        fetch(an_item(server, **changes), tmp_path)
    assert files(tmp_path) == []


def test_a_wrong_file_on_the_disk_is_named_and_left(server, tmp_path):
    path = fetch(an_item(server), tmp_path)
    path.write_bytes(CONTENT[:10])
    with pytest.raises(DataError, match=r"thing\.bin is not what it should be, it has 10 bytes .*: delete it"):
        fetch(an_item(server), tmp_path)
    assert path.exists() and "10 bytes" in check(an_item(server), tmp_path)


def test_404_names_the_address(server, tmp_path):
    with pytest.raises(DataError, match=r"thing: http://.*/gone answers 404"):
        fetch(an_item(server, "/gone"), tmp_path)
    assert files(tmp_path) == []


def test_an_unreachable_server_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DataError, match=r"thing: http://127\.0\.0\.1:\d+/x cannot be read \(.*refused"):
        fetch(Item("thing", f"http://127.0.0.1:{port}/x", "x", "00"), tmp_path)


def test_one_failure_does_not_stop_the_rest(server, tmp_path, monkeypatch, capsys):
    items = {
        "bad": an_item(server, "/gone", name="bad", path="bad"),
        "good": an_item(server, name="good", path="good"),
    }
    monkeypatch.setattr(downloads, "manifest", lambda: items)
    monkeypatch.setattr(downloads, "RAW", tmp_path)
    assert downloads.main([]) == 1
    said = capsys.readouterr()
    assert "2 of 2 files to fetch, 2 MiB" in said.out
    assert said.err.count("\n") == 1 and said.err.startswith("make data: bad: http")
    assert files(tmp_path) == ["good"]
    assert downloads.main(["good"]) == 0
    assert downloads.main(["good", "--check"]) == 0 and downloads.main(["--check"]) == 1
    assert downloads.main(["no_such_thing"]) == 1
    assert "nothing is called 'no_such_thing'" in capsys.readouterr().err


def test_the_manifest_agrees_with_torchvision():
    items = manifest()
    assert {"squeezenet1_1", "mobilenet_v2", "vgg16", "resnet50", "alexnet", "googlenet"} <= set(items)
    assert {name for name, item in items.items() if item.grows} == {"ersst_v5"}
    for name, item in items.items():
        if item.grows:
            continue
        weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        assert item.url == weights.url and item.url.startswith("https://")
        assert item.url.endswith(f"-{item.sha256}.pth") and len(item.sha256) == 8
        assert item.megabytes == weights.meta["_file_size"] and item.license and item.used_by


def test_a_file_that_grows_is_whole_when_all_came_and_is_never_pieced_together(server, tmp_path):
    item = an_item(server, sha256="", bytes=0, grows=True)
    part = tmp_path / f"{item.path}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"of yesterday")
    server.cuts = 1  # within one call it is taken up where it broke off
    assert fetch(item, tmp_path).read_bytes() == CONTENT and check(item, tmp_path) == "whole"
    assert server.requests == [None, f"bytes={len(CONTENT) // 2}-"]
    server.content = CONTENT + b"a month more"
    (tmp_path / item.path).unlink()
    assert fetch(item, tmp_path).read_bytes() == server.content


def test_any_classifier_of_torchvision_has_an_item():
    item = downloads.item("resnet18")
    assert item.path == "weights/resnet18-f37072fd.pth" and item.sha256 == "f37072fd" and item.megabytes > 40


@pytest.mark.parametrize(
    "entry",
    [
        'name = "x"',
        'name="x"\nurl="u"\nsha256=""\npath="x"',
        'name="x"\nurl="u"\nsha256="0"\npath="../x"',
        'name="x"\nurl="u"\nsha256="0"\npath="/x"',
    ],
)
def test_a_bad_manifest_entry_is_named(tmp_path, entry):
    (tmp_path / "m.toml").write_text(f"[[file]]\n{entry}\n")
    with pytest.raises(DataError, match="entry x"):
        manifest(tmp_path / "m.toml")
