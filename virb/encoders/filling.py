"""The gate between a file and a network: every tensor that an output passes through is filled, value by value, or it is an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from virb.encoders.architectures import SPELLINGS, State, infer
from virb.encoders.checkpoints import Checkpoint, some
from virb.encoders.layouts import HEAD_NAMES, RULES, Place, choose, places
from virb.errors import UserError

_EXEMPT = ("num_batches_tracked", "mask_token")  # last parts of names that no output depends on
_RUNNING = ("running_mean", "running_var")


def fill(network: nn.Module, checkpoint: Checkpoint, label: str, ignored: Sequence[str] = (), key: str | None = None) -> str:
    """Copies the file's network into ``network`` and compares every tensor with the file. Returns one line that says what was filled
    from where: layout, branch, prefix, what else is in the file, what was cast.

    UserError unless every parameter and persistent buffer is filled and nothing is left over at that place but heads (``ignored``
    prefixes; a network of the user has none). ``key``: the ``checkpoint_key`` that was asked for."""
    wanted = {name: tensor for name, tensor in network.state_dict(keep_vars=True).items() if not _exempt(name)}
    place = _place(checkpoint, key, wanted)
    spelling, state = _spelled(place.state, wanted)
    heads = (*ignored, *HEAD_NAMES) if ignored else ()
    matching = {name for name, tensor in wanted.items() if name in state and state[name].shape == tensor.shape}
    others = [f"{k} is {_shape(state[k])}, expected {_shape(v)}" for k, v in wanted.items() if k in state and k not in matching]
    missing = [name for name in wanted if name not in state]
    unexpected = [place.prefix + name for name in state if name not in wanted and not _exempt(name) and not name.startswith(heads)]
    if missing or others or unexpected:
        counts = f"filled {len(matching)} of {len(wanted)} parameters of {label}"
        advice = _advice(checkpoint, place, wanted, key)
        raise UserError(
            _refusal(checkpoint, counts, place, {"missing": missing, "of another shape": others, "unexpected": unexpected}, advice)
        )
    taken = {name: state[name] for name in wanted}
    for name, tensor in taken.items():
        _check_kind(name, tensor, wanted[name], str(checkpoint.path))
    network.load_state_dict(taken, strict=False)
    compare(network, taken, str(checkpoint.path))
    details = _details(checkpoint, place, spelling, taken)
    return f"{label} from {checkpoint.path}{details}: {len(wanted)} of {len(wanted)} tensors filled (100 %)"


def compare(network: nn.Module, state: State, path: str) -> None:
    """UserError unless every tensor in memory has the values of ``state``, in its own dtype."""
    memory = network.state_dict(keep_vars=True)
    buffers = {name for name, _ in network.named_buffers(remove_duplicate=False)}
    absent = [name for name in memory if name not in state and not _exempt(name)]
    if absent:
        raise UserError(f"{path} does not fill {some(absent)}")
    for name, value in memory.items():
        if name not in state:
            continue
        expected = state[name].to(value.dtype)
        here = value.detach().cpu()
        if expected.is_floating_point():
            # -inf is a value in the masks of some attention layers; nowhere else is anything but a finite number one.
            bad = torch.isnan(expected) if name in buffers and not name.endswith(_RUNNING) else ~torch.isfinite(expected)
            if bad.any():
                raise UserError(
                    f"{path}: {name} holds NaN or infinite values; the training that wrote it had diverged, or the file is damaged"
                )
            if name.endswith("running_var") and (expected < 0).any():
                raise UserError(f"{path}: {name} holds negative variances; the file is damaged")
        if not bool(((here == expected) | ((here != here) & (expected != expected))).all()):
            raise UserError(f"{path}: {name} in memory differs from the file after loading (do two parameters share one tensor?)")


def _check_kind(name: str, tensor: Tensor, wanted: Tensor, path: str) -> None:
    """UserError for what only looks like weights: whole numbers, complex, sparse or quantised values, or no values at all."""
    dense = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized
    if not dense or (wanted.is_floating_point() and not tensor.is_floating_point()):
        kind = (
            "no values" if tensor.is_meta else f"{'' if dense else 'sparse or quantised '}{str(tensor.dtype).removeprefix('torch.')} values"
        )
        raise UserError(f"{path}: {name} has {kind}, expected plain floating-point numbers; save the network's float weights")


def _place(checkpoint: Checkpoint, key: str | None, wanted: Mapping[str, Tensor]) -> Place:
    """Where most of the wanted names are; else any network of the file, or any tensors, so that the message can show what is there."""
    if places(checkpoint, key, wanted):
        return choose(checkpoint, key, wanted)
    if places(checkpoint, key):
        return choose(checkpoint, key)
    named = [name for name in checkpoint.branches if key is not None and (name == key or name.startswith(f"{key}."))]
    for name in (*named, *(("", "state_dict", "model") if key is None else ())):
        if name in checkpoint.branches:
            return Place(RULES[-1], name, "", None, checkpoint.branches[name])
    if key is None and len(checkpoint.branches) == 1:
        ((name, state),) = checkpoint.branches.items()
        return Place(RULES[-1], name, "", None, state)
    return choose(checkpoint, key)  # which says that there is nothing


def _spelled(state: State, wanted: Mapping[str, Tensor]) -> tuple[str, State]:
    """The spelling of the file's names that has most of the wanted ones; its own where that is as good."""
    found = [(name, spelled) for name, spell in SPELLINGS.items() if (spelled := spell(state)) is not None]
    return max(found, key=lambda item: sum(name in item[1] and item[1][name].shape == value.shape for name, value in wanted.items()))


def _exempt(name: str) -> bool:
    return name.rpartition(".")[2] in _EXEMPT


# Texts


def _details(checkpoint: Checkpoint, place: Place, spelling: str, taken: State) -> str:
    parts = [place.rule.name] * (place.family is not None) + [str(place)] * bool(str(place))
    parts += [f"names changed ({spelling})"] * bool(spelling)
    parts += [f"not taken: {some(list(place.others))}"] * bool(place.others)
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in taken.values() if tensor.is_floating_point()} - {"float32"})
    parts += [f"cast from {', '.join(kinds)}"] * bool(kinds)
    origin = checkpoint.metadata.get("virb.source")
    parts += [f"converted from {origin}"] * bool(origin)
    return "".join(f", {part}" for part in parts)


def _advice(checkpoint: Checkpoint, place: Place, wanted: Mapping[str, Tensor], key: str | None) -> str:
    """A place of the file that would fill everything, else the architecture that the file seems to be."""
    for _, other in places(checkpoint, None, wanted):
        state = _spelled(other.state, wanted)[1]
        if other.key != place.key and all(name in state and state[name].shape == value.shape for name, value in wanted.items()):
            return f"checkpoint_key: {other.key}"
    if place.family is not None:
        found = infer(place.state, place.rule.heads)
        if isinstance(found, tuple):
            name, arguments = found
            how = f"timm: {name.removeprefix('timm:')}" if name.startswith("timm:") else f"arch: {name}"
            told = {
                k: v for k, v in arguments.items() if k in ("width", "depth", "heads", "patch_size", "img_size", "registers", "layer_scale")
            }
            return f"{how}{f', args: {told}' if told else ''}: that is what the file's shapes say"
    return "another `arch:`, or its `args:`"


def _refusal(checkpoint: Checkpoint, counts: str, place: Place, troubles: Mapping[str, list[str]], advice: str) -> str:
    branch = f' from branch "{place.branch}"' if place.branch else ""
    keys = [place.prefix + name for name in place.state]
    example = next((name for name in keys if name.count(".") > 1), keys[0] if keys else "nothing")
    lines = [
        f"{checkpoint.path}: {counts}{branch}.",
        f"  the file's keys look like   {f'{place.branch}: ' if place.branch else ''}{example}",
        *(f"  {len(names)} {what}: {some(names)}" for what, names in troubles.items() if names),
    ]
    return "\n".join([*lines, f"  try   {advice}"])


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
