from __future__ import annotations

import math
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.common.demo import DemoTask, Metric
from taskdistill.tasks.common.demo.comparison import (
    Outcome,
    class_table,
    make_roles,
    quantity,
    results_table,
    seeds_table,
    summary_sentence,
)

QUALITY = Metric("quality", "quality")
SEVERAL = {"first": "+ first", "second": "+ second", "both": "+ both"}


def outcome(
    teacher: float, alone: list[float], distilled: list[float], *more: list[float]
) -> Outcome:
    """An outcome with one variant, or as many as there are lists of figures."""
    roles = make_roles(SEVERAL if more else DemoTask.variants)
    figures = dict(zip([r.name for r in roles], [[teacher], alone, distilled, *more], strict=True))
    students = [role.name for role in roles[1:]]
    return Outcome(
        roles=roles,
        metrics=[QUALITY],
        scores={role: {"quality": values} for role, values in figures.items()},
        parameters={"teacher": 3_140_000} | dict.fromkeys(students, 220_000),
        macs={"teacher": 10**9} | dict.fromkeys(students, 10**8),
        latency={"teacher": 20.0} | dict.fromkeys(students, 5.04),
        seconds={"teacher": 900.0, "alone": 100.0}
        | {name: 150.0 + 10 * i for i, name in enumerate(students[1:])},
    )


def test_table():
    table = results_table(outcome(0.4, [0.1, 0.3], [0.25, 0.25]))
    assert table.columns[-2:] == ["CPU latency", "gap recovered (quality)"]
    assert table.rows[0] == ["teacher", "0.400", "3.14 M", "1.00 G", "20.0 ms", ""]
    assert table.rows[1][1] == "0.200 ± 0.141"
    assert table.rows[2] == [
        "student distilled",
        "0.250 ± 0.000",
        "220 k",
        "100 M",
        "5.0 ms",
        "25 %",
    ]
    assert table.strong == 2


def test_table_of_several_variants():
    table = results_table(outcome(0.4, [0.2], [0.1], [0.3], [0.25]))
    assert [row[0] for row in table.rows] == ["teacher", "student alone", *SEVERAL.values()]
    assert table.columns[-2:] == ["time (alone = 1)", "gap recovered (quality)"]
    assert [row[-2:] for row in table.rows] == [
        ["", ""],
        ["1.00", ""],
        ["1.50", "-50 %"],
        ["1.60", "50 %"],
        ["1.70", "25 %"],
    ]
    assert table.strong == 3


def test_the_best_is_the_first_of_equals_and_never_a_failure():
    assert outcome(0.4, [0.2], [0.1], [0.3], [0.3]).best.name == "second"
    assert outcome(0.4, [0.2], [math.nan], [0.1], [0.1]).best.name == "second"
    # By the mean, not by the best seed.
    assert outcome(0.4, [0.2], [0.5, 0.0], [0.3, 0.3], [0.1, 0.1]).best.name == "second"


@pytest.mark.parametrize(
    ("teacher", "distilled", "said"),
    [(0.4, 0.3, "recovers 50 % of the gap"), (0.4, 0.1, "did not help"), (0.1, 0.3, "no gap")],
)
def test_summary_says_what_came_out(teacher, distilled, said):
    text = summary_sentence(outcome(teacher, [0.2], [distilled]), "12 epochs", 1)
    assert said in text
    assert "means over" not in text
    assert "0.200 quality" in text


@pytest.mark.parametrize(
    ("teacher", "distilled", "said"),
    [
        (0.4, 0.3, "recovers 50 % of the gap between student alone and teacher."),
        (0.4, 0.2, ": here no variant helped."),
        (0.4, 0.1, ": here no variant helped."),
        (0.1, 0.3, "no gap"),
    ],
)
def test_summary_names_the_best_of_several(teacher, distilled, said):
    text = summary_sentence(outcome(teacher, [0.2], [0.05], [distilled], [0.05]), "12 epochs", 3)
    assert f"the best of 3 distilled variants, “+ second”, reaches {distilled:.3f}" in text
    assert f"the teacher, which has 3.14 M parameters, reaches {teacher:.3f}" in text
    assert "means over 3 seeds" in text
    assert said in text


def test_classes():
    found = replace(
        outcome(50.0, [40.0, 42.0], [45.0, 45.0]),
        class_metrics=[Metric("IoU.sky", "sky", digits=2), Metric("IoU.sea", "sea", digits=1)],
        class_scores={
            "teacher": {"IoU.sky": [90.0], "IoU.sea": [None]},
            "alone": {"IoU.sky": [80.0, 82.0], "IoU.sea": [None, 1.25]},
            "distilled": {"IoU.sky": [85.0, 85.0], "IoU.sea": [2.0, 4.0]},
        },
    )
    table = class_table(found)
    assert table.columns == ["class", "teacher", "student alone", "student distilled"]
    assert table.rows == [
        ["sky", "90.00", "81.00 ± 1.41", "85.00 ± 0.00"],
        ["sea", "n/a", "1.2", "3.0 ± 1.4"],
    ]


def test_seeds():
    table = seeds_table(outcome(0.4, [0.2, 0.3], [0.25, 0.4]))
    assert table.columns == ["seed", "alone, quality", "distilled, quality", "gap recovered"]
    assert table.rows == [["0", "0.200", "0.250", "25 %"], ["1", "0.300", "0.400", "100 %"]]
    table = seeds_table(outcome(0.4, [0.2, 0.3], [0.25, 0.4], [0.1, 0.1], [0.5, 0.6]))
    assert table.columns[1:] == [f"{label}, quality" for label in ("alone", *SEVERAL.values())]
    assert table.rows[1] == ["1", "0.300", "0.400", "0.100", "0.600"]


def test_roles_can_be_told_apart():
    roles = make_roles({f"method_{i}": f"method {i}" for i in range(15)})
    assert [role.name for role in roles[:3]] == ["teacher", "alone", "method_0"]
    assert [role.distilled for role in roles[:3]] == [False, False, True]
    assert [role.config for role in roles[:3]] == ["teacher.py", "student.py", "method_0.py"]
    other = make_roles({"distilled": "distilled"}, {"found": "found"}, ".yaml")
    assert [role.config for role in other] == ["teacher.yaml", "student.yaml", "distilled.yaml", ""]
    assert len({(role.colour, role.style) for role in roles}) == len(roles)


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ({}, "at least one"),
        ({"teacher": "x"}, "which are taken"),
        ({"student": "x"}, "which are taken"),
        ({"a-0": "x"}, "letters, digits and underscores"),
        ({"a": "x", "b": "x"}, "label 'x' occurs twice"),
        ({"a": "student alone"}, "occurs twice"),
    ],
)
def test_variants_that_cannot_be_told_apart_are_refused(variants, said):
    with pytest.raises(ConfigError, match=said):
        make_roles(variants)


def test_quantity_rounds_over_the_border():
    assert quantity(999) == "999"
    assert quantity(999_999) == quantity(1_000_000) == "1.00 M"
    assert quantity(9_996) == "10.0 k"


def test_of_a_distance_the_lowest_is_best():
    metric = Metric("distance", "distance", digits=1, lower_is_better=True)
    roles = make_roles({"near": "near", "far": "far"}, {"nearest": "nearest"})
    figures = dict(teacher=[10.0], alone=[60.0], near=[30.0], far=[80.0], nearest=[20.0])
    names = [role.name for role in roles]
    made = Outcome(
        roles=roles,
        metrics=[metric],
        scores={name: {"distance": figures[name]} for name in names},
        parameters=dict.fromkeys(names, 1),
        macs=dict.fromkeys(names, 1),
        latency=dict.fromkeys(names, 1.0),
        seconds=dict.fromkeys(names, 1.0),
    )
    assert made.best.name == "nearest" and made.best.config == ""
    assert [made.gap(name, metric) for name in ("near", "far", "nearest")] == [0.6, -0.4, 0.8]
    assert "recovers 80 % of the gap" in summary_sentence(made, "2 epochs", 1)
