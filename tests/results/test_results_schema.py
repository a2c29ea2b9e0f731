"""Records are strict, files validate against the published schemas, and the schemas are those of the code."""

import json
from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError

from virb.errors import ViRBError
from virb.results import schema

HISTORIC = Path(__file__).parent / "historic"


@pytest.mark.parametrize("kind", schema.RECORDS)
def test_published_schemas_are_current(kind):
    current = json.loads(schema.schema_path(kind).read_text(encoding="utf-8")) == schema.json_schema(kind)
    assert current, "run: python -m virb.results.schema"
    jsonschema.Draft202012Validator.check_schema(schema.json_schema(kind))
    assert sorted(path.name for path in schema.SCHEMA_FOLDER.glob("*.json")) == sorted(f"{name}.schema.json" for name in schema.RECORDS)


def test_written_files_validate_against_the_published_schemas(store):
    paths = sorted(store.rglob("*.json"))
    assert len(paths) == 4 * (1 + 3)
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        published = json.loads(schema.schema_path(record["kind"]).read_text(encoding="utf-8"))
        jsonschema.validate(record, published, cls=jsonschema.Draft202012Validator)
        assert json.loads(schema.validate(path).model_dump_json()) == record


def test_published_schemas_refuse_what_the_code_refuses(store):
    path = store / "pixels" / "digits" / "job.json"
    published = json.loads(schema.schema_path("job").read_text(encoding="utf-8"))
    for change in ({"extra": 1}, {"status": "half"}, {"metrics": [{"name": "top1"}]}, {"key": None}):
        record = json.loads(path.read_text(encoding="utf-8")) | change
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(record, published)
        with pytest.raises(ViRBError, match=next(iter(change))):
            schema.parse_record(record, "job.json")


@pytest.mark.parametrize("path", sorted(HISTORIC.glob("*.v*.json")), ids=lambda path: path.name)
def test_files_of_every_past_version_load(path):
    schema.validate(path)


def test_historic_files_are_there():
    assert {path.name for path in HISTORIC.glob("*.v1.json")} == {"job.v1.json", "run.v1.json", "training_config.v1.json"}


def test_nan_becomes_null(make):
    diverged = make().configs[-1]
    assert diverged.diverged
    assert diverged.train_loss is None
    assert schema.SurfaceRow(config="c", seed=0, settings={}, select_metrics={"top1": float("inf")}).select_metrics == {"top1": None}


def test_unknown_keys_are_errors():
    with pytest.raises(ValidationError, match="Extra inputs"):
        schema.Timing(stage="encode", seconds=1.0, itmes=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not a record of ViRB"),
        ('{"kind": "recipe"}', "but got 'recipe'"),
        ('{"kind": "job", "schema_version": 99}', "schema version 99"),
        ('{"kind": "job", "schema_version": 1, "key": NaN}', "NaN"),
        ('{"kind": "job", "schema_version": 1}', "status"),
    ],
)
def test_validate_names_the_file_and_the_trouble(tmp_path, text, message):
    path = tmp_path / "strange.json"
    path.write_text(text)
    with pytest.raises(ViRBError, match=message) as error:
        schema.validate(path)
    assert str(path) in str(error.value)


def test_validate_of_a_missing_file(tmp_path):
    with pytest.raises(ViRBError, match="cannot read"):
        schema.validate(tmp_path / "none.json")


def test_primary_metric(make):
    assert make().job.primary().name == "top1"
    assert make().job.model_copy(update={"metrics": []}).primary() is None
