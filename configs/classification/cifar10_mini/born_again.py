# Born-again networks (Furlanello et al. 2018): labels and the generation before, at temperature 1.
# Each generation in turn: python tools/born_again.py CONFIG --generations 2
_base_ = "student.py"
distill = dict(
    pairs=[dict(student="outputs.logits", loss="KLDivergence", temperature=1.0)],
)
compare = dict(command="tools/born_again.py", arguments=["--generations", "2"])
