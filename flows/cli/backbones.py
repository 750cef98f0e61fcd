"""The command that lists the networks that a model can be built on."""

import json as to_json
from typing import Annotated

from cyclopts import Parameter

from flows.cli.program import app


@app.command(sort_key=17.5)
def backbones(
    filter: Annotated[
        str, Parameter(help="show only names with this in them, or of this pattern: convnext, resnet*, timm/*dinov2*")
    ] = "",
    /,
    *,
    json: Annotated[bool, Parameter(negative="", help="print as JSON")] = False,
) -> None:
    """List the networks that `--model` takes, with what their pretrained weights are known for.

    Parameters, GFLOPs of a picture and top-1 accuracy on ImageNet are those that torchvision publishes for its weights.
    The networks of timm, where it is installed, are listed with a filter; it publishes none of these figures.
    """
    from bincount.training import listing

    found = listing.find(filter)
    if json:
        print(to_json.dumps([entry.as_dict() for entry in found], indent=2))
        return
    from bincount.reporting import console

    console.show(listing.table(found, filter))
