# The teacher, a ResNet-56 (72.34 % in Tian et al. 2020).
_base_ = "resnet20.py"
model = dict(network=dict(depth=56))
