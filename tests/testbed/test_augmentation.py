import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2.functional import resized_crop

from testbed.augmentation import Augmentation, _random_boxes, augment, normalise


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pixels(*shape: int) -> Tensor:
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=seeded(9))


def one_image_at_a_time(pixels: Tensor, augmentation: Augmentation, seed: int) -> Tensor:
    """The second implementation: loops and slices, from the same draws in the same order."""
    generator, n, padding = seeded(seed), len(pixels), augmentation.crop
    images = pixels.numpy()
    if augmentation.flip:
        mirrored = torch.randint(2, (n,), generator=generator).tolist()
        images = np.stack(
            [i[:, :, ::-1] if m else i for i, m in zip(images, mirrored, strict=True)]
        )
    if padding:
        _, _, height, width = images.shape
        down = torch.randint(2 * padding + 1, (n,), generator=generator).tolist()
        right = torch.randint(2 * padding + 1, (n,), generator=generator).tolist()
        padded = [np.pad(image, ((0, 0), (padding,) * 2, (padding,) * 2)) for image in images]
        images = np.stack(
            [
                image[:, top : top + height, left : left + width]
                for image, top, left in zip(padded, down, right, strict=True)
            ]
        )
    return torch.from_numpy(images)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 5, 9), (4, 1, 3)])
@pytest.mark.parametrize(
    "augmentation", [Augmentation(4, True), Augmentation(1, False), Augmentation(0, True)]
)
def test_batches_match_images_augmented_one_by_one(
    layout: torch.memory_format, shape: tuple[int, int, int], augmentation: Augmentation
) -> None:
    pixels = random_pixels(65, *shape).to(memory_format=layout)
    before = pixels.clone()
    augmented = augment(pixels, augmentation, seeded(3))
    assert torch.equal(augmented, one_image_at_a_time(pixels, augmentation, 3))
    assert torch.equal(pixels, before)


def test_a_part_of_a_batch_is_augmented_as_if_it_stood_alone() -> None:
    pixels = random_pixels(20, 3, 8, 8)
    part = augment(pixels[7:12], Augmentation(2, True), seeded())
    assert torch.equal(part, augment(pixels[7:12].clone(), Augmentation(2, True), seeded()))


def test_every_shift_and_both_directions_are_equally_likely() -> None:
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[0, 0, 3, 2] = 255  # its mirror image lies at column 5, 3 further: shifts stay apart
    n = 18_000
    augmented = augment(image.expand(n, 1, 8, 8), Augmentation(1, True), seeded())
    positions = augmented.flatten(1).int().argmax(dim=1)
    seen, counts = positions.unique(return_counts=True)
    assert len(seen) == 2 * 3 * 3
    assert ((counts - n / 18).abs() < 5 * (n / 18) ** 0.5).all()


class TestResizedCrops:
    @pytest.mark.parametrize(("height", "width"), [(40, 40), (30, 50)])
    def test_boxes_are_distributed_as_those_of_torchvision(self, height: int, width: int) -> None:
        n = 6000
        left, top, right, bottom = _random_boxes(n, height, width, seeded())
        ours = torch.stack([top, left, bottom - top, right - left]).double()
        torch.manual_seed(0)
        image = torch.empty(1, height, width)
        scale, ratio = [0.08, 1.0], [3 / 4, 4 / 3]
        draw = transforms.RandomResizedCrop.get_params
        theirs = torch.tensor([draw(image, scale, ratio) for _ in range(n)]).double().T
        error = ((ours.var(dim=1) + theirs.var(dim=1)) / n).sqrt()
        assert ((ours.mean(dim=1) - theirs.mean(dim=1)).abs() < 4 * error).all()
        assert ((ours.std(dim=1) / theirs.std(dim=1) - 1).abs() < 0.06).all()
        assert (left >= 0).all() and (right <= width).all()
        assert (top >= 0).all() and (bottom <= height).all()

    def test_a_crop_is_what_torchvision_makes_of_its_box(self) -> None:
        coarse = torch.randint(0, 256, (70, 3, 5, 5), generator=seeded(1)).float()
        smooth = F.interpolate(coarse, (36, 44), mode="bilinear").to(torch.uint8)
        crops = augment(smooth, Augmentation(0, False, resized_crop=16), seeded(2))
        assert crops.shape == (70, 3, 16, 16) and crops.dtype == torch.uint8
        assert crops.is_contiguous(memory_format=torch.channels_last)
        for image, crop, *box in zip(
            smooth, crops, *_random_boxes(70, 36, 44, seeded(2)), strict=True
        ):
            left, top, right, bottom = (int(edge) for edge in box)
            expected = resized_crop(
                image, top, left, bottom - top, right - left, [16, 16], antialias=False
            )
            inside = (crop.int() - expected.int())[:, 2:-2, 2:-2]  # it sees beyond its box's edge
            assert inside.abs().max() <= 1

    def test_crops_are_mirrored_and_drawn_anew(self) -> None:
        pixels, augmentation = random_pixels(40, 3, 9, 9), Augmentation(0, True, resized_crop=8)
        generator = seeded(1)
        first, second = (augment(pixels, augmentation, generator) for _ in range(2))
        assert torch.equal(first, augment(pixels, augmentation, seeded(1)))
        assert not torch.equal(first, second)
        unmirrored = augment(pixels, Augmentation(0, False, resized_crop=8), seeded(1))
        same = (first == unmirrored).flatten(1).all(dim=1)
        turned = (first == unmirrored.flip(-1)).flatten(1).all(dim=1)
        assert (same | turned).all() and 10 < same.sum() < 30


def test_no_augmentation_gives_the_images_back() -> None:
    pixels = random_pixels(4, 3, 8, 8)
    assert augment(pixels, Augmentation(0, False), seeded()) is pixels


def test_the_generator_decides_and_moves_on() -> None:
    pixels, generator = random_pixels(64, 3, 8, 8), seeded(1)
    first, second = (augment(pixels, Augmentation(2, True), generator) for _ in range(2))
    assert torch.equal(first, augment(pixels, Augmentation(2, True), seeded(1)))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalise_matches_torchvision(dtype: torch.dtype, layout: torch.memory_format) -> None:
    mean, std = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    pixels = random_pixels(5, 3, 6, 7)
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    expected = torch.stack([reference(picture) for picture in pictures])
    values = normalise(pixels, mean, std, dtype, layout)
    assert values.dtype == dtype
    assert values.is_contiguous(memory_format=layout)
    spacing = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(values.float(), expected, rtol=spacing, atol=1e-6)


@pytest.mark.parametrize(
    "pixels", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 3, dtype=torch.uint8)]
)
def test_normalise_refuses_what_is_no_batch_of_images(pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Expected uint8 images of shape \(batch, 3, height"):
        normalise(pixels, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_images() -> None:
    pixels = random_pixels(64, 3, 32, 32)
    on_cpu = augment(pixels, Augmentation(4, True), seeded())
    on_gpu = augment(pixels.cuda(), Augmentation(4, True), seeded())
    assert torch.equal(on_cpu, on_gpu.cpu())
    statistics = (0.5,) * 3, (0.2,) * 3
    torch.testing.assert_close(normalise(on_cpu, *statistics), normalise(on_gpu, *statistics).cpu())
