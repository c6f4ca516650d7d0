import copy

import pytest
import torch
from mmengine.config import Config

from taskdistill.core.errors import ConfigError
from taskdistill.tasks.detection import DenseHeadAdapter, DetectionAdapter
from taskdistill.tasks.openmm.adapter import TASK_ADAPTERS, adapter_of_scope, task_of


def test_scope_finds_its_task():
    assert adapter_of_scope("mmdet") is DetectionAdapter
    assert TASK_ADAPTERS.get("mmdet") is DetectionAdapter


def test_unknown_scope_says_which_exist():
    with pytest.raises(ConfigError, match="mmaction.*mmdet"):
        adapter_of_scope("mmaction")


def test_unknown_names_are_answered_with_near_ones(tiny):
    task = DenseHeadAdapter(tiny.build(tiny.model()), {})
    task.check_names(task.outputs, task.regions)
    with pytest.raises(ConfigError, match=r"no output 'boxbins'. Did you mean 'box_bins'"):
        task.check_names(["boxbins"], [])
    with pytest.raises(ConfigError, match=r"no region 'mian'. Did you mean 'main'.*Known: all:"):
        task.check_names([], ["mian"])


def test_a_copy_has_its_own_student_and_the_same_teachers(tiny):
    student, teacher = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    task = DenseHeadAdapter(student, {"teacher": teacher})
    copied = copy.deepcopy({"model": student, "task": task})
    assert copied["task"].student is copied["model"] is not student
    assert copied["task"].teachers["teacher"] is teacher


def test_a_config_names_its_task_or_its_library():
    assert task_of(Config(dict(default_scope="mmseg"))) == "mmseg"
    assert task_of(Config(dict(task="gan", default_scope="mmengine"))) == "gan"
    assert task_of(Config()) is None


def test_a_task_that_knows_no_way_to_begin_from_a_teacher_says_so(tiny):
    task = DenseHeadAdapter(tiny.build(tiny.model()), {}, probe_size=96)
    assert task.probe().shape == (1, 3, 96, 96) and not task.probe().any()
    task.check_init({}, {})
    with pytest.raises(ConfigError, match="knows no way to begin from a teacher's weights"):
        task.check_init(dict(generator="teacher"), {})
