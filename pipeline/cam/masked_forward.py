"""The network over chunks of masked images: one static shape, which halves where the memory does not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.cam.mask_stream import Segment
from pipeline.cam.masked_stem import StemResponses, worthwhile
from pipeline.cam.network import Accelerate, evaluation_mode, network_layout

# Responses that are kept until the next chunk; an image's that do not fit in are made again for each chunk.
_KEPT_BYTES = 256 * 2**20

_log = logging.getLogger(__name__)


class MaskedNetwork:
    """Runs a network over masked images.

    Where a float32 channels-last network begins with a convolution, that is computed from each mask's cells (see
    :mod:`pipeline.cam.masked_stem`), and masked images do not exist.

    Args:
        model: the classifier.
        size: masked images per forward.
        split: returns the first convolution and the rest of the network for images of (H, W), or None; asked once.
        accelerate: makes a network faster for one static shape, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        size: int,
        split: Callable[[tuple[int, int]], tuple[nn.Conv2d, nn.Module] | None] | None,
        accelerate: Accelerate | None,
    ) -> None:
        self._model = model
        self._split = split
        self._accelerate = accelerate
        self._parts: tuple[nn.Conv2d, nn.Module] | None = None
        self._responses: dict[tuple[int, tuple[int, ...], bool], tuple[Tensor, StemResponses]] = {}
        self._buffer: Tensor | None = None
        self._features: Tensor | None = None
        self._forward: Callable[[Tensor], Any] | None = None
        self.size = size

    @property
    def size(self) -> int:
        """Masked images per forward."""
        return self._size

    @size.setter
    def size(self, value: int) -> None:
        self._size = value
        self._buffer = self._features = self._forward = None
        self._responses.clear()

    def chunk(self) -> int:
        """Return the masked images per forward."""
        return self._size

    def halve(self) -> bool:
        """Make the next chunks half as large; False if they are of one image already."""
        if self._size == 1:
            return False
        self.size = self._size // 2
        if next((each.is_cuda for each in self._model.parameters()), False):
            torch.cuda.empty_cache()
        _log.warning("out of memory: going on with %d masked images per forward", self._size)
        return True

    def __call__(self, segments: list[Segment], size: int) -> Tensor:
        """Return the logits (size, K) of the masked images; rows that no segment has are anything."""
        with evaluation_mode(self._model), torch.inference_mode():
            if self._split is not None:
                height, width = segments[0].image.shape[-2:]
                if network_layout(self._model) == (torch.float32, torch.channels_last):
                    self._parts = self._split((height, width))
                self._split = None
            if self._parts is None:
                return self._run(self._model, self._masked(segments, size))
            return self._run(self._parts[1], self._stem(self._parts[0], segments, size))

    def _run(self, network: nn.Module, images: Tensor) -> Tensor:
        if self._forward is None:
            self._forward = network if self._accelerate is None else self._accelerate(network, images)
        logits: Tensor = self._forward(images)
        return logits

    def _masked(self, segments: Sequence[Segment], size: int) -> Tensor:
        """Write the masked images of ``segments`` into the buffer (size, 3, H, W), in the network's layout."""
        image = segments[0].image
        shape = (size, *image.shape)
        if self._buffer is None or self._buffer.shape != shape:
            dtype, memory_format = network_layout(self._model)
            self._buffer = torch.zeros(shape, dtype=dtype, device=image.device).contiguous(memory_format=memory_format)
        for row, image, grids, align_corners in segments:
            masks = functional.interpolate(grids.unsqueeze(1), shape[-2:], mode="bilinear", align_corners=align_corners)
            torch.mul(image, masks, out=self._buffer[row : row + len(grids)])
        return self._buffer

    def _stem(self, conv: nn.Conv2d, segments: list[Segment], size: int) -> Tensor:
        """Return the first convolution's output (size, O, H', W') over the masked images."""
        kept = [segment for segment in segments if self._pays(conv, segment)]
        others = [segment for segment in segments if not self._pays(conv, segment)]
        if others:
            # All rows, so that a mask's bits depend on nothing but its image.
            self._features = conv(self._masked(others, size))
            for segment in kept:
                self._features[segment.row : segment.row + len(segment.grids)] = 0
        responses: dict[tuple[int, tuple[int, ...], bool], tuple[Tensor, StemResponses]] = {}
        for number, (row, image, grids, align_corners) in enumerate(kept):
            cells = (grids.shape[1], grids.shape[2])
            key = (id(image), cells, align_corners)
            found = (
                self._responses[key][1] if key in self._responses else StemResponses(conv, image, cells, align_corners)
            )
            if sum(each.bytes for _, each in responses.values()) + found.bytes <= _KEPT_BYTES:
                responses[key] = (image, found)
            masks = grids.new_zeros((size, *cells))
            masks[row : row + len(grids)] = grids
            active = grids.new_zeros(size)
            active[row : row + len(grids)] = 1
            if self._features is None:
                zeros = image.new_zeros((size, *image.shape)).contiguous(memory_format=torch.channels_last)
                self._features = conv(zeros)
            found.add(masks, first=number == 0 and not others, active=active, out=self._features)
        # Images whose masks are not in this chunk are done with.
        self._responses = responses
        assert self._features is not None
        return self._features

    @staticmethod
    def _pays(conv: nn.Conv2d, segment: Segment) -> bool:
        size, cells = segment.image.shape[-2:], segment.grids.shape[-2:]
        pays = worthwhile(conv, (size[0], size[1]), (cells[0], cells[1]), segment.align_corners)
        # All rows of a chunk are multiplied with each image's responses, most by zero, which takes no NaN away.
        return pays and bool(segment.image.isfinite().all())
