"""The demo: digits in scenes, a small network trained on the spot, and its lake of heatmaps."""
