# The schedule of NetAug (Cai et al. 2022, and the authors' scripts): 5 epochs of warm-up and 150 of
# cosine; SGD with Nesterov momentum, 0.4 for 16 x 128 images (other batch sizes scale
# it), no weight decay on biases and norms. What is evaluated and saved has the statistics of 16,000
# training images.
_base_ = "default.py"
warmup, cosine = 5, 150
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=warmup + cosine, val_interval=1)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.4, momentum=0.9, nesterov=True, weight_decay=4e-5),
    paramwise_cfg=dict(bias_decay_mult=0.0, norm_decay_mult=0.0),
)
param_scheduler = [
    # From the learning rate of one process to that of all.
    dict(
        type="LinearLR",
        start_factor=1 / 16,
        begin=0,
        end=warmup,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        T_max=cosine,
        eta_min=0.0,
        begin=warmup,
        end=warmup + cosine,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=True, base_batch_size=2048)
default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(save_best="accuracy/top1", rule="greater"),
)
custom_hooks = [dict(type="RecalibrateHook", batches=125)]
