"""Image-to-image GANs: translators, their compression by distillation, and once-for-all search.

Importing it registers everything by name with mmengine.
"""

from .adapter import TranslatorAdapter
from .cyclegan import CycleGAN
from .data import (
    AlignedImages,
    DigitOutlines,
    DigitRestyle,
    TranslationPreprocessor,
    UnalignedImages,
)
from .hooks import AdversaryHook
from .image_pool import ImagePool
from .metrics import ImageSetDistance, LabelMapIoU, PairedError
from .optim import GanOptimWrapperConstructor
from .translation import ImageTranslator, Pix2Pix, TranslationModel

__all__ = [
    "AdversaryHook",
    "AlignedImages",
    "CycleGAN",
    "DigitOutlines",
    "DigitRestyle",
    "GanOptimWrapperConstructor",
    "ImagePool",
    "ImageSetDistance",
    "ImageTranslator",
    "LabelMapIoU",
    "PairedError",
    "Pix2Pix",
    "TranslationModel",
    "TranslationPreprocessor",
    "TranslatorAdapter",
    "UnalignedImages",
]
