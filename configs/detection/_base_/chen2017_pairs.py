# Chen et al., NeurIPS 2017, on a dense detector. The paper halves the hard class loss beside the
# soft one (mu = 0.5); here it keeps its weight: the soft one is of the positives alone.
distill = dict(
    pairs=[
        dict(student="neck", loss="Hint", adapter="conv1x1", weight=0.5),
        dict(
            student="outputs.cls",
            loss="WeightedSoftCrossEntropy",
            activation="sigmoid",
            region="main",
            weight=0.5,
        ),
        dict(student="outputs.box", loss="BoundedRegression", region="main", weight=0.5),
    ],
)
