from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oat_edge.data import Dataset
from oat_edge.files import write_bytes
from oat_edge.train.averaging import Average
from oat_edge.train.checkpoint import CHECKPOINT, load_checkpoint
from oat_edge.train.loop import Interrupted, Trainer
from oat_edge.train.state import TRAIN_STATE, load_state
from tests.conftest import make_network, tiny_config

NETWORK = make_network(widths=(1.0,))


def _set(value: float) -> None:
    with torch.no_grad():
        for tensor in NETWORK.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(value)


def _value(average: Average) -> float:
    """The one number that all weights and statistics of the average are."""
    values = torch.cat([t.flatten() for t in average.network.state_dict().values() if t.ndim])
    assert (values == values[0]).all()
    return float(values[0])


@given(values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8))
@settings(max_examples=15)
def test_swa_is_the_mean_of_what_it_took_in(values: list[float]) -> None:
    average = Average(NETWORK, decay=None)
    for value in values:
        _set(value)
        average.update(NETWORK)
    assert _value(average) == pytest.approx(sum(values) / len(values), abs=1e-4)


@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8),
    decay=st.floats(0.01, 0.999),
)
@settings(max_examples=15)
def test_an_ema_stays_between_its_values_and_ends_at_a_constant(
    values: list[float], decay: float
) -> None:
    average = Average(NETWORK, decay=decay)
    for value in values:
        _set(value)
        average.update(NETWORK)
    assert min(values) - 1e-4 <= _value(average) <= max(values) + 1e-4
    average.count = 10**9  # past its start: the plain rule
    before = _value(average)
    _set(1.0)
    average.update(NETWORK)
    assert _value(average) == pytest.approx(decay * before + (1 - decay), abs=1e-3)


def test_the_averages_statistics_are_those_of_its_own_activations(digits: Dataset) -> None:
    """In one batch of all images, training mode and eval mode then compute the same."""
    average = Average(make_network(widths=(0.5, 1.0)), decay=None)
    images, labels = torch.from_numpy(digits.train.images), torch.from_numpy(digits.train.labels)
    config = tiny_config(batch_size=len(images))
    network = average.network
    x, hat = images.float() / 255, torch.eye(6)[torch.zeros(len(images), dtype=torch.int64)]

    def difference(width: float) -> float:
        with torch.no_grad():
            run = network.eval()(x, torch.zeros(len(x)), width)
            batch = network.train().train_pass(
                x, hat, width, adversarial=False, film=network.film_tables()
            )
        network.eval()
        return float((run - batch).abs().max() / batch.abs().max())

    assert min(difference(width) for width in (0.5, 1.0)) > 0.1
    average.estimate_statistics(images, labels, config)
    # Not equal: the variances differ by n / (n - 1).
    assert max(difference(width) for width in (0.5, 1.0)) < 0.02


OPTIONS = {"ema": {"ema": 0.9}, "swa": {"swa_start": 0.5}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_stop_and_resume_gives_the_same_bytes(
    digits: Dataset, tmp_path: Path, options: dict[str, float]
) -> None:
    small = {"widths": (1.0,), "lambdas": (0.0, 1.0), "attack_steps": 1, "val_attack_samples": 8}
    config = tiny_config(epochs=3, **small, **options)
    Trainer(config, digits, tmp_path / "whole").train()
    calls, run = iter(range(100)), tmp_path / "run"
    for stop_after in (3, 4):  # in the second epoch, then in the third
        with pytest.raises(Interrupted):
            Trainer(config, digits, run, resume=run.exists()).train(
                should_stop=lambda n=stop_after: next(calls) + 1 >= n
            )
    Trainer(config, digits, run, resume=True).train()
    assert (run / CHECKPOINT).read_bytes() == (tmp_path / "whole" / CHECKPOINT).read_bytes()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_average_is_saved_and_training_does_not_see_it(
    digits: Dataset, tmp_path: Path, options: dict[str, float]
) -> None:
    small = {"epochs": 2, "val_every": 2, "val_attack_samples": 8, "widths": (1.0,)}
    Trainer(tiny_config(**small), digits, tmp_path / "plain").train()
    Trainer(tiny_config(**small, **options), digits, tmp_path / "run").train()
    plain, _, _ = load_state(tmp_path / "plain" / TRAIN_STATE)
    state, _, _ = load_state(tmp_path / "run" / TRAIN_STATE)
    saved = load_checkpoint(tmp_path / "run").network.state_dict()
    assert state.averaged == (4 if "ema" in options else 1)  # steps; epochs after the start
    if "ema" in options:  # SWA holds the rate, hence trains otherwise
        assert all(torch.equal(state.network[n], t) for n, t in plain.network.items())
        assert not all(torch.equal(saved[n], t) for n, t in state.network.items())
    assert all(torch.equal(saved[n], t) for n, t in state.average.items())


def test_swa_holds_the_rate_from_its_start(digits: Dataset, tmp_path: Path) -> None:
    options = {"widths": (1.0,), "val_every": 4, "val_attack_samples": 8, "attack_steps": 1}
    Trainer(tiny_config(epochs=4, swa_start=0.5, **options), digits, tmp_path).train()
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").open()]
    assert rates[0] > rates[1] > rates[2] == rates[3] == pytest.approx(rates[2])
    assert rates[3] > 0.4 * tiny_config().lr


def test_a_state_of_before_there_were_averages_is_resumed(
    tiny_run: Path, digits: Dataset, tmp_path: Path
) -> None:
    content = torch.load(tiny_run / TRAIN_STATE, weights_only=True)
    config = json.loads(content["config"])
    assert set(config) == OLD_FIELDS, "later fields are written with another value only"
    del content["average"], content["averaged"]
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(tmp_path / TRAIN_STATE, buffer.getvalue())
    Trainer(tiny_config(), digits, tmp_path, resume=True).train()
    assert (tmp_path / CHECKPOINT).read_bytes() == (tiny_run / CHECKPOINT).read_bytes()


# Of TrainConfig when train states were first written.
OLD_FIELDS = {
    "data", "arch", "widths", "lambdas", "encoding", "clean_share", "epochs", "batch_size", "lr",
    "momentum", "weight_decay", "eps", "attack_steps", "attack_alpha", "crop", "flip",
    "train_samples", "val_every", "val_attack_samples", "seed",
}  # fmt: skip
