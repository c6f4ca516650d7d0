# Defensive distillation (Papernot et al. 2016), second of two trainings: the architecture anew, on
# nothing but the teacher's soft labels at the same temperature T = 20. No hard labels: their
# weight is 0 in the only stage. Deployed at T = 1.
#
# This is no defence; see teacher.py.
_base_ = "teacher.py"
distill = dict(
    teacher=dict(
        config="configs/classification/defensive/teacher.py",
        checkpoint="work_dirs/teacher/epoch_2.pth",
    ),
    stages=[dict(name="soft", task_weight=0.0)],
    pairs=[
        dict(
            student="outputs.logits",
            loss="SoftCrossEntropy",
            temperature=20.0,
            # The loss has a factor T^2 = 400, which the paper's has not.
            weight=1 / 400,
            name="soft",
        ),
    ],
)
