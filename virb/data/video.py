"""Frames of a video by number, exact and deterministic: frame ``i`` is the i-th frame that decoding from the start gives.

The packets of the file are listed once, without decoding: their timestamps, sorted, are the frames in display order. A frame is
then found by seeking to the keyframe before it and decoding up to its timestamp. Where timestamps are missing or ambiguous (old AVI
files), frames are counted by decoding from the start, which is slower and as exact. Rotation stored in the container is not applied
(nor do the usual loaders of video benchmarks).
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from PIL import Image

from virb.data.decode import DECODED, unread
from virb.errors import BadImage

_OPEN_VIDEOS = 4  # per process: a loader reads videos one after the other, with a few threads
_CHUNK = 2**22  # bytes
_RECENT_FRAMES = 8  # threads ask for neighbouring frames a little out of order

_readers: OrderedDict[tuple[int, str], VideoReader] = OrderedDict()
_readers_lock = threading.Lock()


def frame_count(path: str) -> int:
    """Number of frames that can be read. Raises BadImage when the file is not a video."""
    return len(_reader(path))


def read_frame(path: str, number: int) -> Image.Image:
    """Frame ``number`` (from 0, in display order) as 8-bit RGB. Raises BadImage, naming file and frame."""
    DECODED.add()
    return _reader(path).read(number)


class VideoReader:
    """One open video. Reading frames in rising order decodes each once; threads may share a reader."""

    def __init__(self, path: str) -> None:
        import av

        self.path = path
        self._errors = (av.error.FFmpegError, OSError, ValueError, EOFError)
        self._lock = threading.RLock()
        try:
            self._container = av.open(path)
            if not self._container.streams.video:
                raise BadImage(f"{path}: has no video stream")
            self._stream = self._container.streams.video[0]
            self._times, self._keyframes = self._listed_packets()
            self._n_frames = sum(1 for _ in self._decode_from_start()) if self._times is None else len(self._times)
        except self._errors as error:
            _check_readable(path)
            raise BadImage(f"{path}: cannot be read as a video ({error})") from error
        self._number_of_time: dict[int | None, int] = {time: number for number, time in enumerate(self._times or ())}
        self._frames: Iterator[tuple[int, Any]] = iter(())
        self._position = -1  # number of the frame decoded last; the next one of ``_frames`` comes after it
        self._running = False
        self._recent: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return self._n_frames

    def read(self, number: int) -> Image.Image:
        if not 0 <= number < self._n_frames:
            raise BadImage(f"{self.path}: has no frame {number}, it has {self._n_frames}")
        with self._lock:
            try:
                frame = self._find(number)
            except self._errors as error:
                self._running = False
                _check_readable(self.path)
                raise BadImage(f"{self.path}: frame {number} cannot be decoded ({error})") from error
            if frame is None:
                raise BadImage(f"{self.path}: frame {number} cannot be decoded")
            return frame.to_image()

    def _find(self, number: int) -> Any | None:
        if number in self._recent:
            return self._recent[number]
        if self._running and number > self._position and not self._seek_is_shorter(number):
            frame = self._advance(number)
            if frame is not None:
                return frame
        if self._times is not None:
            self._start(self._decode_from(self._times[number]))
            frame = self._advance(number)
            if frame is not None:
                return frame
        # A container that cannot seek exactly, or has no timestamps: from the start, which always counts right.
        self._start(self._decode_from_start())
        return self._advance(number)

    def _seek_is_shorter(self, number: int) -> bool:
        """Whether a keyframe comes on the way to a frame that is not near."""
        return number - self._position > 2 * _RECENT_FRAMES and self._keyframes_before(number) > self._keyframes_before(self._position)

    def _keyframes_before(self, number: int) -> int:
        return bisect_right(self._keyframes, number)

    def _start(self, frames: Iterator[tuple[int, Any]]) -> None:
        self._frames, self._position, self._running = frames, -1, True
        self._recent.clear()

    def _advance(self, number: int) -> Any | None:
        """Decode up to frame ``number``; None when the decoder is past it or ends without it."""
        for current, frame in self._frames:
            self._position = current
            self._recent[current] = frame
            while len(self._recent) > _RECENT_FRAMES:
                self._recent.popitem(last=False)
            if current == number:
                return frame
            if current > number:
                return None
        self._running = False
        return None

    def _decode_from(self, time: int) -> Iterator[tuple[int, Any]]:
        self._container.seek(time, stream=self._stream, backward=True, any_frame=False)
        for frame in self._container.decode(self._stream):
            number = self._number_of_time.get(frame.pts)
            if number is not None:
                yield number, frame

    def _decode_from_start(self) -> Iterator[tuple[int, Any]]:
        # Opened anew: a seek to zero does not reach the first frame of every container.
        import av

        self._container.close()
        self._container = av.open(self.path)
        self._stream = self._container.streams.video[0]
        if self._times is None:
            yield from enumerate(self._container.decode(self._stream))
        else:
            for frame in self._container.decode(self._stream):
                number = self._number_of_time.get(frame.pts)
                if number is not None:
                    yield number, frame

    def _listed_packets(self) -> tuple[list[int] | None, list[int]]:
        """Timestamps of the frames in display order (None when packets do not tell them), and the numbers of the keyframes."""
        times, keyframe_times = [], set()
        for packet in self._container.demux(self._stream):
            if packet.size == 0 or packet.is_discard:
                continue  # the flush packet at the end; frames that the container's edit list cuts off
            if packet.pts is None:
                return None, []
            times.append(packet.pts)
            if packet.is_keyframe:
                keyframe_times.add(packet.pts)
        if not times or len(set(times)) < len(times):
            return None, []
        times.sort()
        return times, [number for number, time in enumerate(times) if time in keyframe_times]


def _check_readable(path: str) -> None:
    """UnreadImage where the system cannot read the whole file: FFmpeg says the same of that as of a file with broken content."""
    try:
        with open(path, "rb", buffering=0) as file:
            while file.read(_CHUNK):
                pass
    except OSError as error:
        raise unread(path, error) from None


def _reader(path: str) -> VideoReader:
    key = (os.getpid(), path)  # a forked child must not share the parent's file position
    with _readers_lock:
        reader = _readers.get(key)
        if reader is None:
            reader = _readers[key] = VideoReader(path)
            while len(_readers) > _OPEN_VIDEOS:
                # Not closed here: another thread may be reading it. It closes when the last reference goes.
                _readers.popitem(last=False)
        _readers.move_to_end(key)
        return reader
