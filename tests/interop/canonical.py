"""Reads metadata with the reference implementation: canonical.py FILE…

A FILE comes after those that speak for it: roots first. For each: python-tuf loses nothing of it, both canonical encoders
(securesystemslib's over the parsed JSON, python-tuf's over its own objects) yield the same bytes, every signature is a good
one over exactly these, and some version of those that speak for it is satisfied by them.
"""

import json
import sys

from securesystemslib.formats import encode_canonical
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization.json import CanonicalJSONSerializer

delegators = []
keys = {}


def spoken_for(name, canonical, signatures):
    """Whether a delegator, in one of its versions, takes these signatures for the role."""
    for delegator in delegators:
        try:
            delegator.verify_delegate(name, canonical, signatures)
            return True
        except (ValueError, UnsignedMetadataError):
            continue
    return False


for path in sys.argv[1:]:
    with open(path, "rb") as file:
        received = file.read()
    raw = json.loads(received)
    metadata = Metadata.from_bytes(received)
    assert metadata.to_dict() == raw, f"{path}: python-tuf reads something else"
    canonical = encode_canonical(raw["signed"]).encode()
    assert CanonicalJSONSerializer().serialize(metadata.signed) == canonical, f"{path}: two canonical forms"
    if isinstance(metadata.signed, Root):
        delegators.append(metadata.signed)
        keys.update(metadata.signed.keys)
    elif isinstance(metadata.signed, Targets) and metadata.signed.delegations:
        delegators.append(metadata.signed)
        keys.update(metadata.signed.delegations.keys)
    # N.NAME.json or NAME.json.
    name = path.rsplit("/", 1)[-1].removesuffix(".json")
    number, _, rest = name.partition(".")
    name = rest if number.isdigit() else name
    assert metadata.signatures, path
    for signature in metadata.signatures.values():
        keys[signature.keyid].verify_signature(signature, canonical)
    assert spoken_for(name, canonical, metadata.signatures), f"{path}: nobody speaks for it"
    print(f"{name} {metadata.signed.version}: {len(canonical)} bytes, {len(metadata.signatures)} signatures")
