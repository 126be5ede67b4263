"""The planted bugs still fit the files they are planted in; that each is caught is for `make mutants`."""

import pytest

import mutants
from mutants import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_planted_bug_fits_its_file(mutant: Mutant) -> None:
    text = (mutants.ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    assert mutant.old != mutant.new


def test_no_two_bugs_are_the_same() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.old) for mutant in MUTANTS}) == len(MUTANTS)
    assert len(MUTANTS) >= 10
