# What all image translators share: Adam at 2e-4 with beta1 = 0.5 for both players, as in the
# releases of pix2pix and CycleGAN, a checkpoint an epoch, and the loops.
_base_ = "../../_base_/runtime.py"
task = "gan"
default_scope = "mmengine"
custom_imports = dict(imports=["taskdistill.tasks.gan"], allow_failed_imports=False)
optimizer = dict(type="Adam", lr=2e-4, betas=(0.5, 0.999))
optim_wrapper = dict(
    constructor="GanOptimWrapperConstructor",
    generator=dict(optimizer=optimizer),
    discriminator=dict(optimizer=optimizer),
)
visualizer = dict(type="Visualizer")
