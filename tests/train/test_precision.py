"""Precision and compile settings: what `auto` becomes, and what bf16 keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from oat_edge.config import TrainConfig
from oat_edge.data import Dataset
from oat_edge.errors import DependencyError, InputError
from oat_edge.nn.fold import fold, refold
from oat_edge.train.loop import Interrupted, Trainer
from oat_edge.train.precision import resolve_amp, resolve_compile
from oat_edge.train.step import OATSStep
from tests.conftest import make_network, tiny_config


@pytest.mark.parametrize("resolve", [resolve_amp, resolve_compile])
def test_auto_is_definite_and_a_definite_setting_stays(resolve) -> None:
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            continue
        resolved = resolve("auto", device)
        assert resolved != "auto"
        assert resolve(resolved, device) == resolved
    assert resolve("off", "cpu") == "off"
    with pytest.raises(InputError, match="is 'fast': expected auto, "):
        resolve("fast", "cpu")


@pytest.mark.parametrize("multiplies", [{"_is_avx512_bf16_supported"}, {"_is_amx_tile_supported"}])
def test_a_cpu_takes_bf16_if_it_multiplies_it(
    multiplies: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for name in names:
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in multiplies, raising=False)
    assert resolve_amp("auto", "cpu") == "bf16"
    for name in names:
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert resolve_amp("auto", "cpu") == "off"
    for name in names:  # not public: a torch may lack them
        monkeypatch.delattr(torch.cpu, name)
    assert resolve_amp("auto", "cpu") == "off"


def test_the_cpu_is_not_compiled_for_unless_asked() -> None:
    assert resolve_compile("auto", "cpu") == "off"


def test_where_there_is_no_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    torch.compiler.reset()
    with monkeypatch.context() as without:
        without.setattr(config.cpp, "cxx", ("/no/such/compiler",))
        without.setattr(config, "force_disable_caches", True)
        with pytest.raises(DependencyError, match="does not work here") as refused:
            resolve_compile("on", "cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("arch", ["resnet8", "mobilenet-v2"])
def test_a_bf16_fold_is_the_network_up_to_rounding(arch: str) -> None:
    network = make_network(arch, (3, 8, 8)).to(memory_format=torch.channels_last)
    exact, half = fold(network, 0.5), fold(network, 0.5, compute_dtype=torch.bfloat16)
    x = torch.rand(6, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    lam = torch.tensor([0, 0.1, 0.2, 0.3, 0.4, 1])
    expected, logits = exact(x, lam), half(x, lam)
    assert logits.dtype == torch.float32
    # bfloat16 has 8 bits; a dozen layers' roundings add up to a few of the last one.
    assert (logits - expected).norm() < 0.05 * expected.norm()
    assert not torch.equal(logits, expected), "computed in float32"
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    refold(half, network, 0.5)
    refold(exact, network, 0.5)
    expected = exact(x, lam)
    assert (half(x, lam) - expected).norm() < 0.05 * expected.norm()


def test_a_bf16_step_keeps_parameters_statistics_and_gradients_in_float32() -> None:
    steps = {}
    for dtype in (None, torch.bfloat16):
        network = make_network().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        step = OATSStep(network, optimizer, eps=8 / 255, attack_steps=2, compute_dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(24, 1, 8, 8, generator=generator)
        labels = torch.randint(0, 10, (24,), generator=generator)
        loss = step(images, labels, torch.arange(24) % 6, generator)
        tensors = [*network.parameters(), *network.buffers()]
        assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}
        momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
        assert {m.dtype for m in momenta} == {torch.float32}
        steps[dtype] = loss, torch.cat([m.flatten() for m in momenta])
    (loss, gradient), (rounded_loss, rounded) = steps.values()
    torch.testing.assert_close(rounded_loss, loss, rtol=0.02, atol=0)
    assert F.cosine_similarity(gradient, rounded, dim=0) > 0.97
    assert not torch.equal(gradient, rounded), "computed in float32"


def test_a_bf16_run_that_was_stopped_ends_as_one_that_was_not(
    tmp_path: Path, digits: Dataset
) -> None:
    config = tiny_config(amp="bf16", epochs=1, widths=(1.0,))
    whole = Trainer(config, digits, tmp_path / "whole")
    whole.train()
    with pytest.raises(Interrupted):
        Trainer(config, digits, tmp_path / "cut").train(should_stop=lambda: True)
    resumed = Trainer(config, digits, tmp_path / "cut", resume=True)
    resumed.train()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    record = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert TrainConfig.from_json(record["train"]) == config


@pytest.mark.slow
def test_a_compiled_attack_attacks_the_same_network() -> None:
    network = make_network().to(memory_format=torch.channels_last)
    plain, compiled = fold(network, 1.0), fold(network, 1.0)
    compiled.compile_run()
    x = torch.rand(6, 1, 8, 8).requires_grad_()
    lam = torch.tensor([0, 0.1, 0.2, 0.3, 0.4, 1])
    for factor in (1.0, 1.1):  # a refold must reach the compiled network
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(factor)
        refold(plain, network, 1.0)
        refold(compiled, network, 1.0)
        logits, expected = compiled.at(lam)(x), plain.at(lam)(x)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        ours, theirs = (torch.autograd.grad(out.sum(), x)[0] for out in (logits, expected))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
