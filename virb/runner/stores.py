"""Decoded images as a worker uses them: what a pass reads and keeps, and what streams read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from virb.data.transforms import Geometry
from virb.errors import ViRBError
from virb.features.cache import FeatureCache
from virb.features.decoded import DecodedImages, Pixels
from virb.features.passes import Wanted
from virb.plan.jobs import PassWork, PixelStore, RunContext


class PixelStores:
    """The run's stores of decoded images, opened when they are asked for."""

    def __init__(self, context: RunContext, cache: FeatureCache) -> None:
        self._context, self._cache = context, cache
        self._opened: dict[str, DecodedImages] = {}  # by jobs: slices are checked once, not once a job

    def of_slice(self, work: PassWork, start: int, wanted: Sequence[Wanted], notes: list[str]) -> Pixels:
        """What is there is read, what the plan wants kept and is not there is kept."""
        stores = self._context.stores.get(work.list_id, {})
        keep: dict[Geometry, str] = {}
        for geometry in (g for g in work.keep if stores[g].key not in self._cache.no_room):
            store = stores[geometry]
            if self._cache.has_slice(store.key, start):
                continue
            try:
                about = {"encoder": "decoded images", "images": self._context.lists[work.list_id].name}
                self._cache.prepare(store.record, store.n_rows, about)
                keep[geometry] = store.key
            except ViRBError as error:
                notes.append(f"decoded images are not kept: {error}")
        seen = {item.geometry for item in wanted} | keep.keys()
        return Pixels({geometry: self._open(stores[geometry]) for geometry in seen & stores.keys()}, keep)

    def kept(self, list_id: str) -> Mapping[Geometry, DecodedImages]:
        """For streams: by geometry, the decoded images of a list."""
        stores = self._context.stores.get(list_id, {})
        for store in stores.values():
            if store.key not in self._opened:
                self._opened[store.key] = self._open(store)
        return {geometry: self._opened[store.key] for geometry, store in stores.items()}

    def bad(self, list_id: str) -> dict[int, str] | None:
        """The images that could not be decoded, where a store knows it of all."""
        return next((bad for images in self.kept(list_id).values() if (bad := images.bad()) is not None), None)

    def _open(self, store: PixelStore) -> DecodedImages:
        return DecodedImages(self._cache, store.key, store.n_rows, store.geometry.size or (0, 0))
