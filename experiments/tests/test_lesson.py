"""The blocks of the exercises, what the tour and its pictures share, and README's rows as drawn."""

import json
import re
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import delays
import test_delays as oracle

pictures = pytest.importorskip("experiments.lesson.pictures")  # it needs matplotlib
LESSON = Path(pictures.__file__).parent
BLOCKS = re.findall(r"```python\n(.*?)```", (LESSON / "EXERCISES.md").read_text(), re.S)
TOUR = {x["id"]: x["source"] for x in json.loads((LESSON / "tour.ipynb").read_text())["cells"]}
LEARN = "\n".join("".join(TOUR[name]) for name in ("c01", "c14", "c21")).partition("each =")[0]


def block_with(words):
    return next(block for block in BLOCKS if words in block)


def test_the_file_of_the_first_exercises_replaces_what_the_named_tests_test():
    replaced = SimpleNamespace()
    exec(block_with("def gaussian_kernel").replace("import delays\n", ""), {"delays": replaced})
    for name in ("gaussian_kernel", "conv_direct", "lif_loop"):
        own, usual = [signature(vars(part)[name]).parameters for part in (replaced, delays)]
        assert own.keys() == usual.keys()
    commands = re.findall(r"-p exercise -k (\w+)`", (LESSON / "EXERCISES.md").read_text())
    assert [word in " ".join(vars(oracle)) for word in commands] == [True] * 3


def test_the_schedules_do_what_the_answer_says(capsys):
    source = LEARN.replace("start=None", "rates=(0.3,) * 200, clamp=True, start=None")
    source = source.replace("sigmas, start)", "sigmas, rates, clamp)")
    source = source.replace("    for sigma in sigmas:\n", block_with("optimizer.param_groups"))
    source = re.sub(r"( +)(\w+\.clamp_delays)", r"\1if clamp: \2", source)
    exec(source, space := {})
    with pytest.raises(RuntimeError, match="out of bounds"):  # in the last line, without clamping
        exec(block_with("def total").replace("range(12)", "[9]"), space)
    *wrong, falling, still = map(int, capsys.readouterr().out.split()[-7:])
    assert falling == still == 4 and max(wrong) < 4


def test_the_picture_of_a_gradient_has_the_products_of_its_exercise(capsys):
    exec(block_with("products = ...").replace("= ...", "= 0\n" + block_with("rate = ")), own := {})
    off, sums = map(json.loads, capsys.readouterr().out.splitlines())
    assert abs(off) < 1e-7
    current, asked = own["current"][0, :, 0].detach(), own["asked"][0]
    slope = torch.nn.functional.pad(own["rate"], (int(own["sent"][0]), len(asked)))[: len(asked)]
    sums = 1e4 * torch.tensor([*sums, sum(sums)])
    wanted = (current, 100 * asked, slope / slope.abs().max(), 1e4 * asked * slope, sums)
    for axis, want in zip(pictures.gradient_figure().axes[::2], wanted, strict=True):
        oracle.close([bar.get_height() for bar in axis.patches], want, rtol=0, atol=1e-3)


def test_the_tour_trains_as_the_pictures_do():
    exec(LEARN, space := {})
    times, delay, *_ = pictures.by_hand(pictures.shrinking())
    assert torch.equal(space["after"], times + delay[-1].round())


def test_results_are_those_of_the_readme():
    pytest.importorskip("experiments.evidence.tables")  # it needs pandas and scipy
    readme = (LESSON.parents[1] / "README.md").read_text()
    drawn = [text.get_text() for text in pictures.results_figure().axes[0].texts]
    assert [text in readme for text in drawn] == [True] * 8
