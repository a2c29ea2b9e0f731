"""Products against float64, through whichever library this processor gets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from virb.functional import products
from virb.functional.products import linear, linears, onednn_linear


def close(found: torch.Tensor, expected: torch.Tensor, terms: int) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6 * terms)


@pytest.mark.parametrize("size", [(7, 5, 3), (256, 384, 100), (1, 2048, 1000), (37, 129, 1000)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_float64(size: tuple[int, int, int], with_bias: bool) -> None:
    n, d, m = size
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((n, d), (m, d), (m,)))
    expected = x.double() @ weight.double().t() + (bias.double() if with_bias else 0.0)
    close(linear(x, weight, bias if with_bias else None), expected, d)


def test_views_of_any_layout() -> None:
    generator = torch.Generator().manual_seed(1)
    grad, x = torch.randn(256, 3, 100, generator=generator), torch.randn(256, 384, generator=generator)
    weight = torch.randn(100, 384, generator=generator)
    for k in range(3):  # as in a step back through a stack: sides are transposed, or slices
        close(linear(grad[:, k].t(), x.t()), grad[:, k].double().t() @ x.double(), 256)
        close(linear(grad[:, k], weight.t()), grad[:, k].double() @ weight.double(), 100)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("size", [(9, 5, 4), (256, 128, 64)])
def test_several_at_once(heads: int, size: tuple[int, int, int]) -> None:
    n, d, m = size
    generator = torch.Generator().manual_seed(2)
    x, weight, bias = (torch.randn(heads, *shape, generator=generator) for shape in ((n, d), (m, d), (m,)))
    expected = torch.einsum("knd,kmd->knm", x.double(), weight.double())
    close(linears(x, weight), expected, d)
    close(linears(x, weight, bias), expected + bias[:, None].double(), d)


def test_small_and_other_products_are_left_to_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("too small, too thin or not float32")

    monkeypatch.setattr(products, "onednn_linear", lambda: refuse)
    linear(torch.ones(16, 12), torch.ones(44, 12))
    linear(torch.ones(1, 4096), torch.ones(1024, 4096))
    linear(torch.ones(256, 384, dtype=torch.float64), torch.ones(100, 384, dtype=torch.float64))
    with pytest.raises(AssertionError):
        linear(torch.ones(256, 384), torch.ones(100, 384))


def test_where_there_is_no_such_kernel_blas_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_linear", lambda: None)
    x, weight = torch.randn(256, 384), torch.randn(100, 384)
    assert torch.equal(linear(x, weight), x @ weight.t())
    assert torch.equal(linears(x[None].expand(2, -1, -1), weight[None].expand(2, -1, -1))[0], torch.bmm(x[None], weight.t()[None])[0])


def _other_arguments(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight.t()


def _other_sense(x: torch.Tensor, weight: torch.Tensor, *_: object) -> torch.Tensor:
    return 2 * (x @ weight.t())


def _gone(*_: object) -> torch.Tensor:
    raise RuntimeError("mkldnn::_linear_pointwise() expected at most 5 argument(s)")


def _as_now(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, attr: str, scalars: list, algorithm: str) -> torch.Tensor:
    return torch.nn.functional.linear(x, weight, bias)


@pytest.mark.parametrize(("product", "is_used"), [(_other_arguments, False), (_other_sense, False), (_gone, False), (_as_now, True)])
def test_a_torch_with_another_product_of_that_name(monkeypatch: pytest.MonkeyPatch, product: object, is_used: bool) -> None:
    onednn_linear.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(products.torch, "ops", SimpleNamespace(mkldnn=SimpleNamespace(_linear_pointwise=product)))
    try:
        assert onednn_linear() is (product if is_used else None)
        x, weight = torch.randn(256, 384), torch.randn(100, 384)
        close(linear(x, weight), x.double() @ weight.double().t(), 384)
    finally:
        onednn_linear.cache_clear()


def test_the_choice_depends_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    onednn_linear.cache_clear()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    try:
        assert onednn_linear() is None
    finally:
        onednn_linear.cache_clear()
