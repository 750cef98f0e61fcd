"""The LitServe server that serve.py measures: FOLDER PORT. Its processes import this file."""

import base64
import sys
from pathlib import Path

import litserve
import numpy as np

from bincount.data import pictures
from bincount.settings import ServeConfig
from bincount.training import model as models


class Counter(litserve.LitAPI):
    """Answers for a picture in base64, as the registered model does."""

    def setup(self, device):
        self.network, self.model_spec = models.load(Path(sys.argv[1]))

    def decode_request(self, request):
        content = base64.b64decode(request["dataframe_split"]["data"][0][0])
        return pictures.decode(content, self.model_spec.images)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, x):
        return models.probabilities(self.network, self.model_spec, x)

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        names = self.model_spec.classes.names
        return {"count": names[output.argmax()], **dict(zip(names, output.tolist(), strict=True))}


if __name__ == "__main__":
    settings = ServeConfig()
    api = Counter(max_batch_size=settings.max_batch, batch_timeout=settings.max_wait / 1000)
    server = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
