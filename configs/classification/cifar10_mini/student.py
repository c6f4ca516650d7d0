# The small student, trained alone: a ResNet-8 (He et al. 2016, section 4.2) on 4000 images.
_base_ = [
    "../_base_/default.py",
    "../_base_/cifar10_mini.py",
    "../_base_/schedule.py",
]
model = dict(
    type="ImageClassifier",
    network=dict(type="CifarResNet", depth=8, num_classes={{_base_.num_classes}}),
    data_preprocessor={{_base_.data_preprocessor}},
)
