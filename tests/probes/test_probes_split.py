"""Splits: where positions are kept, and whose samples they are."""

from __future__ import annotations

import torch
from torch import Tensor

from virb.probes.split import Split, join

META = torch.device("meta")  # a device that only keeps book of shapes and of what is where


class There:
    """Features on another device; remembers where it was asked from."""

    def __init__(self) -> None:
        self.shape, self.index_device, self.asked = (3,), META, []

    def __len__(self) -> int:
        return 10

    def set_epoch(self, epoch: int) -> None: ...

    def gather(self, samples: Tensor) -> Tensor:
        self.asked.append(samples.device)
        return torch.empty(len(samples), 3, device=META)

    def sample(self, index: int) -> list[Tensor]:
        raise NotImplementedError


class Here(There):
    def __init__(self) -> None:
        super().__init__()
        del self.index_device

    def gather(self, samples: Tensor) -> Tensor:
        self.asked.append(samples.device)
        return samples[:, None].float().expand(-1, 3)


def test_positions_are_kept_where_the_features_are() -> None:
    features = There()
    split = Split("fit", ((features, torch.arange(10).flip(0)),), torch.zeros(10, dtype=torch.int64, device=META))
    chunks = list(split.chunks(4))
    assert [(len(chunk), chunk.device) for chunk in chunks] == [(4, META), (4, META), (2, META)]
    assert split.features(chunks[0]).shape == (4, 3)
    assert split.features(torch.arange(2)).shape == (2, 3)  # from the host they are sent
    assert features.asked == [META, META]


def test_other_features_are_asked_from_the_host() -> None:
    split = Split("fit", ((Here(), torch.tensor([7, 5, 3])),), torch.arange(3))
    assert split.index_device == torch.device("cpu")
    assert split.features(torch.tensor([2, 0])).tolist() == [[3.0] * 3, [7.0] * 3]
    both = join(split, Split("select", ((Here(), torch.tensor([1, 2])),), torch.arange(2)))
    assert both.index_device == torch.device("cpu")
    assert both.features(torch.tensor([4, 1, 3])).tolist() == [[2.0] * 3, [5.0] * 3, [1.0] * 3]
