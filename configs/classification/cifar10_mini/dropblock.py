# A baseline: DropBlock (Ghiasi et al. 2018) after the last two stages.
_base_ = "student.py"
model = dict(drops=[dict(type="DropBlock", p=0.1, block_size=3, at=["layer2", "layer3"])])
