"""What the OpenAPI document of a service allows and does not, tried at random."""

import base64

import pytest
import schemathesis
import served_app
from bins import jpeg, png
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS

from bincount.serving import app, docs, site

EXAMPLES = 60  # of each path and method, and phase
TOKEN = "a-token-of-many-characters"
PICTURES = [jpeg(seed) for seed in range(4)] + [png(20, 10)]

# What is no picture by its bytes is none by no schema, so these formats are of pictures; test_serving_limits has others.
schemathesis.openapi.format("binary", st.sampled_from(PICTURES).map(schemathesis.openapi.Binary if hasattr(schemathesis.openapi, "Binary") else bytes))
schemathesis.openapi.format("picture", st.sampled_from([base64.b64encode(each).decode() for each in PICTURES]))
for kind in docs.PICTURE_TYPES:
    schemathesis.openapi.media_type(kind, st.sampled_from(PICTURES))
