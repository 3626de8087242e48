"""Pseudo-labels for segmentation, made from maps."""
