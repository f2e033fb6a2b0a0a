import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oat_edge.data.augment import augment
from oat_edge.errors import InputError

shapes = st.tuples(st.integers(1, 6), st.sampled_from([1, 3]), st.integers(1, 7), st.integers(1, 7))


def unique_pixels(shape):
    """Non-zero values that all differ, so that a window is recognised by its content."""
    return torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.float32).reshape(shape)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def windows(image, crop):
    """All shifted windows of the padded (C, H, W) image, and their mirrors."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (crop, crop), (crop, crop)))
    plain = [
        padded[:, y : y + height, x : x + width]
        for y in range(2 * crop + 1)
        for x in range(2 * crop + 1)
    ]
    return plain, [window[:, :, ::-1] for window in plain]


def contains(candidates, image):
    return any(np.array_equal(candidate, image) for candidate in candidates)


@given(shapes, st.integers(0, 3), st.booleans(), st.integers(0, 2**32))
def test_each_output_is_a_window_of_the_padded_input(shape, crop, flip, seed):
    images = unique_pixels(shape)
    result = augment(images, crop=crop, flip=flip, generator=generator(seed))
    assert result.shape == images.shape and result.dtype == images.dtype
    for before, after in zip(images.numpy(), result.numpy(), strict=True):
        plain, mirrored = windows(before, crop)
        assert contains([*plain, *mirrored] if flip else plain, after)


@given(shapes, st.integers(0, 2**32))
def test_flip_alone_is_identity_or_the_exact_mirror(shape, seed):
    images = unique_pixels(shape)
    result = augment(images, crop=0, flip=True, generator=generator(seed))
    for before, after in zip(images, result, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(-1))


@given(shapes, st.integers(0, 2**32))
def test_off_is_identity_and_draws_nothing(shape, seed):
    images, rng = unique_pixels(shape), generator(seed)
    assert torch.equal(augment(images, crop=0, flip=False, generator=rng), images)
    assert torch.equal(rng.get_state(), generator(seed).get_state())


@given(shapes, st.integers(1, 3), st.integers(0, 2**32))
def test_one_seed_one_result(shape, crop, seed):
    images = unique_pixels(shape)
    one, two = (augment(images, crop=crop, flip=True, generator=generator(seed)) for _ in range(2))
    assert torch.equal(one, two)


def test_another_seed_and_the_next_call_differ():
    images, rng = unique_pixels((32, 1, 8, 8)), generator(0)
    results = [augment(images, crop=2, flip=True, generator=rng) for _ in range(3)]
    results.append(augment(images, crop=2, flip=True, generator=generator(1)))
    assert len({result.numpy().tobytes() for result in results}) == 4


def test_samples_are_drawn_apart_and_evenly():
    num, crop = 9000, 1
    images = unique_pixels((1, 1, 3, 3)).expand(num, 1, 3, 3)
    result = augment(images, crop=crop, flip=True, generator=generator(0)).numpy()
    plain, mirrored = windows(images[0].numpy(), crop)
    # 3 x 3 shifts, mirrored or not: 18 results, 500 of each expected, sigma 22.
    keys = [candidate.tobytes() for candidate in (*plain, *mirrored)]
    assert len(set(keys)) == 18
    counts = dict.fromkeys(keys, 0)
    for image in result:
        counts[image.tobytes()] += 1
    assert all(abs(count - 500) < 5 * 22 for count in counts.values())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_input_is_left_alone_whatever_its_type(dtype):
    images = torch.arange(96).reshape(2, 3, 4, 4).to(dtype)
    before = images.clone()
    result = augment(images, crop=2, flip=True, generator=generator(3))
    assert result.dtype == dtype and torch.equal(images, before)


def test_arguments_are_checked():
    with pytest.raises(InputError, match=r"\(3, 4, 4\)"):
        augment(torch.zeros(3, 4, 4), crop=1, flip=False, generator=generator(0))
    with pytest.raises(InputError, match="crop is -1"):
        augment(torch.zeros(1, 3, 4, 4), crop=-1, flip=False, generator=generator(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.gpu
def test_gpu_gives_the_result_of_the_cpu():
    images = unique_pixels((8, 3, 6, 6))
    cpu = augment(images, crop=2, flip=True, generator=generator(5))
    gpu = augment(images.cuda(), crop=2, flip=True, generator=generator(5))
    assert gpu.is_cuda and torch.equal(gpu.cpu(), cpu)
