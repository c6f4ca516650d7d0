# Neuron selectivity transfer (69.60 % in Tian et al. 2020): 50 for each of three maps.
_base_ = "resnet20.py"
distill = dict(
    teacher=dict(
        config="configs/classification/cifar100/resnet56.py",
        checkpoint="work_dirs/resnet56/epoch_240.pth",
    ),
    pairs=[dict(student="layer?", loss="NeuronSelectivity", weight=150.0)],
)
