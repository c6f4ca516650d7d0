# A Faster R-CNN of 0.2M parameters on the digit scenes, trained alone.
_base_ = [
    "../_base_/faster_rcnn_tiny.py",
    "../_base_/digit_scenes.py",
    "../_base_/short_schedule.py",
]
