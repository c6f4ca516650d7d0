"""Networks of image classifiers: CIFAR ResNets, and the tiny networks of network augmentation.

Importing it registers them by name in mmengine's root registry of models.
"""

from .blocks import ConvNormAct, InvertedResidual, MobileNetwork, SqueezeExcite, make_divisible
from .cifar_resnet import CifarResNet
from .mcunet import MCUNet
from .mobilenet_v2 import NarrowMobileNetV2
from .mobilenet_v2_tiny import MobileNetV2Tiny
from .mobilenet_v3 import NarrowMobileNetV3
from .proxylessnas import ProxylessNASMobile

__all__ = [
    "CifarResNet",
    "ConvNormAct",
    "InvertedResidual",
    "MCUNet",
    "MobileNetV2Tiny",
    "MobileNetwork",
    "NarrowMobileNetV2",
    "NarrowMobileNetV3",
    "ProxylessNASMobile",
    "SqueezeExcite",
    "make_divisible",
]
