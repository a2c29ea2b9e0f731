"""The nearest valid word, in every message."""

from __future__ import annotations

import pytest

from virb.errors import did_you_mean, nearest


@pytest.mark.parametrize(
    ("word", "valid", "found"),
    [
        ("digitz", ["shapes", "digits"], "digits"),
        ("CIFAR100", ["CIFAR-10", "CIFAR-100"], "CIFAR-100"),
        ("LINEAR", {"mlp": 1, "linear": 2}, "linear"),  # case does not count
        ("steplr", ("StepLR", "Poly"), "StepLR"),
        ("qqqq", ["digits"], None),
        ("x", [], None),
    ],
)
def test_nearest(word, valid, found):
    assert nearest(word, valid) == found
    assert did_you_mean(word, valid) == (f"; did you mean {found}?" if found else "")


def test_every_room_forgives_case():
    """One helper for all: difflib alone would find nothing in these."""
    from virb.data.datasets import load_dataset
    from virb.encoders.requests import Request
    from virb.metrics.base import find_metric
    from virb.probes.losses import find_loss
    from virb.tasks.base import import_attribute

    for call, word, meant in (
        (load_dataset, "DIGITS", "digits"),
        (Request.parse, "EMBEDDING", "embedding"),
        (find_metric, "TOP1", "top1"),
        (find_loss, "CROSS_ENTROPY", "cross_entropy"),
        (lambda word: import_attribute(word, "task"), "virb.tasks.base:TASK", "Task"),
    ):
        with pytest.raises(Exception, match=rf"; did you mean {meant}\?"):
            call(word)
