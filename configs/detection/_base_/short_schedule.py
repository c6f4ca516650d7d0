# The short schedule, as mmdet needs it.
_base_ = "../../_base_/short_schedule.py"
default_scope = "mmdet"
default_hooks = dict(visualization=dict(type="DetVisualizationHook"))
visualizer = dict(type="DetLocalVisualizer")
