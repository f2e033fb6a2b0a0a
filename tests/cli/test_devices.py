"""`oat-edge devices`: names for machines."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_devices_are_added_shown_and_removed(main, tmp_path):
    ended = main("devices", "list")
    assert ended.code == 0 and "oat-edge devices add NAME user@host" in ended.out
    ended = main("devices", "add", "orin", "nvidia@orin.local")
    assert ended.code == 0 and "bench --device orin" in ended.out
    assert main("devices", "add", "box", "me@box", "--device", "cpu", "--python", "py").code == 0
    assert "changed box" in main("devices", "add", "box", "me@box2", "--device", "cuda").out
    ended = main("devices", "list")
    assert [line.split() for line in ended.out.splitlines()[1:]] == [
        ["orin", "nvidia@orin.local", "jetson", "python3"],
        ["box", "me@box2", "cuda", "python3"],
    ]
    value = json.loads(main("devices", "list", "--json", "-").out)
    assert value["devices"][0] == {
        "name": "orin", "host": "nvidia@orin.local", "device": "jetson", "python": None,
    }  # fmt: skip
    assert main("devices", "remove", "orin").code == 0
    assert "orin" not in main("devices", "list").out
    assert (tmp_path / "config" / "oat-edge" / "devices.toml").is_file()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["add", "cpu", "me@box"], "name is 'cpu'"),
        (["add", "a/b", "me@box"], "name is 'a/b'"),
        (["add", "box", "me@box;id"], "host is 'me@box;id'"),
        (["add", "box", "--", "-oProxyCommand=id"], "host is '-oProxyCommand=id'"),
        (["add", "box", "me@box", "--device", "tpu"], "device is 'tpu'"),
        (["add", "box", "me@box", "--python", "$(id)"], "python is '$(id)'"),
        (["remove", "box"], "no device 'box'"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, part, main, tmp_path):
    ended = main("devices", *arguments)
    assert ended.code == 2 and ended.out == ""
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ") and part in line
    assert not (tmp_path / "config").exists()
