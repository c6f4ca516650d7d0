# The student of the maps table with its teacher, by GAN compression: the ground truth (the
# student's own term), the four layers, the teacher's most important channels and its
# discriminator to begin with.
_base_ = "student.py"
distill = dict(
    teacher=dict(
        config="configs/gan/maps/teacher.py",
        checkpoint="work_dirs/demo/maps/teacher/epoch_12.pth",
    ),
    init=dict(generator="teacher", discriminator="teacher"),
    pairs=[
        dict(student="generator.model.9", loss="FeatureImitation", weight=1.0, name="down"),
        dict(student="generator.model.12", loss="FeatureImitation", weight=1.0, name="third_1"),
        dict(student="generator.model.15", loss="FeatureImitation", weight=1.0, name="third_2"),
        dict(student="generator.model.18", loss="FeatureImitation", weight=1.0, name="third_3"),
    ],
)
