# The demo's student with its teacher: the map behind the down-sampling, and those after two and
# six of the residual blocks; generator and discriminator begin from the teacher's.
_base_ = "student.py"
distill = dict(
    teacher=dict(
        config="configs/gan/demo/teacher.py",
        checkpoint="work_dirs/demo/gan/teacher/epoch_6.pth",
    ),
    init=dict(generator="teacher", discriminator="teacher"),
    probe_size=32,
    pairs=[
        dict(student="generator.model.9", loss="FeatureImitation", weight=0.1, name="down"),
        dict(student="generator.model.11", loss="FeatureImitation", weight=0.1, name="third"),
        dict(student="generator.model.15", loss="FeatureImitation", weight=0.1, name="blocks"),
        dict(student="outputs.image", loss="Reconstruction", weight=10.0, name="image"),
    ],
)
