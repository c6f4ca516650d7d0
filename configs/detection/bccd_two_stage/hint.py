# The student of the two-stage BCCD table, distilled by the hint of Chen et al. (NeurIPS 2017).
_base_ = ["student.py", "../_base_/bccd_two_stage_pairs.py"]
distill = dict(pairs=[{{_base_.hint}}])
