# A ResNet-20 alone on CIFAR-100 (69.06 % in Tian et al. 2020).
_base_ = ["../_base_/default.py", "../_base_/cifar100.py", "../_base_/schedule_240.py"]
model = dict(
    type="ImageClassifier",
    network=dict(type="CifarResNet", depth=20, num_classes={{_base_.num_classes}}),
    data_preprocessor={{_base_.data_preprocessor}},
)
