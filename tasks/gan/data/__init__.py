"""Image translation data: folders of pictures, two embedded sets of digits, the preprocessor.

Importing it registers the data sets and the preprocessor in mmengine's root registries.
"""

from .digits import DigitOutlines, DigitRestyle
from .folders import AlignedImages, UnalignedImages
from .pipeline import PREPROCESS, PairTransform, pack_pair
from .preprocessor import TranslationPreprocessor, from_pixels, to_pixels

__all__ = [
    "PREPROCESS",
    "AlignedImages",
    "DigitOutlines",
    "DigitRestyle",
    "PairTransform",
    "TranslationPreprocessor",
    "UnalignedImages",
    "from_pixels",
    "pack_pair",
    "to_pixels",
]
