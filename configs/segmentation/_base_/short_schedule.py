# The short schedule, as mmseg needs it.
_base_ = "../../_base_/short_schedule.py"
default_scope = "mmseg"
default_hooks = dict(visualization=dict(type="SegVisualizationHook"))
visualizer = dict(type="SegLocalVisualizer")
