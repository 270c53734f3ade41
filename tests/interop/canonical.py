"""Reads metadata with the reference implementation: canonical.py FILE…

The first FILE is root metadata, whose keys sign; FILEs of delegated roles follow the targets that delegate to them. For
each: python-tuf loses nothing of it, both canonical encoders (securesystemslib's over the parsed JSON, python-tuf's over
its own objects) yield the same bytes, and every signature is a good one over exactly these, by a key of the role.
"""

import json
import sys

from securesystemslib.formats import encode_canonical
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization.json import CanonicalJSONSerializer

delegators = []


def role_of(name):
    """Who delegates to the role, and the role."""
    for delegator in delegators:
        try:
            return delegator, delegator.get_delegated_role(name)
        except ValueError:
            continue
    sys.exit(f"nobody delegates to {name}")


for path in sys.argv[1:]:
    with open(path, "rb") as file:
        received = file.read()
    raw = json.loads(received)
    metadata = Metadata.from_bytes(received)
    assert metadata.to_dict() == raw, f"{path}: python-tuf reads something else"
    canonical = encode_canonical(raw["signed"]).encode()
    assert CanonicalJSONSerializer().serialize(metadata.signed) == canonical, f"{path}: two canonical forms"
    if isinstance(metadata.signed, (Root, Targets)):
        delegators.insert(0, metadata.signed)
    # N.NAME.json or NAME.json.
    name = path.rsplit("/", 1)[-1].removesuffix(".json")
    number, _, rest = name.partition(".")
    name = rest if number.isdigit() else name
    delegator, role = role_of(name)
    assert len(metadata.signatures) >= role.threshold, path
    for signature in metadata.signatures.values():
        # The signature of a root may be one that its predecessor asked for.
        key = delegator.keys.get(signature.keyid)
        if key is None or signature.keyid not in role.keyids:
            assert name == "root", f"{path}: a signature by {signature.keyid}, which is no key of {name}"
            continue
        key.verify_signature(signature, canonical)
    delegator.verify_delegate(name, canonical, metadata.signatures)
    print(f"{name} {metadata.signed.version}: {len(canonical)} bytes, {len(metadata.signatures)} signatures")
