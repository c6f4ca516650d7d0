# The student of the BCCD table, imitating general instances (Dai et al., CVPR 2021).
_base_ = ["student.py", "../_base_/bccd_pairs.py"]
distill = dict(pairs=[{{_base_.gi}}])
