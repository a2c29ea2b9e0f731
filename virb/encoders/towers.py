"""Vision transformers that are not ours (Hugging Face, open_clip, torch.hub), seen from outside: what their blocks give, and their norm.

Nothing is taken from a model's name: one forward on noise tells its blocks, width, prefix tokens and heads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from virb.encoders.attention import INSIDE, AttentionWatch
from virb.encoders.base import Encoder, EncoderSpec, InputSpec, Single, Stage, evenly_spaced
from virb.encoders.custom import CustomEncoder
from virb.errors import UserError, ViRBError

# Where the usual families keep their blocks and the norm after the last one, below the network or the part that holds the tower.
_INNER = ("", "model.", "vision_model.", "visual.", "trunk.", "visual.trunk.")
_BLOCKS = ("blocks", "layers", "layer", "encoder.layer", "encoder.layers", "model.layer", "transformer.resblocks")
_NORMS = ("norm", "layernorm", "post_layernorm", "ln_post", "encoder.ln")
_CLS = ("cls_token", "class_token", "class_embedding")


class NoTower(Exception):
    """The network has no blocks that all give tokens of one width."""


class _Enough(Exception):
    """Raised by a hook after the last block that is wanted."""


class TowerEncoder(Encoder):
    """``embedding`` is what the network's own forward returns (a tensor, or ``embedding`` of a dict). ``tokens[i]`` and ``cls[i]`` are the
    outputs of block i, through the network's final norm unless ``norm=false``. ``attention``, ``queries``, ``keys``, ``values`` where the
    blocks use torch's ``scaled_dot_product_attention``; ``attention`` of the last block also by DINO's ``get_last_selfattention``."""

    family = "tower"
    network: Any

    def __init__(self, network: nn.Module, label: str, arguments: Mapping[str, Any], input_spec: InputSpec) -> None:
        self._where = _find_blocks(network)
        self._tokens_first = self._in_place = False
        draft = EncoderSpec(
            name="",
            embed_dim=0,
            patch_size=_patch_size(network),
            stages=(),
            n_heads=None,
            input=input_spec,
            n_params=0,
            encoder_id="",
            source="",
            family=self.family,
            format=self.format,
            outputs=(),
            architecture=label,
            depth=len(network.get_submodule(self._where[0])),  # type: ignore[arg-type]
        )
        super().__init__(network, draft, arguments)
        self._learn_spec()

    def _learn_spec(self) -> None:
        from dataclasses import replace

        spec = self.spec
        images = _noise(self.network, spec.input.size)
        depth, patch = spec.depth, spec.patch_size
        if patch is None:
            raise NoTower("no patch embedding")
        try:
            with torch.inference_mode(False):  # which keeps no versions
                embedding, tokens, watch = self._run(images, range(depth), {depth - 1: INSIDE}, with_embedding=True)
                self._in_place = any(x._version != 0 for x in tokens.values())
        except Exception as error:  # not our code: whatever it raises, it is no tower on these images
            raise NoTower(f"{type(error).__name__}: {error}") from error
        if tokens and all(x.shape[0] != len(images) == x.shape[1] for x in tokens.values()):
            self._tokens_first, tokens = True, {i: x.transpose(0, 1) for i, x in tokens.items()}
        shapes = {tuple(x.shape) for x in tokens.values()}
        if len(shapes) != 1 or len(tokens) != depth or embedding is None or embedding.ndim != 2:
            raise NoTower("its blocks do not all give tokens of one shape")
        (_, count, width), grid = shapes.pop(), self._grid(images)
        self._prefix = count - grid[0] * grid[1]
        if self._prefix < 0:
            raise NoTower("fewer tokens than patches")
        has_cls = self._prefix > 0 and any(name.rpartition(".")[2] in _CLS for name, _ in self.network.named_parameters())
        inside = [name for name in INSIDE if (depth - 1, name) in watch]
        self._own_attention = not inside and hasattr(self.network, "get_last_selfattention")
        heads = watch[depth - 1, "queries"].shape[1] if inside else None
        if self._own_attention:
            heads = self._last_attention(images).shape[1]
        shown = ["attention"] if has_cls and (inside or self._own_attention) else []
        self.spec = replace(
            spec,
            embed_dim=embedding.shape[1],
            stages=tuple(Stage(f"tokens[{i}]", width, patch) for i in evenly_spaced(depth)),
            n_heads=heads,
            outputs=(
                "embedding",
                *(("cls",) if has_cls else ()),
                "tokens",
                "pyramid",
                *shown,
                *(name for name in inside if name != "attention"),
            ),
        )

    def _outputs(self, images: Tensor, wanted: Collection[Single]) -> dict[Single, Tensor]:
        blocks = sorted({s.block for s in wanted if s.block is not None and s.name in ("tokens", "cls")})
        inside: dict[int, list[str]] = {}
        found: dict[Single, Tensor] = {}
        for single in wanted:
            if single.name == "attention" and self._own_attention:
                if single.block != self.spec.depth - 1:
                    raise ViRBError(f"{self.spec.name}: {self.spec.architecture} gives the attention of its last block only")
                found[single] = self._last_attention(images)
            elif single.name in INSIDE and single.block is not None:
                inside.setdefault(single.block, []).append(single.name)
        with_embedding = any(single.name == "embedding" for single in wanted)
        embedding, tokens, watch = self._run(images, blocks, inside, with_embedding)
        for single in wanted:
            if single in found:
                continue
            if single.name == "embedding":
                assert embedding is not None
                found[single] = embedding
            elif single.name in INSIDE:
                assert single.block is not None
                found[single] = (
                    self._map(watch[single.block, single.name], images) if single.name == "attention" else watch[single.block, single.name]
                )
            else:
                assert single.block is not None
                found[single] = self._after(tokens[single.block], images, single)
        return found

    def _run(
        self, images: Tensor, blocks: Collection[int], inside: Mapping[int, Collection[str]], with_embedding: bool
    ) -> tuple[Tensor | None, dict[int, Tensor], dict[tuple[int, str], Tensor]]:
        """One forward, which ends with the last block that is wanted unless the embedding is."""
        layers: Any = self.network.get_submodule(self._where[0])
        last = max((*blocks, *inside), default=-1)
        tokens: dict[int, Tensor] = {}
        if last < 0 and not with_embedding:
            return None, {}, {}
        with ExitStack() as stack:
            for i in {*blocks, last} - {-1}:
                hook = _keep(tokens, i, i in blocks, copy=self._in_place, stop=i == last and not with_embedding)
                stack.callback(layers[i].register_forward_hook(hook).remove)
            watch = stack.enter_context(AttentionWatch(dict(enumerate(layers)), inside)) if inside else None
            answer: Any = None
            with suppress(_Enough):
                answer = self.network(images)
        if isinstance(answer, Mapping):
            answer = answer["embedding"]
        if self._tokens_first:
            tokens = {i: x.transpose(0, 1) for i, x in tokens.items()}
        return answer if isinstance(answer, Tensor) else None, tokens, watch.found if watch else {}

    def _after(self, x: Tensor, images: Tensor, single: Single) -> Tensor:
        norm = self.network.get_submodule(self._where[1]) if single.norm and self._where[1] else nn.Identity()
        if single.name == "cls":
            return norm(x[:, 0]) if single.norm else x[:, 0].clone()
        return self._map(norm(x[:, self._prefix :]).transpose(1, 2), images, cut=False)

    def _map(self, x: Tensor, images: Tensor, cut: bool = True) -> Tensor:
        """B x C x tokens -> B x C x h x w, without the prefix tokens."""
        x, grid = x[:, :, self._prefix :] if cut else x, self._grid(images)
        if x.shape[2] != grid[0] * grid[1]:
            raise ViRBError(
                f"{self.spec.name}: {self.spec.architecture} gives {x.shape[2]} patch tokens for a grid of {grid[0]} x {grid[1]}"
            )
        return x.unflatten(2, grid)

    def _last_attention(self, images: Tensor) -> Tensor:
        return self._map(self.network.get_last_selfattention(images)[:, :, 0], images)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        patch = self.spec.patch_size or 1
        return images.shape[2] // patch, images.shape[3] // patch


def wrap(network: nn.Module, label: str, arguments: Mapping[str, Any], spec: InputSpec) -> Encoder:
    """A tower where the network is one, else a network that is asked for its embedding or its dict of outputs alone."""
    try:
        return TowerEncoder(network, label, arguments, spec)
    except (NoTower, ViRBError):
        return CustomEncoder(network, label, arguments, spec)


def is_tower(network: nn.Module) -> bool:
    """Whether it has blocks in a place where towers have them; the forward decides."""
    try:
        return bool(_find_blocks(network))
    except NoTower:
        return False


def check_finite(network: nn.Module, label: str) -> None:
    """UserError when a parameter, or a statistic of a norm, is NaN or infinite."""
    statistics = ((name, buffer) for name, buffer in network.named_buffers() if name.rpartition(".")[2].startswith("running_"))
    for name, tensor in (*network.named_parameters(), *statistics):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{label}: {name} has NaN or infinite values")


def _find_blocks(network: nn.Module) -> tuple[str, str | None]:
    """Paths of the list of blocks and of the final norm."""
    for inner in _INNER:
        for path in _BLOCKS:
            blocks = _part(network, inner + path)
            if isinstance(blocks, nn.ModuleList | nn.Sequential) and len(blocks) and len({type(block) for block in blocks}) == 1:
                norm = next((inner + name for name in _NORMS if isinstance(_part(network, inner + name), nn.Module)), None)
                return inner + path, norm
    raise NoTower("no list of blocks")


def _part(network: nn.Module, path: str) -> Any:
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def _patch_size(network: nn.Module) -> int | None:
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d) and module.in_channels == 3), None)
    if first is None or first.kernel_size != first.stride or first.kernel_size[0] != first.kernel_size[1]:
        return None
    return first.kernel_size[0]


def _noise(network: nn.Module, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((2, 3, *size), generator=generator).to(next(network.parameters(), torch.empty(0)))


def _keep(found: dict[int, Tensor], number: int, keep: bool, copy: bool, stop: bool) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        x = output[0] if isinstance(output, tuple) else output
        if keep and isinstance(x, Tensor) and x.ndim == 3:
            found[number] = x.clone() if copy else x
        if stop:
            raise _Enough

    return hook
