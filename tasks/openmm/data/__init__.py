"""Data of the mmengine tasks: the cache folder, wrapped data sets, and the demos' scenes."""
