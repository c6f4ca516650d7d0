# The unpaired demo's student with its teacher: one thin generator, no cycle; the teacher's image
# is the target. Generator and discriminator begin from the teacher's.
_base_ = "student.py"
model = dict(type="ImageTranslator")
distill = dict(
    teacher=dict(
        config="configs/gan/restyle/teacher.py",
        checkpoint="work_dirs/demo/restyle/teacher/epoch_6.pth",
    ),
    init=dict(generator="teacher", discriminator="teacher"),
    probe_size=32,
    pairs=[
        dict(student="outputs.image", loss="Reconstruction", weight=10.0, name="image"),
        dict(student="generator.model.9", loss="FeatureImitation", weight=0.1, name="down"),
        dict(student="generator.model.11", loss="FeatureImitation", weight=0.1, name="third"),
        dict(student="generator.model.15", loss="FeatureImitation", weight=0.1, name="blocks"),
    ],
)
