# The same in both regions: the positives, and the valuable ones around them.
_base_ = ["student.py", "../_base_/bccd_pairs.py"]
distill = dict(pairs=[{{_base_.ld}}, {{_base_.ld_vlr}}])
