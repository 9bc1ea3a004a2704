"""Formulas of scores against Python's own arithmetic, and every way to get one wrong."""

import math
import operator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.spec.feature_spec import FeatureSpec
from data.spec.raw.reader import raw_spec_from_dict
from data.spec.score import MAX_CHARACTERS, NEGATIVE, Formula, FormulaError, Name, parse_formula
from tests.data.raw_spec_samples import changed_raw, raw_problems
from tests.data.sample_specs import changed, check_only_problem, document, problems_of

NAMES = {"click": 0.3, "buy": 0.02, "größe": 7.0, "price": 19.5, "log": 2.5}
# Of Python's operators, on floats: an undefined result is an exception there, and none of a formula's.
PYTHON: dict[str, Any] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
    NEGATIVE: operator.neg,
    "log": math.log,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "abs": abs,
    "min": min,
    "max": max,
}


def outcome(function: Any) -> Any:
    """What a function returns, or the type of the arithmetic error that it raises."""
    try:
        return function()
    except (ArithmeticError, ValueError, TypeError) as error:  # TypeError: of a complex number
        return type(error)


def spaced(*parts: str) -> st.SearchStrategy[str]:
    return st.tuples(*(st.sampled_from(["", " ", "  "]) for _ in parts)).map(
        lambda spaces: "".join(space + part for space, part in zip(spaces, parts, strict=True))
    )


OPERANDS = st.sampled_from([*NAMES, "2", "0", "0.5", ".25", "3.", "1e-3", "2E+2"])


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Formulas made of smaller ones, with and without parentheses, so that precedence decides."""
    binary = st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "**"]), inner).flatmap(lambda parts: spaced(*parts))
    calls = st.one_of(
        st.tuples(st.sampled_from(["log", "exp", "sqrt", "abs"]), inner).map(lambda call: f"{call[0]}({call[1]})"),
        st.tuples(st.sampled_from(["min", "max"]), st.lists(inner, min_size=2, max_size=4)).map(
            lambda call: f"{call[0]} ({', '.join(call[1])})"
        ),
    )
    return st.one_of(binary, inner.flatmap(lambda text: spaced("-", text)), inner.map(lambda text: f"({text})"), calls)


@settings(max_examples=200, deadline=None)
@given(st.recursive(OPERANDS, larger, max_leaves=12))
def test_a_formula_is_what_python_makes_of_it(text):
    functions = {"log": math.log, "exp": math.exp, "sqrt": math.sqrt, "abs": abs, "min": min, "max": max}
    # `log` is a name and a function here; Python has one name for both.
    expected_text = text.replace("log(", "log_(")
    names = NAMES | functions | {"log": NAMES["log"], "log_": math.log}
    expected = outcome(lambda: eval(expected_text, {"__builtins__": {}}, names))
    if not any(name in text for name in NAMES):
        with pytest.raises(FormulaError, match="names no label and no feature"):
            parse_formula(text)
        return
    try:
        formula = parse_formula(text)
    except FormulaError as error:
        # The one limit that these formulas meet: `log` alone, as part of a call.
        assert "names no label" in str(error) and "log(" in text
        return
    assert outcome(lambda: formula.evaluate(NAMES, float, PYTHON)) == expected


def test_names_are_found_where_they_are_first():
    formula = parse_formula("price * 'click rate' + log(price) / \"it's\" - log")
    assert formula.names == (Name("price", 1), Name("click rate", 9), Name("it's", 37), Name("log", 46))
    assert parse_formula("a\n  * b").names == (Name("a", 1), Name("b", 7))


WRONG = [
    ("", "this formula is empty; write one, such as click * price ** 0.5"),
    (" \n", "this formula is empty"),
    ("1 + 2", "'1 + 2' names no label and no feature"),
    ("a b", "at character 3: found 'b', expected an operator, such as *; put a name with other characters than"),
    ("2 a", "at character 3: found 'a', expected an operator"),
    ("a * 1.2.3", "at character 8: found '.3', expected an operator"),
    ("a +", "the formula ends where a number or a name is expected; complete it"),
    ("a * + b", "at character 5: found '+', expected a number or a name"),
    ("* a", "at character 1: found '*', expected a number or a name"),
    ("(a + b", "at character 1: this parenthesis is not closed; add )"),
    ("(a b)", "at character 4: found 'b', expected an operator or )"),
    ("a)", "at character 2: found ')', expected an operator"),
    ("()", "at character 2: found ')', expected a number or a name"),
    ("a ^ 2", "at character 3: '^' is not part of a formula; write ** for a power"),
    ("a > 2", "at character 3: '>' is not part of a formula; expected numbers, names, + - * / **, parentheses and log"),
    ("a.b", "at character 2: '.' is not part of a formula"),
    ("a[0]", "at character 2: '[' is not part of a formula"),
    ("a // b", "at character 4: found '/', expected a number or a name"),
    ("'a * b", "at character 1: \"'\" is not part of a formula; a name in quotes ends with the quote"),
    ("lgo(a)", "at character 1: there is no function 'lgo'; did you mean log?"),
    ("__import__('os')", "there is no function '__import__'; expected one of log, exp, sqrt, abs, min, max"),
    ("a * log(a, b)", "at character 5: log takes one argument, not 2"),
    ("max(a)", "at character 1: max takes two arguments or more, not 1"),
    ("exp()", "at character 5: found ')', expected a number or a name"),
    ("a * 1e39", "at character 5: '1e39' is too large for float32; scale the formula"),
    ("a * 1e-60", "at character 5: '1e-60' is too small for float32; scale the formula"),
    ("a * " + "9" * 400, "is too large for float32"),
    ("a" + " + a" * 300, "this formula has 1,201 characters; the maximum is 1,000"),
    ("(" * 10_000 + "a" + ")" * 10_000, "this formula has 20,001 characters; the maximum is 1,000"),
    ("(" * 400 + "a" + ")" * 400, "at character 51: nested deeper than 50 levels; write it flatter"),
    ("-" * 400 + "a", "at character 51: nested deeper than 50 levels"),
    ("**".join("a" * 60), "nested deeper than 50 levels"),
    ("abs(" * 100 + "a" + ")" * 100, "nested deeper than 50 levels"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_mistakes_are_located(text, message):
    with pytest.raises(FormulaError) as caught:
        parse_formula(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_long_flat_formula_is_fine():
    formula = parse_formula("+".join("a" * (MAX_CHARACTERS // 2)))
    assert formula.evaluate({"a": 2.0}, float, PYTHON) == MAX_CHARACTERS


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=40)
    | st.text("ab0.eE+-*/() ,'\"", max_size=60)
    | st.lists(st.sampled_from(["(", ")", "**", "-", "a", "2", "log(", "min(", ",", "'"]), max_size=400).map("".join)
)
def test_anything_is_a_formula_or_a_formula_error(text):
    try:
        formula = parse_formula(text)
    except FormulaError:
        return
    assert isinstance(formula, Formula)
    names = {name.text: 1.0 for name in formula.names}
    outcome(lambda: formula.evaluate(names, float, PYTHON))


# In a specification.

KNOWN = "a formula may name the labels and numerical features age, click, buy"
IN_SPEC = [
    ("clik * age", f"at character 1: 'clik' is not in the specification; did you mean 'click'?; {KNOWN}"),
    ("click * weather", f"at character 9: 'weather' is not in the specification; {KNOWN}"),
    ("click * user", f"at character 9: 'user' is in onehot_categorical; {KNOWN}"),
    ("click * note", f"at character 9: 'note' is in no channel; {KNOWN}"),
    ("click *", "the formula ends where a number or a name is expected"),
    (None, "is empty; write a formula, such as click * price ** 0.5"),
    (3, "is the number 3; write a formula"),
    (["click"], "is a list; write a formula"),
]


@pytest.mark.parametrize(("formula", "words"), IN_SPEC)
def test_a_specification_locates_mistakes_in_its_score(formula, words, tmp_path):
    check_only_problem(problems_of(changed({"score": formula}), tmp_path), "score", words)


def test_names_that_a_score_cannot_have(tmp_path):
    served = {"feature_spec.age.serve": 1.0, "score": "click * age"}
    check_only_problem(problems_of(changed(served), tmp_path), "score", "at character 9: 'age' has `serve`, so that")
    classes = {"feature_spec.click": {"task": "multiclass", "cardinality": 3}, "feature_spec.buy": {}}
    (problem,) = problems_of(changed(classes | {"score": "click * buy"}), tmp_path)
    assert problem.startswith(
        "score: at character 1: 'click' has task multiclass, whose prediction is no single number"
    )
    columns = ["user", "genres", "age", "score", "weight", "note"]
    chunk = [{"type": "csv", "features": [*columns, "session"], "files": ["c.csv"]}]
    labels = {
        "feature_spec": {
            name: keys for name, keys in document()["feature_spec"].items() if name not in ("click", "buy")
        }
        | {"score": {}},
        "source_spec": {"train": chunk, "test": chunk},
        "channel_spec.label": ["score"],
    }
    assert FeatureSpec.from_dict(changed(labels), tmp_path).score is None
    check_only_problem(
        problems_of(changed(labels | {"score": "score * age"}), tmp_path),
        "score",
        "is called 'score', and so is a label",
    )


def test_what_is_malformed_elsewhere_is_not_unknown(tmp_path):
    (problem,) = problems_of(changed({"channel_spec.label": 3, "score": "click"}), tmp_path)
    assert problem.startswith("channel_spec.label: ")


def test_an_unknown_key_may_be_a_misspelled_score(tmp_path):
    check_only_problem(problems_of(changed({"scores": "click"}), tmp_path), "document.scores", "did you mean 'score'?")


@pytest.mark.parametrize("text", ["click * buy ** 0.5", "'click' / \"age\"", "-click", "click\n  * age", "click # age"])
def test_scores_survive_a_round_trip(text, tmp_path):
    if "#" in text:
        with pytest.raises(DataError, match="score: at character 7"):
            FeatureSpec.from_dict(changed({"score": text}), tmp_path)
        return
    spec = FeatureSpec.from_dict(changed({"score": text}), tmp_path)
    spec.write(tmp_path / "again.yaml")
    assert FeatureSpec.read(tmp_path / "again.yaml") == spec
    assert spec.with_sources(spec.sources, Path("elsewhere")).score == text


def test_a_raw_specification_has_the_same_score(tmp_path):
    spec = raw_spec_from_dict(changed_raw({"score": "click * liked * ctr / price"}), tmp_path)
    assert spec.score == "click * liked * ctr / price"
    problems = raw_problems(changed_raw({"score": "click * item_rate"}), tmp_path)
    check_only_problem(problems, "score", "at character 9: 'item_rate' is in no channel; a formula may name the labels")
    check_only_problem(raw_problems(changed_raw({"score": "click *"}), tmp_path), "score", "the formula ends where")
