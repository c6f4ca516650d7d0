# FCOS ResNet-101 whose distances are distributions over bins: the teacher of
# ld_fcos-binned-r50_fcos-binned-r101_coco.py. Nobody has published weights of it; train this first.
_base_ = "mmdet::fcos/fcos_r101-caffe_fpn_gn-head-1x_coco.py"
custom_imports = dict(imports=["taskdistill.tasks.detection"], allow_failed_imports=False)
model = dict(bbox_head=dict(type="BinnedFCOSHead"))
