from __future__ import annotations

import threading

import pytest

from oat_edge.device.system import System
from oat_edge.errors import DependencyError, InputError
from oat_edge.remote.devices import (
    Device,
    add_device,
    devices_file,
    load_devices,
    remove_device,
)
from oat_edge.remote.ssh import check_host
from oat_edge.remote.targets import targets_from


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def pc(tmp_path):
    (tmp_path / "pc").mkdir()
    return System(tmp_path / "pc")


@pytest.fixture
def jetson(tmp_path):
    tree = tmp_path / "jetson" / "proc" / "device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    return System(tmp_path / "jetson")


def add(name, host="user@orin", **facts):
    add_device(Device(name=name, host=check_host(host), **facts))


def test_a_device_is_found_as_it_was_named():
    add("orin", "ssh://nvidia@orin:2222", python="/opt/env/bin/python")
    add("server", "me@gpu1", device="cuda")
    assert list(load_devices()) == ["orin", "server"]
    orin = load_devices()["orin"]
    assert str(orin.host) == "ssh://nvidia@orin:2222" and orin.device == "jetson"
    assert orin.python == "/opt/env/bin/python" and load_devices()["server"].python is None
    remove_device("orin")
    assert list(load_devices()) == ["server"]
    with pytest.raises(InputError, match=r"no device 'orin': there are server \(add one"):
        remove_device("orin")


def test_comments_and_order_are_kept():
    path = devices_file()
    path.parent.mkdir(parents=True)
    path.write_text(
        "# mine\n[devices.b]\nhost = 'x@b'  # in the lab\npython = 'py'\n\n[devices.a]\n"
        "host = 'x@a'\n"
    )
    add("c", "x@c")
    add("b", "x@b2", device="cpu")
    text = path.read_text()
    assert "# mine" in text and "# in the lab" in text and "python" not in text
    assert list(load_devices()) == ["b", "a", "c"] and load_devices()["b"].device == "cpu"


@pytest.mark.parametrize(
    "name",
    ["", "-x", ".x", "a b", "a/b", "../a", "cpu", "cuda", "jetson", "fleet", "a\n", "é", "a;b",
     "$(x)", "a@b", "%h", "x" * 65],
)  # fmt: skip
def test_names_that_would_not_do_are_refused(name):
    with pytest.raises(InputError, match=r"^name is "):
        add(name)
    assert not devices_file().exists()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[devices.a]\nhost = \n", "line 2"),
        ("[devices.a]\nhost = 'x@a'\n[devices.a]\nhost = 'y'\n", "damaged"),
        ("devices = 3\n", "no tables"),
        ("[devices]\na = 1\n", "no tables"),
        ("[devices.a]\n", "device 'a': host is missing"),
        ("[devices.a]\nhost = 3\n", "device 'a': host is no text"),
        ("[devices.a]\nhost = 'x'\nport = 3\n", "device 'a': port is unknown"),
        ("[devices.a]\nhost = '-oProxyCommand=x'\n", "device 'a': host is '-oProxy"),
        ("[devices.a]\nhost = 'x'\ndevice = 'tpu'\n", "device 'a': device is 'tpu'"),
        ("[devices.a]\nhost = 'x'\npython = '$(id)'\n", "device 'a': python is '$(id)'"),
        ("[devices.'-a']\nhost = 'x'\n", "name is '-a'"),
        ("\xff", "devices.toml"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_the_place(text, part):
    path = devices_file()
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as failed:
        load_devices()
    assert part in str(failed.value) and str(path) in str(failed.value)
    assert "\n" not in str(failed.value)


def test_no_option_means_this_machine(pc, jetson):
    for device in (None, "cpu", "cuda"):
        assert targets_from(device=device, system=pc) == ()
    assert targets_from(device="jetson", system=jetson) == ()


def test_jetson_elsewhere_means_the_one_that_has_a_name(pc):
    with pytest.raises(DependencyError, match=r"detected: no Jetson board\).*devices add orin"):
        targets_from(device="jetson", system=pc)
    add("server", "me@gpu1", device="cuda")
    add("nano", python="py")
    (target,) = targets_from(device="jetson", system=pc)
    assert (target.name, str(target.host), target.device, target.python) == (
        "nano", "user@orin", "jetson", "py",
    )  # fmt: skip
    add("agx")
    with pytest.raises(InputError, match="there are nano, agx: say --device nano"):
        targets_from(device="jetson", system=pc)


def test_another_board_is_named(tmp_path):
    tree = tmp_path / "proc" / "device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(b"Raspberry Pi 5\0")
    with pytest.raises(DependencyError, match="board 'Raspberry Pi 5'"):
        targets_from(device="jetson", system=System(tmp_path))


def test_a_device_by_its_name(pc):
    add("orin")
    (target,) = targets_from(device="orin", system=pc)
    assert target.name == "orin" and target.device == "jetson"
    with pytest.raises(InputError, match=r"device is 'thor': expected cpu, .* there are orin"):
        targets_from(device="thor", system=pc)
    with pytest.raises(InputError, match="say one of them"):
        targets_from(["other"], device="orin", system=pc)


def test_hosts_and_names_of_devices_mix_and_each_counts_once(tmp_path, pc):
    add("orin", "nvidia@10.0.0.5", device="jetson")
    fleet = tmp_path / "fleet"
    fleet.write_text("# the lab\nme@box1\n\n  orin   # at the window\nme@box1\n")
    targets = targets_from(["me@box2"], fleet, system=pc)
    assert [one.name for one in targets] == ["box2", "box1", "orin"]
    assert [one.device for one in targets] == ["cpu", "cpu", "jetson"]
    assert {one.device for one in targets_from(["orin", "x"], device="cuda", system=pc)} == {"cuda"}


def test_names_are_different_and_fit_into_file_names(pc):
    targets = targets_from(["a@box", "b@box", "ssh://box:22", "c@[::1]", "d@box2"], system=pc)
    assert targets_from(["me@fleet"], system=pc)[0].name == "me-fleet"
    assert targets_from(["fleet"], system=pc)[0].name == "fleet-2"  # report-fleet.json is taken
    names = [one.name for one in targets]
    assert names == ["a-box", "b-box", "box-22", "1", "box2"]


def test_a_host_gets_no_name_of_a_device(pc):
    """Its report and its engines would be taken for the device's."""
    add("orin", "nvidia@10.0.0.5")
    add("box-2")
    names = [one.name for one in targets_from(["me@orin", "orin", "me@ORIN"], system=pc)]
    assert names == ["me-orin", "orin", "me-ORIN-2"]
    again = targets_from(["a@box", "box-2", "ssh://a@box"], system=pc)
    assert len({one.name for one in again}) == len(again)
    assert next(one for one in again if str(one.host) == "user@orin").name == "box-2"


def test_a_file_that_is_a_link_stays_one(tmp_path):
    """The user's settings lie elsewhere, in a folder under version control."""
    mine = tmp_path / "dotfiles" / "devices.toml"
    mine.parent.mkdir()
    mine.write_text("# mine\n")
    devices_file().parent.mkdir(parents=True)
    devices_file().symlink_to(mine)
    add("orin")
    assert devices_file().is_symlink() and "[devices.orin]" in mine.read_text()
    remove_device("orin")
    assert devices_file().is_symlink() and mine.read_text().startswith("# mine")
    assert [path.name for path in mine.parent.iterdir()] == ["devices.toml"]


def test_devices_that_are_added_at_once_are_all_there():
    names = [f"d{number}" for number in range(12)]
    threads = [threading.Thread(target=add, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(load_devices()) == sorted(names)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("ok\n-oProxyCommand=x\n", ":2: host is '-oProxy"),
        ("a b\n", ":1: host is 'a b'"),
        ("# nothing\n", "names no host"),
    ],
)
def test_a_file_of_hosts_is_checked_by_the_line(text, part, tmp_path, pc):
    (tmp_path / "fleet").write_text(text)
    with pytest.raises(InputError) as failed:
        targets_from((), tmp_path / "fleet", system=pc)
    assert part in str(failed.value)
    with pytest.raises(InputError, match="cannot be read"):
        targets_from((), tmp_path / "none", system=pc)
