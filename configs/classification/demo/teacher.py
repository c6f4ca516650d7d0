# The demo's teacher: the same depth, eight times as wide.
_base_ = "student.py"
model = dict(network=dict(widths=(16, 32, 64)))
