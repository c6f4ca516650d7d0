"""What the mmengine tasks share in data: the cache folder, and the scenes composed for the demos."""
