# Similarity-preserving distillation (Tung and Mori 2019).
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    pairs=[
        dict(student="layer3", loss="SimilarityPreserving", weight=10.0),
    ],
)
