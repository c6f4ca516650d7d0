# The demo's student, trained alone.
_base_ = [
    "../_base_/gfl_tiny.py",
    "../_base_/digit_scenes.py",
    "../_base_/short_schedule.py",
]
