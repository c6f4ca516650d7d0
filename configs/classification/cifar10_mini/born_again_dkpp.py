# Born-again networks, DKPP: the teacher's probabilities, all but the largest permuted.
_base_ = "born_again.py"
distill = dict(pairs=[dict(student="outputs.logits", loss="PermutedDarkKnowledge")])
