"""Tables as they are written: quotation marks between tabs."""

import pandas as pd

from nlp_distill.data import read_table


def test_quoted_cells_of_a_table_between_tabs_are_cells(tmp_path):
    texts = ["good\tfilm\nindeed", 'he said "hi"', "plain"]
    for name, separator in (("a.tsv", "\t"), ("a.csv", ",")):
        pd.DataFrame({"text": texts, "label": [1, 0, 1]}).to_csv(tmp_path / name, sep=separator, index=False)
        assert read_table(tmp_path / name)["text"][:] == texts
        assert read_table(tmp_path / name)["label"][:] == [1, 0, 1]


def test_bare_quotation_marks_between_tabs_are_words(tmp_path):
    """As GLUE's: a reader of quotes joins the rows between two marks."""
    (tmp_path / "a.tsv").write_text('text\tlabel\n"a bare mark\t1\nnothing\t0\nanother" one\t1\n')
    assert read_table(tmp_path / "a.tsv")["text"][:] == ['"a bare mark', "nothing", 'another" one']


def test_a_long_cell_changes_no_other(tmp_path):
    pd.DataFrame({"text": ["x" * 140_000, 'he said "hi"']}).to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    assert read_table(tmp_path / "a.tsv")["text"][1] == 'he said "hi"'
