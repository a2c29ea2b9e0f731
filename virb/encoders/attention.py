"""Looking into attention layers that are not ours: what reaches ``scaled_dot_product_attention`` in chosen layers.

There the queries and keys have whatever their family gives them (norms, biases, rotations), so one place serves all families. Of the
attention only the [CLS] row is computed, next to the layer's own fused kernel: memory stays linear in the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PARTS = ("queries", "keys", "values")
INSIDE = ("attention", *PARTS)


class AttentionWatch(TorchFunctionMode):
    """A context. ``wanted``: layer number -> which of ``INSIDE`` to keep of it; ``layers``: number -> the attention module, which has to
    call ``scaled_dot_product_attention`` once. Afterwards ``found`` has, by number and name,

    attention               B x heads x tokens: the row of the first token, softmaxed
    queries, keys, values   B x heads x tokens x d, as they enter the product
    """

    def __init__(self, layers: Mapping[int, nn.Module], wanted: Mapping[int, Collection[str]]) -> None:
        super().__init__()
        self.found: dict[tuple[int, str], Tensor] = {}
        self._layers = {number: layers[number] for number in wanted}
        self._wanted = wanted
        self._inside: int | None = None
        self._hooks = ExitStack()

    def __enter__(self) -> AttentionWatch:
        for number, layer in self._layers.items():
            self._hooks.callback(layer.register_forward_pre_hook(partial(self._arrive, number)).remove)
            self._hooks.callback(layer.register_forward_hook(self._leave, always_call=True).remove)
        super().__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        self._hooks.close()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self._inside is not None and func is F.scaled_dot_product_attention:
            self._keep(self._inside, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _arrive(self, number: int, *_: Any) -> None:
        self._inside = number

    def _leave(self, *_: Any) -> None:
        self._inside = None

    def _keep(
        self,
        number: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> None:
        for name, part in zip(PARTS, (query, key, value), strict=True):
            if name in self._wanted[number]:
                self.found[number, name] = part.clone()  # it may be a view, which would keep all three alive
        if "attention" in self._wanted[number]:
            mask = attn_mask if attn_mask is None else attn_mask[..., :1, :]
            self.found[number, "attention"] = first_row(query[:, :, :1], key, mask, scale).squeeze(2)


def first_row(query: Tensor, keys: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """B x heads x 1 x d and B x heads x N x d -> B x heads x 1 x N: the softmaxed products of one token. ``mask`` as in
    ``scaled_dot_product_attention``: added, or booleans of what takes part."""
    scores = (query @ keys.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if not mask.is_floating_point() else scores + mask
    return scores.softmax(dim=-1)
