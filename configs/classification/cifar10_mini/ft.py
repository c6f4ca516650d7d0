# Factor transfer (Kim et al. 2018): the paraphraser first, the student frozen; then the student.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    stages=[
        dict(name="paraphrase", until=0.25, task_weight=0.0, train=[]),
        dict(name="transfer"),
    ],
    pairs=[
        dict(
            student="layer3",
            loss="ParaphrasedFactorTransfer",
            form="code",
            reconstruction_form="code",
            reconstruction=0.002,  # 1, beside the authors' weight of 500
            weight=500.0,
        ),
    ],
)
