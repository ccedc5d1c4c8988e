"""The long tasks are sound: their right answers follow from the topics of the lines."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from bench import long_tasks
from bench.fake_reader import label_lines
from bench.long_tasks import TASK_KINDS, TOPICS, Task, TaskKind, f1_score, make_rows, make_task

ROWS: tuple[TaskKind, ...] = ("count", "compare", "month", "pairs")
FACTS: tuple[TaskKind, ...] = ("needle", "needles")
STEMS = ("bill", "deliver", "defect", "log in", "login", "prais", "cancel")


def found_by_reading(task: Task) -> set[str]:
    """Answer a question from the words of each line, independently of the generator."""
    lines = task.text.split("\n")
    asked = [word for word in re.findall(r"\w+", task.question.split("\n")[-1]) if word in TOPICS]
    sets = {
        topic: [
            line for line, label in zip(lines, label_lines(lines), strict=True) if label == topic
        ]
        for topic in asked
    }
    if task.kind == "count":
        return {str(len(sets[asked[0]]))}
    if task.kind == "compare":
        return {max(asked, key=lambda topic: len(sets[topic]))}
    if task.kind == "month":
        months = [line[:7] for line in sets[asked[0]]]
        return {max(months, key=months.count)}
    return set.intersection(*({line.split(" | ")[1] for line in sets[topic]} for topic in asked))


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("seed", range(4))
def test_the_truth_is_what_the_words_of_the_lines_say(kind: TaskKind, seed: int) -> None:
    task = make_task(kind, 2**15, seed)
    assert set(task.truth) == found_by_reading(task)
    assert task.score(list(task.truth)) == 1.0


@pytest.mark.parametrize("kind", FACTS)
@pytest.mark.parametrize("seed", range(4))
def test_facts_stand_in_the_prose_once_among_others_that_look_alike(
    kind: TaskKind, seed: int
) -> None:
    task = make_task(kind, 2**16, seed)
    places = re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", task.question.split("?")[0])
    assert len(places) == len(task.truth) == (1 if kind == "needle" else 5)
    for place, code in zip(places, task.truth, strict=True):
        [sentence] = [
            each
            for each in re.split(r"(?<=\.)\s", task.text)
            if code in each and f"vault in {place}" in each
        ]
        assert re.search("open|yields|inside|combination|unlocks", sentence)
        others = [each for each in re.split(r"(?<=\.)\s", task.text) if f"vault in {place}" in each]
        assert len(others) > 5
    assert len(re.findall(r"\b\d{5}\b", task.text)) > 20
    assert task.score("\n".join(task.truth)) == 1.0


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_a_task_follows_from_kind_size_and_seed(kind: TaskKind) -> None:
    one, other = (make_task(kind, 2**14, seed) for seed in (3, 4))
    long_tasks.make_rows.cache_clear()
    assert make_task(kind, 2**14, 3) == one
    assert one.text != other.text
    with pytest.raises(ValueError, match="at least 2,048 characters"):
        make_task(kind, 2_000)
    for power in (11, 13, 18):
        size = len(make_task(kind, 2**power).text)
        assert 2**power - 300 < size <= 2**power


def test_what_a_row_is_about_is_written_nowhere() -> None:
    rows = make_rows(2**18)
    text = "\n".join(row.line for row in rows).lower()
    assert [stem for stem in STEMS if stem in text] == []
    assert {row.topic for row in rows} == set(TOPICS)
    holders: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        for word in set(re.findall(r"\w+", row.text.lower())):
            holders[word][row.topic] += 1
    totals = Counter(row.topic for row in rows)
    best = max(
        2 * n / (sum(held.values()) + totals[topic])
        for held in holders.values()
        for topic, n in held.items()
    )
    assert best < 0.7, "no word alone tells a topic"


def test_scores_are_between_wrong_and_right() -> None:
    count = Task("count", "?", "", ("20",))
    assert [count.score(answer) for answer in (20, "about 15", 60, "none")] == [1.0, 0.75, 0.0, 0.0]
    pairs = Task("pairs", "?", "", ("u0001", "u0002"))
    assert pairs.score(["u0001", "u0003"]) == 0.5
    assert pairs.score("") == 0.0
    assert f1_score({"a", "b", "c"}, {"a"}) == pytest.approx(0.5)
