"""The network as the sessions run it: device, precision, layout, and one static shape per kind of batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.cam.base import LinearHead, exact_arithmetic
from pipeline.cam.captured import CapturedPass
from pipeline.cam.mask_stream import MaskStream, Segment
from pipeline.cam.masked_forward import MaskedNetwork
from pipeline.cam.network import Accelerate, network_layout
from pipeline.cam.plan import Plan
from pipeline.cam.shared_pass import SharedPass, shared_pass
from schemas.errors import InputError

_log = logging.getLogger(__name__)

# How far mean(A) W + b may be from the logits, over their size, before the head is found to be none: rounding of the
# network's own precision (TF32 on GPUs), and far below what a wrong structure gives.
_HEAD_TOLERANCE = {torch.float32: 2e-2, torch.float16: 5e-2, torch.bfloat16: 0.2}


class Compute:
    """Runs the network for sessions.

    Args:
        model: the classifier.
        make_plan: returns the plan for a linear head, or for none.
        head: the linear head, or None.
        head_is_given: the user named the head; if the logits contradict it, that is an error. A head that was found
            by itself is dropped instead.
        device: where the model is.
        batch_size: static batch size, or None.
        masked: runs masked images.
        seed: of the noise.
        activation: ``softmax`` or ``sigmoid``.
        accelerate: makes a network faster for one static shape, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        make_plan: Callable[[LinearHead | None], Plan],
        head: LinearHead | None,
        *,
        head_is_given: bool,
        device: torch.device,
        batch_size: int | None,
        masked: MaskedNetwork,
        seed: int,
        activation: str,
        accelerate: Accelerate | None = None,
    ) -> None:
        self.model = model
        self.device = device
        #: Images of the largest batch that is taken, and of the static shape that it runs in.
        self.largest_batch = batch_size
        self.batch_size = batch_size
        self.masked = masked
        self.seed = seed
        self.activation = activation
        self._accelerate = accelerate
        self._captured: CapturedPass | None = None
        self._make_plan = make_plan
        self._head_is_given = head_is_given
        self._head_checked = head is None
        self.plan = make_plan(head)

    def padded(self, images: Tensor) -> Tensor:
        """Return the images (n, 3, H, W) as float32 on the device, filled up with zeros to ``batch_size``."""
        _, memory_format = network_layout(self.model)
        rows = self.batch_size or len(images)
        images = images.detach().to(self.device, torch.float32, non_blocking=True)
        if len(images) < rows:
            full = images.new_zeros((rows, *images.shape[1:]))
            full[: len(images)] = images
            images = full
        return images.contiguous(memory_format=memory_format)

    def warm_up(self, size: tuple[int, int]) -> None:
        """Run a clean and a masked forward of black images of (H, W)."""
        images = self.padded(torch.zeros((1, 3, *size)))
        self.clean_pass(images)
        if self.plan.mask_methods:
            self.masked([Segment(0, images[0], images.new_ones((1, 1, 1)), False)], self.masked.size)

    def halve(self, rows: int) -> bool:
        """Make batches half as large as ``rows``, which did not fit into memory; False if it is one image already."""
        rows = self.batch_size or rows
        if rows == 1:
            return False
        self.batch_size = rows // 2
        self._captured = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        _log.warning("out of memory: going on with %d images per clean forward", self.batch_size)
        return True

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (n, K) float32 of images (n, 3, H, W), and nothing else."""
        return self._pass(self.padded(images), [], []).logits[: len(images)]

    def clean_pass(self, images: Tensor) -> SharedPass:
        """Run the shared pass of the plan, and compare the linear head with the first logits.

        Raises:
            InputError: a head that was given contradicts the logits.
        """
        dtype, _ = network_layout(self.model)
        if self._captured is not None and self._captured.shape == images.shape:
            return self._captured(images.to(dtype))
        result = self._checked_pass(images)
        # Never in its slower form, not even once: maps must not depend on which batch is the first.
        if self._accelerate is not None and self.batch_size is not None and not self.plan.gradient_layers:
            layers = [self.plan.layers[name] for name in result.activations]
            self._captured = CapturedPass(self.model, layers, self._accelerate, images.to(dtype))
            return self._captured(images.to(dtype))
        return result

    def _checked_pass(self, images: Tensor) -> SharedPass:
        result = self._pass(images, list(self.plan.layers), self.plan.gradient_layers)
        head = self.plan.head
        if self._head_checked or head is None or head.layer not in result.activations:
            return result
        with exact_arithmetic(self.device):
            fits = _head_fits(head, result)
        if fits is None:
            return result
        self._head_checked = True
        if fits:
            return result
        if self._head_is_given:
            raise InputError(
                f"head: the model's logits are not mean({head.layer}) @ weight.T + bias; give the weights that it "
                "uses, or no head"
            )
        self.plan = self._make_plan(None)
        return self._checked_pass(images)

    def gradient_pass(self, images: Tensor, layers: Sequence[str]) -> SharedPass:
        """Run the cut-graph pass of ``layers`` over noised images (N, 3, H, W) float32."""
        return self._pass(images, layers, layers)

    def _pass(self, images: Tensor, layers: Sequence[str], gradient_layers: Sequence[str] | set[str]) -> SharedPass:
        dtype, _ = network_layout(self.model)
        return shared_pass(self.model, images.to(dtype), [self.plan.layers[name] for name in layers], gradient_layers)

    def mask_stream(self, normaliser: bool) -> MaskStream:
        """Return a stream of masked forwards; ``normaliser``: probabilities are asked for."""
        return MaskStream(self.masked, normaliser and self.activation == "softmax", self.activation)


def _head_fits(head: LinearHead, result: SharedPass) -> bool | None:
    """Return whether mean(A) W + b gives the logits; None where no image has finite ones to tell."""
    mean = result.activations[head.layer].mean((2, 3))
    if head.weight.shape != (result.logits.shape[1], mean.shape[1]):
        return False
    expected = mean @ head.weight.T
    if head.bias is not None:
        expected = expected + head.bias
    finite = (expected.isfinite() & result.logits.isfinite()).all(1)
    if not bool(finite.any()):
        return None
    expected, logits = expected[finite], result.logits[finite]
    size = torch.maximum(expected.abs().amax(), logits.abs().amax())
    tolerance = _HEAD_TOLERANCE.get(result.precisions[head.layer], _HEAD_TOLERANCE[torch.float32])
    return bool((expected - logits).abs().amax() <= tolerance * size)
