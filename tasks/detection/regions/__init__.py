"""Where in the image detectors are compared, one rule a file.

Positions of dense heads: the valuable localization region. Cells of feature maps: ground-truth
boxes, the places that anchors find near them, and the boxes on which student and teacher disagree.
"""

from .boxes import box_cells, box_fractions
from .fine_grained import fine_grained
from .general_instances import general_instances, gi_cells
from .valuable import box_distance_iou, valuable_region

__all__ = [
    "box_cells",
    "box_distance_iou",
    "box_fractions",
    "fine_grained",
    "general_instances",
    "gi_cells",
    "valuable_region",
]
