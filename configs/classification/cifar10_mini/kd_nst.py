# Logits and neuron selectivity, the combination of Huang and Wang.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    task_weights=dict(loss_cls=0.1),
    pairs=[
        dict(student="outputs.logits", loss="KLDivergence", temperature=4.0, weight=0.9),
        dict(student="layer3", loss="NeuronSelectivity", weight=10.0),
    ],
)
