"""Replicas of the explained model: construction, weights, preprocessing, target layers and optimisation."""

from pipeline.models.head import find_linear_head
from pipeline.models.layers import find_target_layers, named_target_layer
from pipeline.models.replica import Replica, load_replica

__all__ = ["Replica", "find_linear_head", "find_target_layers", "load_replica", "named_target_layer"]
