"""Image classifiers under mmengine's runner: offline, online and self distillation, NetAug.

Importing it registers everything by name with mmengine.
"""

from .adapter import ClassifierAdapter
from .backbone import ClassifierBackbone
from .byot import SelfTaughtClassifier
from .classifier import ImageClassifier
from .data import NpzImages, SklearnDigits, TorchvisionImages
from .data.peer_orders import PeerOrders
from .ensemble import Ensemble
from .hooks import PartnersHook
from .metrics import Accuracy
from .models import (
    CifarResNet,
    MCUNet,
    MobileNetV2Tiny,
    NarrowMobileNetV2,
    NarrowMobileNetV3,
    ProxylessNASMobile,
)
from .mutual import MutualClassifier
from .netaug import AugmentedClassifier
from .networks import build_network
from .one import OneClassifier
from .preprocessor import ClassifierPreprocessor
from .recalibration import RecalibrateHook
from .teachers import TeacherAccuracyHook

__all__ = [
    "Accuracy",
    "AugmentedClassifier",
    "CifarResNet",
    "ClassifierAdapter",
    "ClassifierBackbone",
    "ClassifierPreprocessor",
    "Ensemble",
    "ImageClassifier",
    "MCUNet",
    "MobileNetV2Tiny",
    "MutualClassifier",
    "NarrowMobileNetV2",
    "NarrowMobileNetV3",
    "NpzImages",
    "OneClassifier",
    "PartnersHook",
    "PeerOrders",
    "ProxylessNASMobile",
    "RecalibrateHook",
    "SelfTaughtClassifier",
    "SklearnDigits",
    "TeacherAccuracyHook",
    "TorchvisionImages",
    "build_network",
]
