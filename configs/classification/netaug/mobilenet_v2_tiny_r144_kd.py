# NetAug and distillation together: the base and the wider network of each step both learn from a
# ResNet-50 of torchvision, beside their labels.
_base_ = "mobilenet_v2_tiny_r144.py"
distill = dict(
    teacher=dict(
        network=dict(type="torchvision", name="resnet50", num_classes=1000, weights="DEFAULT"),
        # It was trained on 224 pixels.
        scale=224 / 144,
    ),
    pairs=[
        dict(student="outputs.logits", loss="KLDivergence", temperature=1.0, name="kd"),
        dict(
            student="outputs.aug_logits",
            teacher="outputs.logits",
            loss="KLDivergence",
            temperature=1.0,
            name="aug_kd",
        ),
    ],
)
