"""Data sets of labelled images; importing it registers them with mmengine."""

from .digits import SklearnDigits
from .images import ArrayImages, LabelledImages
from .npz import NpzImages
from .peer_orders import PeerOrders
from .torchvision_images import TorchvisionImages

__all__ = [
    "ArrayImages",
    "LabelledImages",
    "NpzImages",
    "PeerOrders",
    "SklearnDigits",
    "TorchvisionImages",
]
