# ATSS ResNet-101 whose box regression is a distribution over bins: the teacher of
# ld_atss-binned-r18_atss-binned-r101_coco.py. Nobody has published weights of it; train this first.
_base_ = "mmdet::atss/atss_r101_fpn_1x_coco.py"
custom_imports = dict(imports=["taskdistill.tasks.detection"], allow_failed_imports=False)
model = dict(bbox_head=dict(type="BinnedATSSHead"))
