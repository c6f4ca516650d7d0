# Chen et al., NeurIPS 2017, on a dense detector: hint on the pyramid through 1x1 adapters,
# class-weighted soft loss, teacher-bounded regression. FCOS ResNet-101 -> ResNet-50 on COCO.
_base_ = ["mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", "../_base_/chen2017_pairs.py"]
distill = dict(
    teacher=dict(config="mmdet::fcos/fcos_r101-caffe_fpn_gn-head-1x_coco.py"),
)
