# Decoupled knowledge distillation (Zhao et al. 2022): the two parts of kd.py weighed apart.
_base_ = ["student.py", "../_base_/teacher_resnet56.py"]
distill = dict(
    teacher={{_base_.teacher}},
    pairs=[
        dict(
            student="outputs.logits",
            loss="DecoupledKD",
            alpha=1.0,
            beta=2.0,
            temperature=4.0,
            weight=0.5,
            warmup=0.5,
        ),
    ],
)
