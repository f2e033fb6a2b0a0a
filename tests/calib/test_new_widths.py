from __future__ import annotations

from pathlib import Path

import pytest

from oat_edge.calib.new_widths import reserved
from oat_edge.errors import InputError


def test_a_reserved_place_is_taken(tmp_path: Path) -> None:
    with (
        reserved(tmp_path / "run"),
        pytest.raises(InputError, match="another oat-edge command is writing"),
        reserved(tmp_path / "run"),
    ):
        raise AssertionError("reserved twice")


@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt])
def test_a_place_where_nothing_was_written_is_given_back(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "there").mkdir()
    for name in ("there", "new"):
        with pytest.raises(error), reserved(tmp_path / name):
            raise error
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_was_written_stays(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(InputError), reserved(run_dir):
        (run_dir / "config.json").write_text("{}")
        raise InputError
    assert (run_dir / "config.json").exists()
    with reserved(run_dir):  # half a run is no run
        (run_dir / "checkpoint.safetensors").touch()
    with pytest.raises(InputError, match="already holds a run"), reserved(run_dir):
        raise AssertionError("taken")
