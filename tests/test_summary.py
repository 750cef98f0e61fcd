"""Tests of what commands print about versions and pages, aligned at 80 columns."""

from datetime import UTC, datetime

import pytest
from test_tables import printed

from bincount.evaluation.intervals import Score
from bincount.tracking import facts
from bincount.tracking.approvals import APPROVAL_DATA_TAG, APPROVAL_TAG, Approval
from bincount.tracking.registry import Version
from flows import summary

TAGS = {
    "test_images": "53523",
    "test_accuracy": "0.5570 (0.5528 to 0.5612)",
    "test_rmse": "0.9312 (0.9250 to 0.9375)",
    "snapshot": "0123456789abcdef",
}


def version(number: int, alias: str = "", **tags: str) -> Version:
    return Version("bincount", number, alias, "m-1", "run", datetime(2026, 11, 27, 2, 17, tzinfo=UTC), tags)


def test_versions_are_listed_with_n_and_intervals_one_line_each_at_80_columns():
    versions = [
        version(301, "challenger", **TAGS | {"test_accuracy": "0.0931 (0.0812 to 0.1050)"}),
        version(300, "champion", **TAGS),
        version(7, "", **TAGS | {"test_images": "596", "snapshot": "f" * 16}),
    ]

    lines = printed(summary.of_models(versions, ()))

    assert max(map(len, lines)) <= 80
    assert lines[1:6] == [
        "no.       alias  registered       n       accuracy, %       RMSE, items    data",
        "───────────────────────────────────────────────────────────────────────────────",
        "301  challenger  2026-11-27  53,523   9.3 ( 8.1-10.5)  0.93 (0.93-0.94)  012345",
        "300    champion  2026-11-27  53,523  55.7 (55.3-56.1)  0.93 (0.93-0.94)  012345",
        "  7              2026-11-27     596  55.7 (55.3-56.1)  0.93 (0.93-0.94)  ffffff",
    ]


def test_a_version_that_waits_for_approval_is_listed_with_what_to_do():
    waits = {
        APPROVAL_TAG: "waiting",
        APPROVAL_DATA_TAG: Approval(state="waiting", since="2026-11-28 02:17:00").model_dump_json(),
    }

    said = " ".join(" ".join(printed(summary.of_models([version(2, **TAGS | waits), version(1, **TAGS)], ()))).split())

    assert "Version 2 waits for approval since 2026-11-28 02:17:00 UTC: run `bincount approve 2`" in said
    assert "Version 1" not in said


def test_versions_of_classes_without_order_and_those_without_scores_are_listed_too():
    ordered_not = {name: value for name, value in TAGS.items() if name != "test_rmse"}

    lines = printed(summary.of_models([version(2, **ordered_not), version(1, test_images="many")], ()))

    rows = [line.split() for line in lines if line[:3].strip().isdecimal()]
    assert rows == [["2", "2026-11-27", "53,523", "55.7", "(55.3-56.1)", "012345"], ["1", "2026-11-27", "many"]]
    assert "RMSE" not in "".join(lines)


def test_versions_of_two_classes_have_their_average_precision_within_80_columns_and_beside_another():
    scores = {name: Score(value=0.8123, low=0.7604, high=0.8611) for name in ("accuracy", "average_precision")}
    tags = {"test_images": "53523", "snapshot": "0123456789" * 6, **facts.write_scores(scores)}

    lines = printed(summary.of_models([version(301, "challenger", **tags)], ()))

    assert max(map(len, lines)) <= 80
    assert "average precision" in lines[1]
    assert "0.81 (0.76-0.86)" in lines[3]
    beside = summary.of_versions(version(2, **tags), version(1, **TAGS), [{}, {}])["Versions"].set_index("")
    assert beside.loc["test average precision"].tolist() == ["0.812 (0.760 to 0.861)", ""]


def test_compared_versions_show_accuracy_in_percent_and_errors_in_items_each_with_its_interval():
    (table,) = summary.of_versions(version(2, **TAGS), version(1), [{}, {}]).values()

    rows = {name: cells for name, *cells in table.itertuples(index=False)}
    assert rows["test accuracy"] == ["55.7 % (55.3 to 56.1)", ""]
    assert rows["test rmse"] == ["0.931 (0.925 to 0.938)", ""]
    assert rows["test rmse of expectation"] == ["", ""]


def test_where_no_version_is_registered_the_list_says_so_and_how_to_make_one():
    assert "None is registered yet; `bincount run` trains a model and registers it." in "\n".join(
        printed(summary.of_models([], ()))
    )


@pytest.mark.parametrize(
    "uri", ["https://anna:SECRET@mlflow.example.org", "postgresql+psycopg://anna:SECRET@host/bins"]
)
def test_the_way_to_the_pages_is_shown_without_the_password(capsys, uri):
    summary.show_pages(uri)

    said = capsys.readouterr().out
    assert "SECRET" not in said
    assert "https://mlflow.example.org/#/models" in said or '--backend-store-uri "$MLFLOW_TRACKING_URI"' in said


def test_a_managed_mlflow_is_named_where_its_uri_is_no_link(capsys):
    summary.show_pages("databricks://profile")

    assert "  in databricks://profile\n" in capsys.readouterr().out
