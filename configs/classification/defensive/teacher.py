# Defensive distillation (Papernot et al. 2016), first of two trainings: a network whose logits are
# divided by T = 20 in the cross-entropy, so that they grow about T times as large. Deployed at
# T = 1, its softmax is so sure of itself that the gradients with respect to the image vanish.
#
# This is no defence. The gradients are hidden, not gone: attacks that work on the logits, or divide
# them by T again, fool such a network as often as any other (Carlini and Wagner 2017, section V).
# It is here as the origin of distilling a network into its own architecture.
_base_ = ["../_base_/default.py", "../_base_/cifar10_mini.py", "../_base_/schedule.py"]
temperature = 20.0
model = dict(
    type="ImageClassifier",
    network=dict(type="CifarResNet", depth=20, num_classes=10),
    data_preprocessor={{_base_.data_preprocessor}},
    temperature=temperature,
)
