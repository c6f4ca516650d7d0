"""What `benchmarks/step.py` measures steps of, and how each is built."""

from .subject import Built, Subject

__all__ = ["ON_CPU", "ON_GPU", "SUBJECTS", "Built", "Subject"]

SUBJECTS = {
    "resnet": "resnet:logits",
    "resnet_hint": "resnet:hint",
    "classification": "demos:classification",
    "detection": "demos:detection",
    "segmentation": "demos:segmentation",
    "gan": "demos:gan",
    "nlp": "texts:demo",
    "gfl": "large:gfl",
    "pspnet": "large:pspnet",
    "mobilebert": "texts:mobilebert",
}
"""By name, the function in this package that takes the command line and a folder for what it
writes, and returns a :class:`Subject`."""

ON_CPU = ("resnet", "resnet_hint", "classification", "detection", "segmentation", "gan", "nlp")
ON_GPU = ("resnet", "resnet_hint", "gfl", "pspnet", "mobilebert")
