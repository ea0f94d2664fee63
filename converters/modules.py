"""Modules of torch by the nodes that they became: torch's exporter calls nodes ``node_conv2d_1`` and writes modules beside them.

It writes the modules around each node into the node's metadata, outermost first, the operator last. A Conv into which a
BatchNormalization went carries the scopes of that: the name of its weight goes before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["SCOPES", "module_of"]

SCOPES = "pkg.torch.onnx.name_scopes"
#: Text of metadata that is looked at: what is longer names no module of a network that anybody wrote.
LONGEST = 4096
_QUOTED = re.compile(r"'([^']*)'")


def module_of(inputs: Sequence[str], metadata: Mapping[str, str]) -> str:
    """The module that a node with these inputs and this metadata was made of, such as ``layer1.0.conv1``; "" if nothing says."""
    if len(inputs) > 1 and inputs[1].endswith(".weight"):
        return inputs[1].removesuffix(".weight")
    scopes = metadata.get(SCOPES, "")
    modules = _QUOTED.findall(scopes)[:-1] if len(scopes) <= LONGEST else []
    return str(modules[-1]) if modules else ""
