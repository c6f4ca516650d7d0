"""Networks of image-to-image GANs, thin generators, and a super-network of all their widths.

Importing it registers them by name in mmengine's root registry of models.
"""

from .channels import STAGES, format_channels, parse_channels, parse_space
from .discriminators import PatchDiscriminator, PixelDiscriminator
from .layers import ImageNetwork, conv_bias, init_weights, norm_layer
from .mobile_resnet import MobileResnetGenerator, SeparableConv2d
from .release import release_names
from .resnet import ResnetGenerator
from .super_resnet import SuperMobileResnetGenerator
from .transfer import transfer_channels
from .unet import UnetGenerator

__all__ = [
    "STAGES",
    "ImageNetwork",
    "MobileResnetGenerator",
    "PatchDiscriminator",
    "PixelDiscriminator",
    "ResnetGenerator",
    "SeparableConv2d",
    "SuperMobileResnetGenerator",
    "UnetGenerator",
    "conv_bias",
    "format_channels",
    "init_weights",
    "norm_layer",
    "parse_channels",
    "parse_space",
    "release_names",
    "transfer_channels",
]
