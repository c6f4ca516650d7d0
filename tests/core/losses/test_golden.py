"""Every value known from the published codes, and from the formulas where the papers differ.

`golden.json` has the values, computed by the reference codes in float32 on the inputs of the
fixtures. Each is reproduced here from this package's functions alone, the factor between the two
normalisations written out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from taskdistill.core import losses as L

GOLDEN: dict[str, float] = json.loads((Path(__file__).parent / "golden.json").read_text())

Inputs = dict[str, Tensor]


def fsp(x: Inputs, pooling: str) -> Tensor:
    pairs = (x["fs"], x["f2s"]), (x["ft"], x["f2t"])
    return L.fsp(*pairs, pooling=pooling, reduction="mean")  # type: ignore


def rkd(x: Inputs) -> Tensor:
    distance = L.rkd_distance(x["es"], x["et"], pairs="all")
    return 25 * distance + 50 * L.rkd_angle(x["es"], x["et"], triplets="all")


def edges(x: Inputs) -> tuple[Tensor, Tensor]:
    return x["bs"], x["bt"]


def byot_features(x: Inputs, everywhere: bool) -> Tensor:
    """Every element a position of its own: those where either side is active are summed."""
    active = (x["fs"] > 0) | (x["ft"] > 0) | everywhere
    flat = (tensor.reshape(-1, 1) for tensor in (x["fs"], x["ft"]))
    return L.feature_imitation(*flat, mask=active.flatten(), total=1.0)


def detached_norm(x: Inputs) -> Tensor:
    """How far the gradient of the published code is from that of its value."""
    student = x["hs"].clone().requires_grad_()
    grads = []
    for norm in ("detached", "exact"):
        value = L.pair_wise(student, x["ht"], pooling="max", norm=norm)  # type: ignore
        grads.append(torch.autograd.grad(value, student)[0])
    return (grads[0] - grads[1]).norm() / grads[1].norm()


def boxes(x: Inputs, margin: float) -> Tensor:
    return L.bounded_regression(x["rs"], x["rt"], x["yb"], margin=margin)


CASES: dict[str, tuple[float, Callable[[Inputs], Tensor]]] = {
    # Classifiers: tolerance and how the value is made.
    "cls: checksum ls.sum": (1e-6, lambda x: x["ls"].sum()),
    "cls: checksum et.sum": (1e-6, lambda x: x["et"].sum()),
    **dict.fromkeys(
        [
            "cls: KD RepDistiller DistillKL(4)",
            "cls: KD mdistiller kd_loss T4",
            "cls: KD zoo SoftTarget(4)",
        ],
        (1e-6, lambda x: L.kl_div(x["ls"], x["lt"], temperature=4)),
    ),
    "cls: KD szagoruyko distillation alpha=.9 T4 (with CE .1)": (
        1e-6,
        lambda x: L.cross_entropy_kl_div(x["ls"], x["lt"], x["y"], alpha=0.9, temperature=4),
    ),
    # Dividing by the classes as well is the bug that the number stands for.
    "cls: KD F.kl_div reduction=mean * T^2 (BUG variant)": (
        1e-6,
        lambda x: L.kl_div(x["ls"], x["lt"], temperature=4) / 10,
    ),
    "cls: soft CE  E(-p_t log p_s) T=1 (lecture)": (
        1e-6,
        lambda x: L.soft_cross_entropy(x["ls"], x["lt"]),
    ),
    "cls: KL T=1": (1e-6, lambda x: L.kl_div(x["ls"], x["lt"])),
    "cls: teacher entropy T=1": (1e-6, lambda x: L.soft_cross_entropy(x["lt"], x["lt"])),
    "cls: L2 logits: F.mse_loss(zs,zt) (zoo Logits)": (
        1e-6,
        lambda x: L.l2_logits(x["ls"], x["lt"]) * 2 / 10,
    ),
    "cls: L2 logits: Ba&Caruana 1/2 ||.||^2 mean over batch": (
        1e-6,
        lambda x: L.l2_logits(x["ls"], x["lt"]),
    ),
    "cls: L2 probs (lecture E||p_t-p_s||^2)": (
        1e-6,
        lambda x: L.l2_logits(x["ls"], x["lt"], space="probs"),
    ),
    **dict.fromkeys(
        [
            "cls: AT szagoruyko at_loss",
            "cls: AT RepDistiller",
            "cls: AT mdistiller",
            "cls: AT zoo AT(2)",
        ],
        (1e-5, lambda x: L.attention_transfer(x["fs"], x["ft"], form="code")),
    ),
    "cls: AT paper eq2 (norm, mean over batch, no 1/2)": (
        1e-5,
        lambda x: L.attention_transfer(x["fs"], x["ft"]),
    ),
    "cls: AT sum-of-squares mean over batch": (
        1e-5,
        lambda x: L.attention_transfer(x["fs"], x["ft"], form="code") * 64,
    ),
    **dict.fromkeys(
        ["cls: NST RepDistiller", "cls: NST mdistiller", "cls: NST zoo"],
        (1e-5, lambda x: L.neuron_selectivity(x["fs"], x["ft"])),
    ),
    'cls: NST linear kernel (lecture "dot product")': (
        1e-5,
        lambda x: L.neuron_selectivity(x["fs"], x["ft"], kernel="linear"),
    ),
    "cls: FT zoo / paper (flatten+L2norm, L1 mean)": (
        1e-5,
        lambda x: L.factor_transfer(x["fs"], x["ft"], form="code"),
    ),
    "cls: FT RepDistiller FactorTransfer(p1=2,p2=1) (attention-style)": (
        1e-5,
        lambda x: L.factor_transfer(x["fs"], x["ft"], form="attention"),
    ),
    "cls: AB RepDistiller 1 layer (sum/B*3/1000)": (
        1e-6,
        lambda x: L.activation_boundaries(x["fs"], x["ft"]) * 64 * 3 / 1000,
    ),
    "cls: AB zoo AB(1.0) (mean)": (
        1e-6,
        lambda x: L.activation_boundaries(x["fs"], x["ft"]) / 6,
    ),
    "cls: AB true boundary disagreement rate": (
        1e-6,
        lambda x: L.boundary_disagreement(x["fs"], x["ft"]),
    ),
    "cls: FSP RepDistiller [fs,f2s] vs [ft,f2t]": (1e-5, lambda x: fsp(x, "avg")),
    "cls: FSP zoo": (1e-5, lambda x: fsp(x, "avg")),
    "cls: FSP max-pool variant, mse": (1e-5, lambda x: fsp(x, "max")),
    "cls: RKD lenscloth RkdDistance": (
        1e-5,
        lambda x: L.rkd_distance(x["es"], x["et"], pairs="all"),
    ),
    "cls: RKD lenscloth RKdAngle": (
        1e-5,
        lambda x: L.rkd_angle(x["es"], x["et"], triplets="all"),
    ),
    **dict.fromkeys(
        ["cls: RKD RepDistiller 25*D+50*A", "cls: RKD mdistiller", "cls: RKD zoo(25,50)"],
        (1e-5, rkd),
    ),
    "cls: RKD lecture psi squared, pdist mean-normalised huber (n(n-1)/2)": (
        1e-5,
        lambda x: L.rkd_distance(x["es"], x["et"], squared=True),
    ),
    "cls: RKD distance, off-diagonal pairs only": (
        1e-5,
        lambda x: L.rkd_distance(x["es"], x["et"]),
    ),
    # Dense prediction.
    "dense: SKD CriterionPixelWise (sum over N,H,W of CE / (H*W))": (
        1e-5,
        lambda x: 2 * L.pixel_wise(x["ps"], x["pt"], divergence="cross_entropy"),
    ),
    "dense: = N * mean-pixel CE": (
        1e-5,
        lambda x: 2 * L.pixel_wise(x["ps"], x["pt"], divergence="cross_entropy"),
    ),
    "dense: paper: mean pixel KL(q_s||q_t)? as written sum/(W*H) [KL(qs||qt)]": (
        1e-5,
        lambda x: L.pixel_wise(x["ps"], x["pt"]),
    ),
    "dense: KL(q_t||q_s) mean pixel": (
        1e-5,
        lambda x: L.pixel_wise(x["ps"], x["pt"], divergence="teacher_student"),
    ),
    "dense: SKD pair-wise scale=.5 (max-pool to 2x2, C 32 vs 48)": (
        1e-4,  # a small difference of large numbers, whose products processors round otherwise
        lambda x: L.pair_wise(x["hs"], x["ht"], patch=8, pooling="max"),
    ),
    "dense: SKD pair-wise scale=1/8 (8x8 nodes)": (
        1e-5,
        lambda x: L.pair_wise(x["hs"], x["ht"], patch=2, pooling="max"),
    ),
    "dense: SKD sim_dis_compute no pooling (16x16 nodes)": (
        1e-5,
        lambda x: L.pair_wise(x["hs"], x["ht"], norm="detached"),
    ),
    "dense: = mean((cos-cos)^2)": (1e-5, lambda x: L.pair_wise(x["hs"], x["ht"])),
    "dense: grad rel diff (norm detached in ref)": (1e-4, detached_norm),
    "dense: LD ref elementwise mean (T=10, mean over 17 bins, *100)": (
        1e-5,
        lambda x: L.localization_distillation(*edges(x)) / 17,
    ),
    "dense: LD ref head reduction: 0.25*sum(l*w4)/4": (
        1e-5,
        lambda x: 0.25 / 17 * L.localization_distillation(*edges(x), weight=x["bw"], total=1),
    ),
    "dense: proper KL (sum over bins) mean": (
        1e-5,
        lambda x: L.localization_distillation(*edges(x)),
    ),
    # Self-distillation, detection, adversarial, transformers.
    # ONE's code adds 1e-7 to the teacher's probabilities.
    "extra: ONE KLLoss (T=3, +1e-7)": (
        1e-5,
        lambda x: L.kl_div(x["ls"], x["lt"], temperature=3),
    ),
    "extra: exact T=3 KL*T^2 batchmean": (
        1e-6,
        lambda x: L.kl_div(x["ls"], x["lt"], temperature=3),
    ),
    "extra: BYOT luanyunteng kd_loss_function*T^2 (CE form, T=3)": (
        1e-5,
        lambda x: L.soft_cross_entropy(x["ls"], x["lt"], temperature=3),
    ),
    "extra: = T^2*(KL+H(t)) check": (
        1e-5,
        lambda x: (
            L.kl_div(x["ls"], x["lt"], temperature=3)
            + L.soft_cross_entropy(x["lt"], x["lt"], temperature=3)
        ),
    ),
    "extra: BYOT feature_loss_function(fs,ft) (masked sum)": (
        1e-5,
        lambda x: byot_features(x, everywhere=False),
    ),
    "extra: unmasked sum": (1e-5, lambda x: byot_features(x, everywhere=True)),
    "extra: DML KL(peer||self) T=1 batchmean": (1e-6, lambda x: L.kl_div(x["ls"], x["lt"])),
    "extra: DML lecture-literal KL(S,T)=KL(p_s||p_t)": (
        1e-6,
        lambda x: L.kl_div(x["lt"], x["ls"]),
    ),
    "extra: Chen17 weighted soft CE (class 0=bg w=1.5), mean over boxes": (
        1e-6,
        lambda x: L.weighted_soft_cross_entropy(x["ls"], x["lt"]),
    ),
    "extra: Chen17 L_b per-box m=0.0, mean over 16 boxes": (1e-6, lambda x: boxes(x, 0.0)),
    "extra: Chen17 L_b per-box m=0.5, mean over 16 boxes": (1e-6, lambda x: boxes(x, 0.5)),
    **{
        f"extra: GC GANLoss {name} {side}": (1e-6, made)
        for name, objective in {
            "lsgan": "lsgan",
            "vanilla": "vanilla",
            "hinge": "hinge",
            "wgangp": "wgan",
        }.items()
        for side, made in {
            "D-real": lambda x, o=objective: L.discriminator_loss(x["gan"], None, objective=o),
            "D-fake": lambda x, o=objective: L.discriminator_loss(None, x["gan"], objective=o),
            "G": lambda x, o=objective: L.generator_loss(x["gan"], objective=o),
        }.items()
    },
    "extra: MobileBERT FMT: mse(LN(hs),LN(ht)) (no affine)": (
        1e-5,
        lambda x: L.hidden_state_transfer(x["hs_"], x["ht_"], normalize="layer_norm"),
    ),
    "extra: raw mse (paper, no LN)": (
        1e-5,
        lambda x: L.hidden_state_transfer(x["hs_"], x["ht_"]),
    ),
    "extra: MobileBERT AT: CE form (google code)": (
        1e-5,
        lambda x: L.attention_map(x["as_"], x["at"], form="scores", divergence="cross_entropy"),
    ),
    "extra: MobileBERT AT: KL (paper)": (
        1e-5,
        lambda x: L.attention_map(x["as_"], x["at"], form="scores"),
    ),
}


@pytest.fixture
def inputs(
    golden_cls: Inputs, golden_extra: Inputs, golden_dense: Inputs, golden_gan: Tensor,
    golden_bert: Inputs,
) -> Inputs:  # fmt: skip
    g = torch.Generator().manual_seed(0)
    edges = {"bs": torch.randn(5, 68, generator=g), "bt": torch.randn(5, 68, generator=g)}
    edges["bw"] = torch.rand(5, generator=g)
    for name in ("ls", "lt", "fs", "ft"):
        assert torch.equal(golden_cls[name], golden_extra[name])
    # hs and ht are two things: segmentation features, and (with a bar) hidden states.
    bert = {f"{name}_" if name in ("hs", "ht") else name: t for name, t in golden_bert.items()}
    return golden_extra | golden_cls | golden_dense | bert | edges | {"gan": golden_gan}


def test_every_known_value_is_checked():
    assert set(CASES) == set(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_known_value(name: str, inputs: Inputs):
    tolerance, compute = CASES[name]
    assert compute(inputs).item() == pytest.approx(GOLDEN[name], rel=tolerance)
    # In float64 what is left is the reference's own rounding: the value is not right by chance.
    doubles = {k: t.double() if t.is_floating_point() else t for k, t in inputs.items()}
    value = compute(doubles)
    assert value.dtype == torch.float64 or "disagreement" in name
    assert value.item() == pytest.approx(GOLDEN[name], rel=max(tolerance, 2e-6))
