# The student of the BCCD table, learning the patterns of channels (Cao et al., NeurIPS 2022).
_base_ = ["student.py", "../_base_/bccd_pairs.py"]
distill = dict(pairs=[{{_base_.pkd}}])
