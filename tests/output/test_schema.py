import numpy as np
import pyarrow as pa

from tlray.output.schema import LABEL_FIELDS, PREDICTED_COLUMNS, RequestedColumns


def test_the_labels_have_these_columns():
    assert [field.name for field in LABEL_FIELDS] == [
        "row_id", "uri", "status", "error", "predicted_index", "class_name", "probability", "width", "height",
        "model_id", "needs_review", "ood_score",
    ]  # fmt: skip
    assert [field.name for field in LABEL_FIELDS if not field.nullable] == ["row_id", "uri", "status", "model_id"]


def test_without_options_only_the_usual_columns_are_predicted():
    plain = RequestedColumns(min_probabilities=np.zeros(2, np.float32))
    assert plain.extra_fields == []
    assert {field.name for field in plain.fields} == {"retries", *(field.name for field in LABEL_FIELDS)} - {
        "uri",
        "model_id",
    }


def test_options_add_columns_at_the_end():
    asked = RequestedColumns(top_k=3, embedding_size=8)
    assert [field.name for field in asked.extra_fields] == [
        "top_indices", "top_class_names", "top_probabilities", "embedding",
    ]  # fmt: skip
    assert asked.extra_fields[-1].type == pa.list_(pa.float32(), 8)
    assert asked.fields[-4:] == asked.extra_fields
    assert {field.name for field in asked.fields} - PREDICTED_COLUMNS == {"retries"}
