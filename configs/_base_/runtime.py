# What the runs of all tasks share: loops, hooks, logs, a seed.
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=20),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(vis_backends=vis_backends, name="visualizer")
log_processor = dict(
    type="LogProcessor",
    window_size=20,
    by_epoch=True,
    # Raw distillation terms smoothed like the losses.
    mean_pattern=r".*(loss|time|data_time|grad_norm|_raw).*",
)
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=0)
