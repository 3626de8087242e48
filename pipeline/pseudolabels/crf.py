"""The dense CRF (Krähenbühl and Koltun, NIPS 2011) of ``pydensecrf2``, on CPUs: the extra ``camlake[crf]``."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import InputError
from schemas.pseudolabels import CrfRefinement

Scores = npt.NDArray[np.float32]

#: Scores below this count as this (PSA's code).
LEAST_SCORE = 1e-5
#: Seconds that an image waits for a CPU of the cluster before it is refined here.
_WAIT_SECONDS = 60.0

_log = logging.getLogger(__name__)


@cache
def _densecrf() -> Any:
    try:
        return importlib.import_module("pydensecrf.densecrf")
    except ImportError as error:
        raise InputError(
            "pseudo_labels.refine: the dense CRF needs pydensecrf2; install it (pip install 'camlake[crf]', which "
            "compiles C++), or set refine.method to pamr"
        ) from error


def require_crf() -> None:
    """Check that the dense CRF is there.

    Raises:
        InputError: it is not installed.
    """
    _densecrf()


def dense_crf(pixels: npt.NDArray[np.uint8], scores: Scores, settings: CrfRefinement) -> Scores:
    """Return the mean-field marginals (L, H, W) of scores (L, H, W), background first, which sum to 1.

    The unary energy is ``-log`` of the scores (a factor that all scores of a pixel share has no effect); the pairwise
    terms are a smoothness kernel of position and an appearance kernel of position and colour.

    Args:
        pixels: (H, W, 3) RGB.
        scores: of L >= 2 labels.
        settings: of the job.
    """
    labels, height, width = scores.shape
    field = _densecrf().DenseCRF2D(width, height, labels)
    field.setUnaryEnergy(np.ascontiguousarray(-np.log(np.maximum(scores, LEAST_SCORE)).reshape(labels, -1)))
    field.addPairwiseGaussian(sxy=settings.gaussian_sxy, compat=settings.gaussian_compat)
    field.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        rgbim=np.array(pixels, order="C"),  # one that may be written to: Ray's shared arrays may not
        compat=settings.bilateral_compat,
    )
    return np.array(field.inference(settings.iterations), np.float32).reshape(scores.shape)


class CrfRunner:
    """Runs the dense CRF as Ray tasks of one CPU each where Ray is connected and has one to spare, else here.

    A worker's own CPUs are taken by its actor, so on a machine that is full of workers no task would ever begin: an
    image that waits too long is refined here. Safe to call from several threads.
    """

    def __init__(self, settings: CrfRefinement) -> None:
        require_crf()
        self._settings = settings
        self._lock = threading.Lock()
        self._running = 0
        self._task: Any = None
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            self._task = ray.remote(num_cpus=1)(dense_crf)

    @property
    def remote(self) -> bool:
        """Whether there is a cluster to run on."""
        return self._task is not None

    def __call__(self, pixels: npt.NDArray[np.uint8], scores: Scores) -> Scores:
        """Refine one image; see :func:`dense_crf`."""
        if self._task is not None and self._spare():
            found = self._elsewhere(pixels, scores)
            if found is not None:
                return found
        return dense_crf(pixels, scores, self._settings)

    def _spare(self) -> bool:
        import ray

        with self._lock:
            # One of ours that runs will make room.
            return self._running > 0 or ray.available_resources().get("CPU", 0.0) >= 1

    def _elsewhere(self, pixels: npt.NDArray[np.uint8], scores: Scores) -> Scores | None:
        import ray

        with self._lock:
            self._running += 1
        try:
            reference = self._task.remote(pixels, scores, self._settings)
            ready, _ = ray.wait([reference], timeout=_WAIT_SECONDS)
            if ready:
                # Ray's arrays are shared, and may not be written to.
                return np.array(ray.get(reference))
            ray.cancel(reference, force=True)
            _log.warning("no CPU of the cluster took a CRF within %.0f s; it is computed by the worker", _WAIT_SECONDS)
            return None
        finally:
            with self._lock:
                self._running -= 1
