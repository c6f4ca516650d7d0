# FSP (Yim et al. 2017): how each stage turns its input into its output, first; then the task.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    stages=[
        dict(name="flow", until=0.5, task_weight=0.0, freeze=["linear"]),
        dict(name="task"),
    ],
    pairs=[
        dict(
            student="layer?@input + layer?",
            loss="FSP",
            stage="flow",
            weight=0.001,
        ),
    ],
)
