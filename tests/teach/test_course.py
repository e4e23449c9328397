"""Self-checks: what they say to right, wrong, missing and odd answers; and the exercises of the notebooks."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lrp.build import editions
from lrp.teach import course

REAL = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("0[1-6]_*.ipynb"))


def number(answer, right=0.62575, digits=3, **options):
    return course.check("9.1", answer, course.digest("9.1", right, digits), digits=digits, hint="Think.", **options)


@pytest.mark.parametrize(
    "answer", [0.62575, 0.6255, 0.6264, np.float32(0.626), torch.tensor(0.6258), "0.626", torch.tensor([0.6258])]
)
def test_a_number_within_one_unit_of_its_last_digit_is_right(answer):
    assert number(answer).state == "right"


@pytest.mark.parametrize("answer", [0.6278, 0.6239, 0.0, -0.62575, 6.2575, 1e30])
def test_another_number_is_wrong_and_gets_the_hint(answer):
    assert number(answer).state == "wrong"
    assert "Think." in number(answer).text


@pytest.mark.parametrize(("right", "answer"), [(-0.5, -0.5000001), (0.0, 0.0), (1.0, 0.9999), (0.9999, 1.0)])
def test_rounding_does_not_decide(right, answer):
    assert number(answer, right).state == "right"


@pytest.mark.parametrize("answer", [..., None, [..., 1.0], {"a": ...}, (1, None)])
def test_a_missing_answer_is_not_yet(answer):
    verdicts = [number(answer), course.holds("9.1", answer, {"is true": bool}, hint="Think.")]
    assert [(v.state, v.text) for v in verdicts] == [("not yet", "Think.")] * 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [("many", "a str is none"), ([1, 2], "a list is none"), (torch.ones(2), "shape (2,)"), (float("nan"), "not nan")],
)
def test_an_answer_of_another_kind_gets_a_sentence(answer, said):
    assert number(answer).state == "wrong"
    assert said in number(answer).text


def test_choices():
    def say(answer, right="top"):
        digest = course.digest("9.2", right)
        return course.check("9.2", answer, digest, options=("left", "top", "bottom"), hint="Look.")

    assert say("top").state == "right"
    assert say("left").state == "wrong"
    assert say(["top", "left"], {"left", "top"}).state == "right"
    assert say("top", {"left", "top"}).state == "wrong"
    for odd in ("Top!", 3, {"top": 1}, ["top", 3], [["top"]]):
        assert say(odd).state == "wrong"
        assert "'left', 'top', 'bottom'" in say(odd).text


def test_properties_are_named_and_errors_are_told():
    properties = {"is shaped (2,)": lambda v: v.shape == (2,), "sums to one": lambda v: abs(v.sum() - 1) < 1e-6}
    assert course.holds("9.3", torch.tensor([0.5, 0.5]), properties).state == "right"
    wrong = course.holds("9.3", torch.tensor([0.5, 0.4]), properties, hint="Count.")
    assert wrong.state == "wrong"
    assert wrong.text == "Fails: sums to one. Count."
    told = course.holds("9.3", [0.5, 0.5], properties)
    assert told.state == "wrong"
    assert "a list cannot be judged" in told.text


def test_a_reference_solution_must_be_right():
    assert number(0.62575).required().state == "right"
    for answer in (0.7, ...):
        with pytest.raises(course.NotRight, match=r"Exercise 9\.1"):
            number(answer).required()


def test_a_check_must_say_how_to_compare():
    for options in ({}, {"digits": 2, "options": ("a",)}):
        with pytest.raises(ValueError, match=r"exercise 9\.1"):
            course.check("9.1", 1, "0", **options)


def test_the_same_answer_to_two_exercises_has_two_digests():
    assert course.digest("9.1", "yes") != course.digest("9.2", "yes")


# --- the notebooks ------------------------------------------------------------------------------------------


def exercises(path: Path) -> list[dict]:
    """Return the cells of the section of exercises."""
    cells = editions.cells_of(path)
    begin, end = (next(i for i, c in enumerate(cells) if c["id"] == name) for name in ("exercises", "references"))
    return cells[begin:end]


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_the_exercises_of_a_notebook(path):
    cells, number = exercises(path), int(path.stem[:2])
    asked = [c.source for c in cells if c.source.startswith("**Exercise")]
    assert 3 <= len(asked) <= 5
    for k, text in enumerate(asked, start=1):
        assert re.match(rf"\*\*Exercise {number}\.{k}\*\* ★{{1,3}} ", text)
    assert "★★★ Open:" in asked[-1]
    tags = [set(c["metadata"].get("tags", [])) for c in cells if c["cell_type"] == "code"]
    assert all(tag in ({"solution"}, {"check"}) for tag in tags)
    assert tags.count({"check"}) == len(asked) - 1
    assert tags[-1] == {"solution"}, "an open question has no check"


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_an_answer_has_a_name_of_its_own(path):
    """A stub must not overwrite, nor a missing answer be hidden by, what the notebook has bound before."""
    cells = editions.cells_of(path)
    for home, names in editions.answers(cells).items():
        before = set().union(*(editions.bound(c.source) for c in cells[:home] if c["cell_type"] == "code"))
        assert not before & set(names)
