# Localization distillation in both regions and class distillation in the main one, as in the
# authors' code (Zheng et al., CVPR 2022), its normalisers included.
#
# Theirs are means over the n + 1 = 17 bins, or the 80 classes, and sums over positions and edges,
# divided by 4 (main) or 16 (VLR) whatever the number of positions. Here a loss is a sum over bins
# and a mean over the 4 edges, so that avg_factor=1 and these weights give their values:
#   LD, main:  0.25 / 17            LD, VLR:  0.25 * (4 / 16) / 17            KD, main:  10 / 80
# Both sums of LD grow with the batch; the authors train with 2 or 3 images a GPU and advise against
# more. Without avg_factor a term is the mean over its region, whatever the batch: at 3 images with
# some 100 positives of mean score 0.3 and 400 valuable anchors of mean IoU 0.3, a weight of 0.45
# for both comes to the same.
ld = dict(
    student="outputs.box_bins",
    loss="LocalizationDistillation",
    temperature=10.0,
    region="main_score",
    weight=0.25 / 17,
    avg_factor=1.0,
    name="ld",
)
ld_vlr = dict(
    student="outputs.box_bins",
    loss="LocalizationDistillation",
    temperature=10.0,
    region="vlr_iou",
    weight=0.25 * (4 / 16) / 17,
    avg_factor=1.0,
    name="ld_vlr",
)
kd = dict(
    student="outputs.cls",
    loss="KLDivergence",
    temperature=2.0,
    region="main",
    weight=10 / 80,
    name="kd",
)
distill = dict(pairs=[ld, ld_vlr, kd])
