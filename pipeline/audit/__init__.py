"""The audit: what the heatmaps of a lake say about dataset and model."""
