"""Requests as text, and reductions against plain loops."""

from __future__ import annotations

import pytest
import torch

from virb.encoders.requests import OUTPUTS, Output, Reduction, Request, reduce
from virb.errors import ViRBError


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("embedding", "embedding"),
        ("cls", "cls[-1]"),
        (" cls[ -4 : ] ", "cls[-4:]"),
        ("tokens[3, 5,7,11]", "tokens[3,5,7,11]"),
        ("tokens(norm=False)", "tokens[-1](norm=false)"),
        ("tokens[-1](norm=true).mean", "tokens[-1].mean"),
        ("block4.pool(2).flatten", "block4.pool(2).flatten"),
        ("cls[-1] + tokens[-1].gem(4.0)", "cls[-1]+tokens[-1].gem(4)"),
        ("tokens.gem(2.5)", "tokens[-1].gem(2.5)"),
        ("cls[-4:].flatten", "cls[-4:].flatten"),
        ("pyramid", "pyramid"),
        ("pyramid[0,-1](norm=false).pool(4)", "pyramid[0,-1](norm=false).pool(4)"),
    ],
)
def test_canonical_text_reads_back_as_itself(text: str, canonical: str) -> None:
    request = Request.parse(text)
    assert str(request) == canonical
    assert Request.parse(canonical) == request


def test_every_output_can_be_asked_for_by_its_name_alone() -> None:
    assert [Request.parse(name).terms[0].output.name for name in OUTPUTS] == list(OUTPUTS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("embeding", "did you mean embedding?"),
        ("block5", "did you mean block"),
        ("tokens[-1].maen", "did you mean mean?"),
        ("tokens[a]", "blocks are numbers"),
        ("tokens[1", "cannot read"),
        ("tokens[-1].gem", "gem(4)"),
        ("tokens[-1].gem(0)", "gem(4)"),
        ("tokens[-1].pool(1.5)", "pool(7)"),
        ("tokens[-1].mean(3)", "takes no argument"),
        ("tokens[-1].mean(norm=false)", "takes no argument"),
        ("tokens[-1](layernorm=false)", "norm=true or norm=false"),
        ("block4(norm=false)", "norm applies to"),
        ("embedding[3]", "no blocks"),
        ("embedding.mean", "reduces a map"),
        ("cls[-4:].mean", "try .flatten"),
        ("tokens[-1].mean.mean", "reduces a map"),
        ("queries[-1].mean", "reduces a map"),
        ("cls[-1]+tokens[-1]", "joins vectors with vectors"),
        ("cls[-1]+queries[-1]", "joins vectors with vectors"),
        ("tokens[-1].sample(8)", "not available yet"),
        ("cls[-1]+", "expected an output"),
        ("", "expected an output"),
    ],
)
def test_mistakes_are_named(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=r".*") as caught:
        Request.parse(text)
    assert says in str(caught.value)


def test_text_is_expected() -> None:
    with pytest.raises(ValueError, match="tokens"):
        Request.parse(["embedding"])  # type: ignore[arg-type]


def test_blocks_count_from_either_end() -> None:
    def blocks(text: str) -> tuple[int, ...]:
        return Request.parse(text).terms[0].output.indices(12)

    assert blocks("cls[-1]") == (11,)
    assert blocks("cls[-4:]") == (8, 9, 10, 11)
    assert blocks("tokens[3,-1,:2]") == (3, 11, 0, 1)
    assert Request.parse("pyramid").terms[0].output.indices(5) == (0, 1, 2, 3, 4)
    for wrong in ("tokens[12]", "tokens[-13]", "tokens[5:5]"):
        with pytest.raises(ValueError, match="of 12"):
            blocks(wrong)


def test_kind_and_number_of_tensors() -> None:
    assert [Request.parse(t).kind for t in ("embedding", "tokens.mean", "block1.pool(2)", "cls[-2:]", "keys")] == [
        "vector", "vector", "map", "other", "other",
    ]  # fmt: skip
    assert [Request.parse(t).several for t in ("tokens[1]", "tokens[1,2]", "tokens[-1:]", "pyramid", "pyramid[0]", "cls[-2:]")] == [
        False, True, True, True, False, False,
    ]  # fmt: skip


def test_reductions_equal_plain_loops() -> None:
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    for n, d in ((n, d) for n in range(2) for d in range(3)):
        values = x[n, d].flatten().tolist()
        assert reduce(x, Reduction("mean"))[n, d].item() == pytest.approx(sum(values) / 24)
        assert reduce(x, Reduction("max"))[n, d].item() == max(values)
        gem = (sum(max(v, 1e-6) ** 3 for v in values) / 24) ** (1 / 3)
        assert reduce(x, Reduction("gem", 3.0))[n, d].item() == pytest.approx(gem)
    pooled = reduce(x, Reduction("pool", 2))
    assert pooled.shape == (2, 3, 2, 2)
    torch.testing.assert_close(pooled[1, 2, 0, 1], x[1, 2, :2, 3:].mean())
    assert reduce(x, Reduction("flatten"))[0, 24 + 6 + 2] == x[0, 1, 1, 2]  # channel, row, column


def test_sums_of_half_precision_are_taken_in_float32() -> None:
    x = torch.full((1, 1, 64, 64), 0.1, dtype=torch.bfloat16)
    mean = reduce(x, Reduction("mean"))
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(x[0, 0, 0, 0].item(), rel=1e-6)


def test_terms_are_joined_in_the_order_written() -> None:
    request = Request.parse("tokens[-1].mean+cls[-1]")
    tokens, cls = torch.randn(2, 4, 3, 3), torch.randn(2, 4)
    raw = {Output("tokens", (-1,)): tokens, Output("cls", (-1,)): cls}
    value = request.value(raw)
    assert isinstance(value, torch.Tensor)
    torch.testing.assert_close(value, torch.cat([tokens.mean((2, 3)), cls], dim=1))


def test_maps_of_one_size_can_be_joined_and_others_cannot() -> None:
    small, large = torch.randn(2, 4, 3, 3), torch.randn(2, 5, 6, 6)
    raw = {Output("block3"): large, Output("block4"): small}
    joined = Request.parse("block4+block3.pool(3)").value(raw)
    assert isinstance(joined, torch.Tensor)
    assert joined.shape == (2, 9, 3, 3)
    with pytest.raises(ViRBError, match="6x6"):
        Request.parse("block4+block3").value(raw)


def test_several_maps_are_reduced_each() -> None:
    maps = (torch.randn(2, 4, 3, 3), torch.randn(2, 4, 5, 5))
    value = Request.parse("tokens[0,1].mean").value({Output("tokens", (0, 1)): maps})
    assert isinstance(value, tuple)
    torch.testing.assert_close(value[1], maps[1].mean((2, 3)))
