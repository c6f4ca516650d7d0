"""Data of the mmengine tasks: the cache folder, and the scenes composed for the demos."""
