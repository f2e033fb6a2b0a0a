"""What a device that is not what it should be can send: spoken to by a stand-in for its agent."""

from __future__ import annotations

import hashlib
import json
import tempfile

import pytest

from oat_edge.bench.request import run_request
from oat_edge.errors import InputError
from oat_edge.remote import fetch as fetch_module
from oat_edge.remote.bench import Parcel, send_engines
from oat_edge.remote.engines import names_for
from oat_edge.remote.fetch import fetch, fetch_file, local_name
from oat_edge.runtime import engines
from tests.remote.conftest import REQUEST
from tests.remote.test_engines import with_engine

JOB = "a" * 32
KEYS = ["tensorrt 10.3.0 | Orin | Linux aarch64"]


class Device:
    """Answers as an agent with these files would; `sizes` are lies."""

    host = "orin"

    def __init__(self, files, sizes=None):
        self.files, self.sizes, self.asked = files, sizes or {}, []

    def call(self, verb, **fields):
        self.asked.append((verb, fields.get("name")))
        if verb == "files":
            return {"files": [self.listed(name) for name in self.files]}, b""
        if verb == "engines":
            return {"missing": ["../../other", *fields["names"]]}, b""
        if verb == "have":
            return {"missing": dict.fromkeys(fields["sizes"], 0)}, b""
        if verb == "put":
            return {"here": fields["total"]}, b""
        return {}, self.files[fields["name"]][fields["offset"] :] if verb == "get" else b""

    def listed(self, name):
        data = self.files[name]
        size = self.sizes.get(name, len(data))
        return {"name": name, "size": size, "sha256": hashlib.sha256(data).hexdigest()}


@pytest.fixture(scope="module")
def result(template, tmp_path_factory):
    """The files of a real result."""
    folder = tmp_path_factory.mktemp("result")
    run_request(REQUEST, template, folder=folder)
    names = ("report.json", "report-samples.npz", "results.jsonl")
    return {name: (folder / name).read_bytes() for name in names}


def get(device, bundle, name="orin"):
    return fetch(device, JOB, Parcel.of(bundle).names, bundle, name, KEYS)


def files(bundle):
    return {str(path.relative_to(bundle.path)) for path in bundle.path.rglob("*")
            if path.is_file() and path.name != ".lock"}  # fmt: skip


def test_only_files_that_were_asked_for_come(result, bundle):
    bundle = with_engine(bundle)
    (mine,) = names_for(bundle, KEYS)
    alien = "e" * 32
    before = files(bundle)
    hostile = ("report-2.json", "../x.json", "/x", ".bashrc", "manifest.json", "a/b", 3, None)
    sent = dict.fromkeys((*hostile, f"{alien}.engine", f"{alien}.json", f"{mine}.sh"), b"code")
    built = {f"{mine}{suffix}": b"engine" for suffix in (".json", ".engine", ".log")}
    device = Device({**sent, **built, **result})
    report = get(device, bundle)
    assert files(bundle) - before == {
        "report-orin.json", "report-orin-samples.npz", "results-orin.jsonl",
        *(f"engines/orin/{name}" for name in built),
    }  # fmt: skip
    assert report.samples_file == "report-orin-samples.npz"
    asked = [name for verb, name in device.asked if verb == "get"]
    assert set(asked) == {*built, *result}
    # Facts after their engine.
    assert asked.index(f"{mine}.json") > asked.index(f"{mine}.engine")


def test_a_bundle_without_engines_gets_none(result, bundle):
    get(Device({**result, f"{'e' * 32}.engine": b"code"}), bundle)
    assert not (bundle.path / "engines").exists()


def test_what_one_device_sent_goes_to_no_other_and_is_not_loaded_here(result, bundle, monkeypatch):
    bundle = with_engine(bundle)
    (mine,) = names_for(bundle, KEYS)
    facts = {"sha256": hashlib.sha256(b"code").hexdigest(), "device_key": KEYS[0],
             "typing": "strong", "precision": "fp32"}  # fmt: skip
    built = {f"{mine}.engine": b"code", f"{mine}.json": json.dumps(facts).encode()}
    get(Device({**result, **built}), bundle, "evil")
    said, others = [], Device({})
    send_engines(others, bundle, "orin", KEYS, lambda *text: said.append(text))
    assert others.asked == [] and said == []
    back = Device({})
    send_engines(back, bundle, "evil", KEYS, lambda *text: said.append(text))
    names = [name for verb, name in back.asked if verb == "engine"]
    assert names == [f"{mine}.engine", f"{mine}.json"]

    # This machine is of the same kind: it builds its own.
    class Here:
        key = KEYS[0]

    def build(source, recipe, target, *, say):
        return "built here"

    monkeypatch.setattr("oat_edge.runtime.cuda.gpu", lambda: None)
    monkeypatch.setattr(engines, "build_target", lambda format: Here)
    monkeypatch.setattr(engines, "keep_engine", build)
    # Where they lay before, and where they lie now.
    for name, data in built.items():
        (bundle.path / "engines" / name).write_bytes(data)
    (artifact,) = bundle.of_format("trt-rtx")
    assert engines.obtain_engine(bundle, artifact) == "built here"


@pytest.mark.parametrize("size", [-1, 1 << 40, "9", None, 1.5, (1 << 28) + 1])
def test_a_size_that_cannot_be_is_refused_before_anything_comes(size, tmp_path):
    device = Device({"results.jsonl": b"x"}, {"results.jsonl": size})
    with pytest.raises(InputError, match=r"results\.jsonl on orin has .* expected at most"):
        fetch_file(device, JOB, device.listed("results.jsonl"), tmp_path / "x")
    assert device.asked == [] and list(tmp_path.iterdir()) == []


def test_an_engine_may_be_larger(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "MOST_BYTES", 10)
    for name, comes in ((f"{JOB}.engine", True), ("report.json", False)):
        device = Device({name: b"x" * 11})
        if comes:
            fetch_file(device, JOB, device.listed(name), tmp_path / "x")
        else:
            with pytest.raises(InputError, match="expected at most 10"):
                fetch_file(device, JOB, device.listed(name), tmp_path / "y")


def test_more_than_was_announced_is_not_taken(tmp_path):
    device = Device({"results.jsonl": b"x" * 1000}, {"results.jsonl": 10})
    with pytest.raises(InputError, match="arrived damaged"):
        fetch_file(device, JOB, device.listed("results.jsonl"), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_texts_of_a_report_can_be_shown_and_a_damaged_one_is_one_line(result, bundle):
    value = json.loads(result["report.json"])
    value["warnings"] = ["\x1b]52;c;aWQ=\x07 \x1b[2J"]
    report = get(Device({**result, "report.json": json.dumps(value).encode()}), bundle)
    assert all(warning.isprintable() for warning in report.warnings)
    good = (bundle.path / "report-orin.json").read_bytes()
    assert b"\\u001b" not in good and b"\x1b" not in good
    for bad in (b"[" * 100_000, b'{"x": ' + b"[" * 400 + b"]" * 400 + b"}", b"{}"):
        with pytest.raises(InputError) as failed:
            get(Device({**result, "report.json": bad}), bundle)
        assert "\n" not in str(failed.value)
    assert (bundle.path / "report-orin.json").read_bytes() == good


def test_samples_of_another_bench_are_not_taken_for_its_own(result, bundle):
    get(Device(result), bundle)
    less = {name: data for name, data in result.items() if name != "report-samples.npz"}
    assert get(Device(less), bundle).samples_file is None


def test_a_fetch_that_is_cut_off_leaves_the_bundle_as_it_was(result, bundle, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = files(bundle)
    device = Device(result)
    lie = {"report-samples.npz": 3}
    with pytest.raises(InputError):
        get(Device(result, lie), bundle)
    assert files(bundle) == before
    get(device, bundle)


def test_results_get_the_devices_name():
    assert local_name("report.json", "orin") == "report-orin.json"
    assert local_name("report-samples.npz", "orin") == "report-orin-samples.npz"
    assert local_name("results.jsonl", "orin") == "results-orin.jsonl"
    assert local_name(f"{'a' * 32}.engine", "orin") == f"engines/orin/{'a' * 32}.engine"
    for name in ("../x.json", "/x.json", ".x", "engines/x", "report-2.json", "x.npz"):
        with pytest.raises(InputError):
            local_name(name, "orin")
    for device in ("", "..", "../x", "a/b", "-x", "a\n"):
        with pytest.raises(InputError, match="name is "):
            local_name("report.json", device)


def test_no_two_devices_have_a_file_in_common():
    names = ("orin", "orin-samples", "orin-2", "orin-samples-samples", "2", "orin.json")
    ours = ("report.json", "report-samples.npz", "results.jsonl", f"{'a' * 32}.json")
    found = [local_name(file, name) for name in names for file in ours]
    assert len(set(found)) == len(found)
