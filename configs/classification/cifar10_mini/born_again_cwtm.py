# Born-again networks, CWTM: labels alone, each image weighed by its teacher's confidence.
_base_ = "born_again.py"
distill = dict(
    task_weights=dict(loss_cls=0.0),
    pairs=[dict(student="outputs.logits", loss="ConfidenceWeightedCrossEntropy")],
)
