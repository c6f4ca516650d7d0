# PSPNet ResNet-18 on Cityscapes as Liu et al. train it: crops of 512x512, 8 of them on one GPU,
# 40k steps, SGD with a learning rate of 0.01 that falls to 0. Augmentation and backbone are
# mmseg's.
#
# Their network has a stem of 64, 64 and 128 channels and an auxiliary head of 128: 13.07 M
# parameters. ImageNet weights made for the usual stem of 64 leave the stem, and what reads it, at
# random.
_base_ = "mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py"
# Their max pooling rounds sizes up, so a crop of 512 gives a map of 65x65, the size that the
# discriminator of their holistic term is made for; mmseg's rounds down, to 64x64. One row and one
# column of padding, 513 = 8 * 64 + 1, give their maps with mmseg's network as it is. The padding
# has no label, and is cut off again from a prediction. As in mmseg's configs for 769 = 8 * 96 + 1,
# corners are aligned at such a size.
# Whole images are 1024x2048. With images of several sizes (--tta), take the padding of test_cfg
# out: model.data_preprocessor.test_cfg=None.
crop_size = (512, 512)
data_preprocessor = dict(size=(513, 513), test_cfg=dict(size=(1025, 2049)))
# Their cross-entropy is a mean over the labelled pixels; mmseg's, as it comes, over all.
labelled_mean = dict(avg_non_ignore=True)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(stem_channels=128),
    decode_head=dict(align_corners=True, loss_decode=labelled_mean),
    auxiliary_head=dict(channels=128, align_corners=True, loss_decode=labelled_mean),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(batch_size=8, num_workers=4, dataset=dict(pipeline=train_pipeline))
max_iters = 40000
train_cfg = dict(max_iters=max_iters, val_interval=4000)
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=max_iters, by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=4000))
