import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from oat_edge.data import fetch, load
from oat_edge.data.fetch import RemoteFile, Source, describe_files, find_files
from oat_edge.errors import InputError


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Address and folder of a web server on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/", folder
        httpd.shutdown()
        thread.join()


def source_of(url, content=b"content", **options):
    remote = RemoteFile(url=url + "file.bin", sha256=hashlib.sha256(content).hexdigest())
    return Source(name="toy", remote=(remote,), **options)


def test_download_lands_in_the_cache_and_is_found_there(server, cache):
    url, folder = server
    (folder / "file.bin").write_bytes(b"content")
    source = source_of(url)
    (path,) = find_files(source, data_dir=None, download=True)
    assert path == cache / "toy" / "file.bin" and path.read_bytes() == b"content"
    (folder / "file.bin").unlink()
    assert find_files(source, data_dir=None, download=False) == [path]
    (entry,) = describe_files(source, [path])["files"]
    assert entry == {"path": str(path), "sha256": source.remote[0].sha256, "published": True}


def test_download_of_other_content_is_refused_and_leaves_nothing(server, cache, one_line):
    url, folder = server
    (folder / "file.bin").write_bytes(b"something else")
    with pytest.raises(InputError) as error:
        find_files(source_of(url), data_dir=None, download=True)
    one_line(error, "file.bin", "could not be downloaded", "--data-dir")
    assert not list((cache / "toy").iterdir())


def test_missing_file_and_dead_server_are_one_line(server, one_line):
    url, _ = server
    for address in (url, "http://127.0.0.1:1/"):
        with pytest.raises(InputError) as error:
            find_files(source_of(address), data_dir=None, download=True)
        one_line(error, "toy", address, "could not be downloaded", "check the network")


def test_nothing_is_downloaded_unless_asked(server, cache):
    url, folder = server
    (folder / "file.bin").write_bytes(b"content")
    with pytest.raises(InputError, match="--download"):
        find_files(source_of(url), data_dir=None, download=False)
    assert not cache.exists()


def test_places_are_taken_in_order(tmp_path, cache):
    system = tmp_path / "system"
    source = source_of("http://127.0.0.1:1/", system_dir=system, system_package="dataset-toy")
    places = [cache / "toy", system, tmp_path / "mine" / "toy", tmp_path / "mine"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / "file.bin").write_bytes(b"content")
        found = find_files(source, data_dir=tmp_path / "mine", download=True)
        assert found == [place / "file.bin"]


def test_a_part_of_a_layout_is_not_enough(tmp_path):
    source = source_of("http://127.0.0.1:1/", layouts=(("a", "b"),))
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(InputError, match="not on this machine"):
        find_files(source, data_dir=tmp_path, download=False)
    (tmp_path / "b").write_bytes(b"")
    found = find_files(source, data_dir=tmp_path, download=False)
    assert found == [tmp_path / "a", tmp_path / "b"]


def test_missing_names_every_place_and_every_way_out(tmp_path, cache, one_line):
    source = source_of("http://x/", system_dir=tmp_path / "sys", system_package="dataset-toy")
    with pytest.raises(InputError) as error:
        find_files(source, data_dir=tmp_path / "mine", download=False)
    one_line(
        error,
        *("file.bin", str(tmp_path / "mine"), str(tmp_path / "sys"), str(cache / "toy")),
        *("apt install dataset-toy", "--data-dir", "--download"),
    )


@pytest.mark.parametrize("name", ["cifar10", "svhn", "stl10"])
def test_named_sets_that_are_missing_say_so(name, tmp_path, one_line):
    with pytest.raises(InputError) as error:
        load(name, data_dir=tmp_path)
    one_line(error, f"{name} is not on this machine", str(tmp_path), "--download")


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "svhn", "stl10"])
def test_every_address_has_a_hash_and_a_file_name(name):
    import importlib

    source = importlib.import_module(f"oat_edge.data.{name}").SOURCE
    hashes = [file.sha256 for file in source.remote] + list(source.known_sha256)
    assert len(set(hashes)) == len(hashes)
    for digest in hashes:
        assert len(bytes.fromhex(digest)) == 32
    for file in source.remote:
        assert file.url.endswith("/" + file.name) and file.name


def test_cache_follows_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert fetch.cache_dir() == Path("/somewhere/oat-edge")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/user")
    assert fetch.cache_dir() == Path("/home/user/.cache/oat-edge")
