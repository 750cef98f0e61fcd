"""What the OpenAPI document of a service allows and does not, tried at random."""

import base64

import pytest
import schemathesis
import served_app
from bins import jpeg, png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection
from test_serving_process import serving

from bincount.serving import docs

pytestmark = pytest.mark.services

EXAMPLES = 40  # of each operation, of what is allowed and what is not
OPERATIONS = (
    "POST /predict",
    "POST /verify",
    "POST /record",
    "POST /invocations",
    "GET /ping",
    "GET /metrics",
    "GET /model",
    "POST /overlay",
)
WITHOUT_INPUT = ("/ping", "/metrics", "/model")
TOKEN = "a-token-of-many-characters"
PICTURES = [jpeg(seed) for seed in range(4)] + [png(20, 10)]

# No schema says which bytes are a picture, so all that these formats stand for are; test_serving_limits has others.
schemathesis.openapi.format("binary", st.sampled_from(PICTURES))
schemathesis.openapi.format("picture", st.sampled_from([base64.b64encode(each).decode() for each in PICTURES]))
for kind in docs.PICTURE_TYPES:
    schemathesis.openapi.media_type(kind, st.sampled_from(PICTURES))


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    """The document of a service that needs a token."""
    folder = served_app.checkpoint(tmp_path_factory.mktemp("served") / "model")
    with serving(folder, "--max-images", "4", BINCOUNT_SERVE_TOKEN=TOKEN) as (url, _):
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "not allowed"])
def test_the_service_does_what_its_description_says(schema, operation, mode):
    method, path = operation.split()
    if mode is GenerationMode.NEGATIVE and path in WITHOUT_INPUT:
        return

    @given(schema[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def ask(case):
        # A parameter of a query that /overlay does not have is left out of account, as on the web
        left_out = [negative_data_rejection] if path == "/overlay" else []
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, excluded_checks=left_out)

    ask()
