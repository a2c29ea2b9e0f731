"""The pixels encoder against block means."""

from __future__ import annotations

import pytest
import torch

from virb.encoders.load import load_encoder
from virb.errors import UserError


def test_raster_of_block_means() -> None:
    encoder = load_encoder({"arch": "pixels", "args": {"side": 4}, "input": {"size": 32}})
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    images = encoder.prepare(pixels)
    found = encoder(images, ("embedding", "tokens[-1]", "pyramid"))
    assert found["tokens[-1]"].shape == (2, 3, 4, 4)
    assert found["tokens[-1]"][1, 2, 3, 0].item() == pytest.approx(images[1, 2, 24:, :8].mean().item(), abs=1e-6)
    assert torch.equal(found["embedding"], found["tokens[-1]"].flatten(1))
    assert torch.equal(found["pyramid"][0], found["tokens[-1]"])
    assert (encoder.spec.embed_dim, encoder.spec.n_params, encoder.spec.stages[0].stride) == (48, 0, 8)


def test_default_raster_and_images_that_are_smaller() -> None:
    encoder = load_encoder({"arch": "pixels", "weights": "random"})
    assert encoder.spec.embed_dim == 16 * 16 * 3
    images = torch.randn(1, 3, 8, 8)
    raster = encoder(images, ("tokens",))["tokens[-1]"]
    assert torch.equal(raster, images.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("side", [0, -1, 2.5, "16", True])
def test_a_senseless_side_is_refused(side: object) -> None:
    with pytest.raises(UserError, match="side is"):
        load_encoder({"arch": "pixels", "args": {"side": side}})
