"""A pretraining loop written as the original's, for ``benchmarks/pretrain.py`` to compare with: its transforms (torchvision on Pillow), its
loader, loss, clipping tensor by tensor, AdamW and moving average. The networks are ours."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms

from virb.data.images import ImageList
from virb.pretraining.augment import MEAN, STD
from virb.pretraining.data import open_images
from virb.pretraining.methods import CropRecipe, Method

WARM = 3  # steps before the clock starts


class Blur:
    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() > self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class Solarize:
    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if random.random() < self.p else image


def plain_transform(recipe: CropRecipe) -> Callable[[Image.Image], torch.Tensor]:
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [
        transforms.RandomResizedCrop(recipe.size, scale=recipe.scale, interpolation=bicubic),
        transforms.RandomHorizontalFlip(recipe.flip),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=recipe.jitter),
        transforms.RandomGrayscale(recipe.grayscale),
        *([Blur(recipe.blur)] if recipe.blur else []),
        *([Solarize(recipe.solarize)] if recipe.solarize else []),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return transforms.Compose(steps)


class PlainData(torch.utils.data.Dataset):
    def __init__(self, images: ImageList, method: Method) -> None:
        self.images, self.transforms = images, [plain_transform(recipe) for recipe in method.views().views]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        image = self.images.read(i)
        return [transform(image) for transform in self.transforms]


def forever(loader: Any) -> Iterator[list[torch.Tensor]]:
    while True:
        yield from loader


def plain_loss(student: torch.Tensor, teacher: torch.Tensor, center: torch.Tensor, n_views: int) -> torch.Tensor:
    targets = torch.softmax((teacher - center) / 0.04, dim=-1).detach().chunk(2)
    logits = (student / 0.1).chunk(n_views)
    terms = [
        torch.sum(-target * torch.log_softmax(logit, dim=-1), dim=-1).mean()
        for g, target in enumerate(targets)
        for v, logit in enumerate(logits)
        if v != g
    ]
    return torch.stack(terms).mean()


def plain_training(method: Method, options: Any, steps: int, device: str) -> dict[str, float]:
    """The original's loop: its transforms, loader, loss, clipping tensor by tensor, AdamW and moving average."""
    data = PlainData(open_images(options.data_path), method)
    loader = torch.utils.data.DataLoader(
        data, options.batch_size_per_gpu, shuffle=True, num_workers=options.num_workers, pin_memory=device == "cuda", drop_last=True
    )
    networks = method.build()
    student, teacher = networks.student.to(device), networks.teacher.to(device)
    decayed = [p for p in student.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in student.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.04}, {"params": others, "weight_decay": 0.0}], lr=1e-4)
    scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
    center = torch.zeros(1, options.out_dim, device=device)
    batches = forever(loader)

    def step() -> float:
        nonlocal center
        began = time.perf_counter()
        crops = [crop.to(device, non_blocking=True) for crop in next(batches)]
        waited = time.perf_counter() - began
        with torch.autocast(device, dtype=torch.float16, enabled=device == "cuda"):
            seen, target = torch.cat(list(student(tuple(crops)))), torch.cat(list(teacher(tuple(crops[:2]))))
            loss = plain_loss(seen, target, center, len(crops))
        if not math.isfinite(loss.item()):
            raise SystemExit("the plain loop's loss is not finite")
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        for parameter in student.parameters():
            if parameter.grad is not None:
                factor = 3.0 / (parameter.grad.norm(2) + 1e-6)
                if factor < 1:
                    parameter.grad.mul_(factor)
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            center = center * 0.9 + target.float().mean(0, keepdim=True) * 0.1
            for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.mul_(0.996).add_(0.004 * theirs)
        return waited

    found = clocked(step, steps, device)
    batches.close()
    return found


def clocked(step: Callable[[], float], steps: int, device: str) -> dict[str, float]:
    """Wall seconds per step and share of waiting; the processor's time and memory are read at the end of the process."""
    for _ in range(WARM):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        waited += step()
    if device == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    return {"seconds": took / steps, "waited": waited / took}
