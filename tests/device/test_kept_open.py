from __future__ import annotations

from pathlib import Path

import pytest

from oat_edge.device.kept_open import KeptOpen
from oat_edge.device.system import System
from tests.device.machines import Live


def test_a_file_that_is_kept_open_is_read_anew(tmp_path: Path) -> None:
    for name, text in (("a", "12\n"), ("b", "<unknown>\n")):
        (tmp_path / name).write_text(text)
    kept = KeptOpen(Live(tmp_path), ["a", "b", "gone"])
    assert kept.numbers() == [12]
    (tmp_path / "a").write_text("7\n")
    assert kept.numbers() == [7]
    kept.close()
    assert kept.numbers() == [7]
    kept.close()


def test_a_file_that_breaks_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("12\n")
    kept = KeptOpen(Live(tmp_path), ["a"])
    assert kept.numbers() == [12]
    with monkeypatch.context() as broken:
        broken.setattr("os.pread", lambda *_: (_ for _ in ()).throw(OSError(19, "No such device")))
        assert kept.numbers() == []
    (tmp_path / "a").unlink()
    (tmp_path / "a").write_text("15\n")
    assert kept.numbers() == [15]
    kept.close()


def test_files_of_a_recorded_tree_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("12\n")
    kept = KeptOpen(System(tmp_path), ["a"])
    assert kept.numbers() == [12]
    (tmp_path / "a").unlink()
    (tmp_path / "a").write_text("15\n")
    assert kept.numbers() == [15]
