# The student of netaug.py alone: with shortcuts of 1x1 convolutions, which can be widened.
_base_ = "student.py"
model = dict(network=dict(shortcut="B"))
