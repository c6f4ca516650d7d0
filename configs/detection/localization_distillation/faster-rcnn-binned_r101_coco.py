# Faster R-CNN ResNet-101 whose second stage regresses distributions over bins: the teacher of
# ld_faster-rcnn-binned-r18_faster-rcnn-binned-r101_coco.py. Nobody has published weights of it;
# train this first.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py"
custom_imports = dict(imports=["taskdistill.tasks.detection"], allow_failed_imports=False)
model = dict(roi_head=dict(bbox_head=dict(type="BinnedShared2FCBBoxHead")))
