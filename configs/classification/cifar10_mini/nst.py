# Neuron selectivity transfer (Huang and Wang 2017), polynomial kernel, a fifth of the paper's 50.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    pairs=[
        dict(student="layer3", loss="NeuronSelectivity", weight=10.0),
    ],
)
