"""The network as the sessions run it: device, precision, layout, and one static shape per kind of batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.cam.base import LinearHead, exact_arithmetic
from pipeline.cam.mask_stream import MaskStream
from pipeline.cam.plan import Plan
from pipeline.cam.shared_pass import SharedPass, evaluation_mode, shared_pass
from schemas.errors import InputError

# How far mean(A) W + b may be from the logits, over their size, before the head is found to be none: rounding of the
# network's own precision (TF32 on GPUs), and far below what a wrong structure gives.
_HEAD_TOLERANCE = {torch.float32: 2e-2, torch.float16: 5e-2, torch.bfloat16: 0.2}


def network_layout(model: nn.Module) -> tuple[torch.dtype, torch.memory_format]:
    """Return the precision and memory format that the model's input should have, from its parameters.

    The first floating parameter gives the precision; the first convolution kernel of more than one element and input
    channel shows whether the model was moved to channels-last.
    """
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
    for parameter in model.parameters():
        if parameter.dim() == 4 and parameter.shape[1] > 1 and parameter.shape[2] * parameter.shape[3] > 1:
            if parameter.is_contiguous(memory_format=torch.channels_last) and not parameter.is_contiguous():
                return dtype, torch.channels_last
            break
    return dtype, torch.contiguous_format


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
        mask_batch: returns the masked images per forward.
        seed: of the noise.
        activation: ``softmax`` or ``sigmoid``.
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
        mask_batch: Callable[[], int],
        seed: int,
        activation: str,
    ) -> None:
        self.model = model
        self.device = device
        self.batch_size = batch_size
        self.mask_batch = mask_batch
        self.seed = seed
        self.activation = activation
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

    def clean_pass(self, images: Tensor) -> SharedPass:
        """Run the shared pass of the plan, and compare the linear head with the first logits.

        Raises:
            InputError: a head that was given contradicts the logits.
        """
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
        return self.clean_pass(images)

    def gradient_pass(self, images: Tensor, layers: Sequence[str]) -> SharedPass:
        """Run the cut-graph pass of ``layers`` over noised images (N, 3, H, W) float32."""
        return self._pass(images, layers, layers)

    def _pass(self, images: Tensor, layers: Sequence[str], gradient_layers: Sequence[str] | set[str]) -> SharedPass:
        dtype, _ = network_layout(self.model)
        return shared_pass(self.model, images.to(dtype), [self.plan.layers[name] for name in layers], gradient_layers)

    def mask_stream(self, normaliser: bool) -> MaskStream:
        """Return a stream of masked forwards in the network's precision and layout."""
        dtype, memory_format = network_layout(self.model)
        keep = normaliser and self.activation == "softmax"
        return MaskStream(self._masked_forward, self.mask_batch, dtype, memory_format, keep)

    def _masked_forward(self, images: Tensor) -> Tensor:
        with evaluation_mode(self.model), torch.inference_mode():
            logits: Tensor = self.model(images)
        return logits


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
