"""Augmentation on whole batches of tensors against torchvision's transforms in a DataLoader.

    python -m benchmarks.data_speed [--json]

Both draw shuffled batches of 32 x 32 colour images from memory, shift them by up to 4 pixels,
mirror half and normalise, on one thread in one process. Ours end as the channels-last floats
that training takes; the DataLoader's end as it makes them, contiguous float32. The pixels are
random: no step takes longer for one picture than for another.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/...`

from benchmarks.side_by_side import Goal, Result, Work, arguments, measure, show
from testbed.augmentation import Augmentation, augment, normalise
from testbed.data import Images

BATCH_SIZE = 256
OUR_IMAGES = 32_768
LOADER_IMAGES = 2_048  # both then take some tenths of a second
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
GOAL = Goal(at_least=10)


class PictureDataset(Dataset[tuple[Tensor, int]]):
    """What torchvision.datasets.CIFAR10 does with an image, for images that are in memory."""

    def __init__(self, images: Images) -> None:
        self.pixels = images.pixels.permute(0, 2, 3, 1).numpy()
        self.labels = images.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def random_images(n: int, generator: torch.Generator) -> Images:
    pixels = torch.randint(256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (n,), generator=generator)
    return Images(pixels.permute(0, 3, 1, 2), labels)


def tensor_epoch(images: Images, dtype: torch.dtype, generator: torch.Generator) -> Work:
    augmentation = Augmentation(crop=4, flip=True)

    def epoch() -> int:
        for chosen in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
            batch = images.select(chosen)
            pixels = augment(batch.pixels, augmentation, generator)
            normalise(pixels, MEAN, STD, dtype, torch.channels_last)
        return len(images)

    return epoch


def loader_epoch(images: Images) -> Work:
    loader = DataLoader(PictureDataset(images), BATCH_SIZE, shuffle=True, num_workers=0)

    def epoch() -> int:
        return sum(len(labels) for _, labels in loader)

    return epoch


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = random_images(OUR_IMAGES, generator)
    speeds = measure(
        {
            "bfloat16": tensor_epoch(images, torch.bfloat16, generator),
            "float32": tensor_epoch(images, torch.float32, generator),
            "DataLoader": loader_epoch(random_images(LOADER_IMAGES, generator)),
        }
    )
    ratios = {
        f"{ours}_over_DataLoader": speeds[ours].over(speeds["DataLoader"])
        for ours in ("bfloat16", "float32")
    }
    notes = {f"{name}, images": str(speed) for name, speed in speeds.items()}
    show(Result("data_speed", ratios, dict.fromkeys(ratios, GOAL), notes), options.json)


if __name__ == "__main__":
    main()
