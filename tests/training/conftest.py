"""Records of a few words."""

from __future__ import annotations

import pytest

from optimum_qala.question_answering.records import QARecord


def make_records() -> list[QARecord]:
    people, places = ["anna", "peter", "maria", "john"], ["paris", "london", "rome", "berlin"]
    return [
        QARecord(
            id=f"{person}-{place}",
            question=f"where was {person} born ?",
            context=f"the old king lived in the north . {person} was born in {place} in the year one hundred .",
            answers=(place,),
            answer_starts=(len(f"the old king lived in the north . {person} was born in "),),
        )
        for person in people
        for place in places
    ]


@pytest.fixture
def records() -> list[QARecord]:
    return make_records()
