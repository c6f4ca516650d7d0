# The teacher's network, to evaluate the weights of ../_base_/teacher_resnet56.py.
_base_ = "student.py"
model = dict(network=dict(depth=56))
