from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oat_edge.errors import InputError
from oat_edge.train.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint


def test_a_checkpoint_comes_back_whole(tiny_run: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(tiny_run)
    assert loaded.run == "tiny"
    assert loaded.spec.widths == (0.5, 1.0)
    assert loaded.info["train"]["data"] == "digits"
    assert not loaded.network.training
    # Saving what was loaded gives the same bytes: nothing depends on time or order.
    state = loaded.network.state_dict()
    save_checkpoint(tmp_path / CHECKPOINT, state, loaded.spec, loaded.info)
    assert (tmp_path / CHECKPOINT).read_bytes() == (tiny_run / CHECKPOINT).read_bytes()


def test_encodings_are_in_the_file(tiny_run: Path) -> None:
    a, b = load_checkpoint(tiny_run), load_checkpoint(tiny_run / CHECKPOINT)
    assert torch.equal(a.network.encodings, b.network.encodings)
    assert a.network.encodings.abs().sum() > 0


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_flipped_bit_is_an_error_or_changes_nothing(
    tiny_run: Path, tmp_path: Path, place: float, bit: int
) -> None:
    data = bytearray((tiny_run / CHECKPOINT).read_bytes())
    # Half of the flips fall into the header, where a wrong answer would hide.
    header = int.from_bytes(data[:8], "little") + 8
    index = int(place * 2 * header) if place < 0.5 else int(place * len(data))
    data[index] ^= 1 << bit
    (tmp_path / CHECKPOINT).write_bytes(data)
    try:
        damaged = load_checkpoint(tmp_path)
    except InputError as error:
        assert "\n" not in str(error)
        return
    whole = load_checkpoint(tiny_run)
    assert damaged.spec == whole.spec
    assert damaged.info == whole.info
    state = damaged.network.state_dict()
    assert all(torch.equal(state[k], v) for k, v in whole.network.state_dict().items())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_an_error(tiny_run: Path, tmp_path: Path, share: float) -> None:
    data = (tiny_run / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError):
        load_checkpoint(tmp_path)


def test_a_missing_or_foreign_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="oat-edge train"):
        load_checkpoint(tmp_path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="not an oat-edge checkpoint"):
        load_checkpoint(tmp_path)


def test_a_moved_run_still_loads(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "elsewhere")
    assert load_checkpoint(tmp_path / "elsewhere").sha256 == load_checkpoint(tiny_run).sha256
