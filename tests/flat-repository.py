#!/usr/bin/env python3
"""A TUF repository of one flat targets file: flat-repository.py DIR COUNT.

Written without a TUF library, for ten thousands of targets would take it minutes; needs `cryptography`. DIR becomes a
repository for the product "figures" with COUNT targets: every tenth is a release's manifest (which does not exist), the
others are artifacts. DIR/metadata/1.root.json is the root to trust.
"""
import hashlib, json, os, sys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

key = Ed25519PrivateKey.generate()
public = {"keytype": "ed25519", "scheme": "ed25519",
          "keyval": {"public": key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()}}
keyid = hashlib.sha256(canonical(public)).hexdigest()

def sign(kind, body):
    body |= {"_type": kind, "spec_version": "1.0.31", "version": 1, "expires": "2100-01-01T00:00:00Z"}
    signature = {"keyid": keyid, "sig": key.sign(canonical(body)).hex()}
    return canonical({"signatures": [signature], "signed": body})

def meta(data):
    return {"version": 1, "length": len(data), "hashes": {"sha256": hashlib.sha256(data).hexdigest()}}

directory, count = sys.argv[1], int(sys.argv[2])
os.makedirs(f"{directory}/metadata"); os.makedirs(f"{directory}/targets")
targets = {}
for number in range(count):
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    name = (f"figures/stable/{os.uname().machine}/0.0.{number}/release.json" if number % 10 == 0
            else f"figures/artifacts/component-{number % 7}-{digest}.tar.gz")
    targets[name] = {"length": 1000 + number, "hashes": {"sha256": digest}}
role = {"keyids": [keyid], "threshold": 1}
files = {"1.root.json": sign("root", {"consistent_snapshot": True, "keys": {keyid: public},
         "roles": dict.fromkeys(("root", "timestamp", "snapshot", "targets"), role)})}
files["1.targets.json"] = sign("targets", {"targets": targets})
files["1.snapshot.json"] = sign("snapshot", {"meta": {"targets.json": meta(files["1.targets.json"])}})
files["timestamp.json"] = sign("timestamp", {"meta": {"snapshot.json": meta(files["1.snapshot.json"])}})
for name, data in files.items():
    with open(f"{directory}/metadata/{name}", "wb") as file:
        file.write(data)
