"""Measuring generated images: Frechet and kernel distances of sets, errors of pairs.

Importing it registers the metrics by name with mmengine.
"""

from .cache import cached_statistics, load_statistics, save_statistics
from .evaluator import ImageSetDistance, LabelMapIoU, PairedError
from .folders import measure_files
from .frechet import RunningStatistics, Statistics, frechet_distance, kernel_distance
from .images import list_images, read_image
from .inception import InceptionNetwork, load_inception
from .network import FeatureNetwork, build_network, features_of
from .small import SmallNetwork

__all__ = [
    "FeatureNetwork",
    "ImageSetDistance",
    "InceptionNetwork",
    "LabelMapIoU",
    "PairedError",
    "RunningStatistics",
    "SmallNetwork",
    "Statistics",
    "build_network",
    "cached_statistics",
    "features_of",
    "frechet_distance",
    "kernel_distance",
    "list_images",
    "load_inception",
    "load_statistics",
    "measure_files",
    "read_image",
    "save_statistics",
]
