"""Whether a cache says the truth: checksums of every value, and a sample of rows encoded again by the encoders that made them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from virb.data.images import ImageList
from virb.data.loader import load_batches
from virb.data.transforms import Geometry
from virb.encoders.base import Encoder
from virb.encoders.load import load_encoder
from virb.errors import ViRBError, describe
from virb.features.cache import FeatureCache, as_stored, slice_bounds
from virb.features.decoded import DecodedImages
from virb.features.encoding import PassOptions, encode
from virb.features.feature_set import MappedRows
from virb.features.inventory import StoredEntry, damaged_slices
from virb.features.layout import place
from virb.plan.jobs import Draft
from virb.plan.stores import possible_stores
from virb.runner.devices import set_up
from virb.runner.worker import ENCODE_BATCH

# Largest difference, as a share of the largest value, that other kernels (another machine, library or position in a batch) may make.
ROUNDING = {"float32": 2e-3, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Finding:
    entry: StoredEntry
    state: str  # same, close, differs: encoded again; read: checksums alone; damaged, unusable
    text: str = ""


def recheck(cache: FeatureCache, entries: Sequence[StoredEntry], draft: Draft | None, n_rows: int) -> Iterator[Finding]:
    """A finding per entry. Those that the draft (what an experiment list and task configs make of it) would use are encoded again."""
    again: list[StoredEntry] = []
    pixels = possible_stores(draft) if draft is not None else {}
    for entry in entries:
        if entry.problem:
            yield Finding(entry, "unusable", entry.problem)
        elif damaged := damaged_slices(cache, entry):
            yield Finding(entry, "damaged", f"{len(damaged)} of {entry.slices} slices: {damaged[0].name} ...")
        elif draft is not None and entry.key in draft.entries and entry.slices:
            again.append(entry)
        elif draft is not None and entry.key in pixels and entry.slices:
            list_id, geometry = pixels[entry.key]
            try:
                yield _decode_again(cache, entry, draft.lists[list_id], geometry, n_rows)
            except ViRBError as error:
                yield Finding(entry, "differs", f"it cannot be made again: {error}")
        else:
            yield Finding(entry, "read")
    if draft is None:
        return
    threads = torch.get_num_threads()
    try:
        yield from _encode_again(cache, again, draft, n_rows)
    finally:
        torch.set_num_threads(threads)


def _encode_again(cache: FeatureCache, entries: Sequence[StoredEntry], draft: Draft, n_rows: int) -> Iterator[Finding]:
    device = torch.device(draft.settings.devices[0])
    set_up(str(device))
    name, encoder = "", None
    for entry in sorted(entries, key=lambda entry: draft.entries[entry.key].wanted.encoder):  # one encoder at a time is in memory
        wanted = draft.entries[entry.key].wanted
        if encoder is None or name != wanted.encoder:
            name = wanted.encoder
            encoder = place(load_encoder(draft.encoders[name].source, name=name, seed=draft.settings.seed), device)
        try:
            yield _compare(cache, entry, draft, encoder, device, n_rows)
        except ViRBError as error:
            yield Finding(entry, "differs", f"it cannot be made again: {error}")
        except Exception as error:  # noqa: BLE001 - a user's network may raise anything; the other entries are looked at
            yield Finding(entry, "differs", f"it cannot be made again: {name}: {describe(error)}")


def _compare(cache: FeatureCache, entry: StoredEntry, draft: Draft, encoder: Encoder, device: torch.device, n_rows: int) -> Finding:
    planned = draft.entries[entry.key]
    images, wanted = draft.lists[planned.list_id], planned.wanted
    rows = _sample(cache, entry, n_rows)
    pieces = [
        cache.read_slice(entry.key, *bounds) for bounds in _slices_there(cache, entry) if ((bounds[0] <= rows) & (rows < bounds[1])).any()
    ]
    stored = MappedRows([piece for piece in pieces if piece is not None])
    options = PassOptions(draft.settings.numerics, ENCODE_BATCH[device.type], 0)
    largest, difference, same = 0.0, 0.0, True
    for batch in load_batches(images, rows, (wanted.geometry,), options.batch_size, on_bad_image="skip"):
        skip = [place for place, row in enumerate(batch.rows.tolist()) if row in batch.bad]
        found = encode(encoder, batch.pixels[wanted.geometry], [wanted.request], device, options, skip=skip)[wanted.request]
        for row, value in zip(batch.rows.tolist(), found, strict=True):
            if (row in batch.bad) != (row in stored.bad):
                return Finding(entry, "differs", f"image {images.ids[row]} can {'no longer' * (row in batch.bad) or 'now'} be decoded")
            if row in batch.bad:
                continue
            new, old = as_stored(value[None].numpy())[0].astype(np.float32), stored.read_one(row).float().numpy()
            if new.shape != old.shape:
                return Finding(entry, "differs", f"image {images.ids[row]}: shape {old.shape} is stored, {new.shape} is what it gives now")
            same &= np.array_equal(new, old)
            largest = max(largest, float(np.abs(new).max(initial=0.0)))
            difference = max(difference, float(np.abs(new - old).max(initial=0.0)))
    share = difference / largest if largest else difference
    if same:
        return Finding(entry, "same", f"{len(rows)} rows")
    state = "close" if share <= ROUNDING[draft.settings.precision] else "differs"
    return Finding(entry, state, f"{len(rows)} rows, by up to {share:.1e} of the largest value")


def _decode_again(cache: FeatureCache, entry: StoredEntry, images: ImageList, geometry: Geometry, n_rows: int) -> Finding:
    """Decoded images are the same bits wherever they are decoded."""
    rows = _sample(cache, entry, n_rows)
    stored = DecodedImages(cache, entry.key, entry.n_rows, geometry.size or (0, 0), use=False)
    for batch in load_batches(images, rows, (geometry,), 32, on_bad_image="skip"):
        for row, pixels in zip(batch.rows.tolist(), batch.pixels[geometry], strict=True):
            found = stored.find(row)
            if (row in batch.bad) != isinstance(found, str):
                return Finding(entry, "differs", f"image {images.ids[row]} can {'no longer' * (row in batch.bad) or 'now'} be decoded")
            if isinstance(found, np.ndarray) and not np.array_equal(pixels.numpy(), found):
                return Finding(entry, "differs", f"image {images.ids[row]} has other pixels")
    return Finding(entry, "same", f"{len(rows)} images")


def _sample(cache: FeatureCache, entry: StoredEntry, n_rows: int) -> np.ndarray:
    """Rows from all over the slices that are there."""
    there = np.concatenate([np.arange(*bounds) for bounds in _slices_there(cache, entry)])
    return there[np.unique(np.linspace(0, len(there) - 1, min(n_rows, len(there))).astype(int))]


def _slices_there(cache: FeatureCache, entry: StoredEntry) -> list[tuple[int, int]]:
    missing = set(cache.missing_slices(entry.key, entry.n_rows))
    return [bounds for bounds in slice_bounds(entry.n_rows) if bounds not in missing]
