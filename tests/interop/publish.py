"""Publishes a release with python-tuf: publish.py RECIPE DIRECTORY CASE

Makes a new repository in DIRECTORY, with keys of its own that are forgotten. CASE is one of the functions at the end,
which say how it is signed.
"""

import copy
import hashlib
import os
import sys
from datetime import datetime, timedelta, timezone
from urllib.parse import quote

from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from release import pack

TOP = ["root", "timestamp", "snapshot", "targets"]


def key(scheme="ed25519"):
    generate = {
        "ed25519": CryptoSigner.generate_ed25519,
        "ecdsa": CryptoSigner.generate_ecdsa,
        "rsa": CryptoSigner.generate_rsa,
    }
    return generate[scheme]()


class Repository:
    """Four roles with a key each, and no targets yet."""

    def __init__(self, scheme="ed25519"):
        expires = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=30)
        self.expires = expires
        self.roots = []
        self.roles = {
            "root": Metadata(Root(expires=expires)),
            "timestamp": Metadata(Timestamp(expires=expires)),
            "snapshot": Metadata(Snapshot(expires=expires)),
            "targets": Metadata(Targets(expires=expires)),
        }
        self.signers = {}
        self.hashes = True
        for role in TOP:
            self.keys(role, [key(scheme)])

    def __getitem__(self, role):
        return self.roles[role].signed

    def keys(self, role, signers, threshold=1, sign=None):
        """Gives a role these keys, and no others. `sign`: those that do sign, where it is not all of them."""
        root = self["root"]
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        for signer in signers:
            root.add_key(signer.public_key, role)
        root.roles[role].threshold = threshold
        self.signers[role] = signers if sign is None else sign

    def delegate(self, by, name, signers, threshold=1, sign=None, **rule):
        """Lets a new role, with these keys, sign targets of `by`."""
        delegations = self[by].delegations
        if delegations is None:
            delegations = self[by].delegations = Delegations({}, {})
        keyids = [signer.public_key.keyid for signer in signers]
        rule.setdefault("terminating", False)
        delegations.roles[name] = DelegatedRole(name, keyids, threshold, **rule)
        self.role(delegations, name, signers, sign)

    def bins(self, by, prefix, bits, signer):
        """Spreads targets of `by` over 2 to the power of `bits` roles, by the digests of their names."""
        succinct = SuccinctRoles([signer.public_key.keyid], 1, bits, prefix)
        delegations = self[by].delegations = Delegations({}, None, succinct)
        for name in succinct.get_roles():
            self.role(delegations, name, [signer], None)
        return succinct

    def role(self, delegations, name, signers, sign):
        for signer in signers:
            delegations.keys[signer.public_key.keyid] = signer.public_key
        self.roles[name] = Metadata(Targets(expires=self.expires))
        self.signers[name] = signers if sign is None else sign

    def put(self, role, files):
        for name, data in files.items():
            target = TargetFile.from_data(name, data, ["sha256"])
            self[role].targets[name] = target

    def next_root(self):
        """Signs the present root for good; what is changed now becomes its successor."""
        signers = {signer.public_key.keyid: signer for signer in self.signers["root"]}
        before = self.roots[-1][1] if self.roots else {}
        for signer in {**before, **signers}.values():
            self.roles["root"].sign(signer, append=True)
        self.roots.append((self.roles["root"].to_bytes(JSONSerializer()), signers))
        self.roles["root"] = Metadata(copy.deepcopy(self["root"]))
        self["root"].version += 1

    def write(self, directory, files):
        self.next_root()
        metadata = os.path.join(directory, "metadata")
        os.makedirs(metadata)
        for number, (data, _) in enumerate(self.roots, 1):
            write(os.path.join(metadata, f"{number}.root.json"), data)
        consistent = self["root"].consistent_snapshot
        for role in [name for name in self.roles if name not in TOP] + ["targets", "snapshot", "timestamp"]:
            envelope = self.roles[role]
            for signer in self.signers[role]:
                envelope.sign(signer, append=True)
            data = envelope.to_bytes(JSONSerializer())
            meta = MetaFile(envelope.signed.version)
            if self.hashes:
                meta = MetaFile.from_data(envelope.signed.version, data, ["sha256"])
            if role == "snapshot":
                self["timestamp"].snapshot_meta = meta
            elif role != "timestamp":
                self["snapshot"].meta[f"{role}.json"] = meta
            numbered = f"{envelope.signed.version}." if consistent and role != "timestamp" else ""
            write(os.path.join(metadata, f"{numbered}{quote(role, '')}.json"), data)
        for name, data in files.items():
            target = TargetFile.from_data(name, data, ["sha256"])
            for path in target.get_prefixed_paths() if consistent else [name]:
                write(os.path.join(directory, "targets", path), data)


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def split(files):
    """The manifest apart from the artifacts."""
    manifest = {name: data for name, data in files.items() if name.endswith("/release.json")}
    return manifest, {name: data for name, data in files.items() if name not in manifest}


# The cases. Each gets the release's files, and returns the repository that is to be written.


def plain(files):
    repository = Repository()
    repository.put("targets", files)
    return repository


def without_consistent_snapshot(files):
    repository = plain(files)
    repository["root"].consistent_snapshot = False
    return repository


def without_hashes_of_metadata(files):
    repository = plain(files)
    repository.hashes = False
    return repository


def high_versions(files):
    """As after years of publications."""
    repository = plain(files)
    for number, role in enumerate(["timestamp", "snapshot", "targets"]):
        repository[role].version = 2**53 + number
    return repository


def ecdsa(files):
    repository = Repository("ecdsa")
    repository.put("targets", files)
    return repository


def ecdsa_spelt_by_its_curve(files):
    """The key type as older repositories write it."""
    repository = plain(files)
    for role in TOP:
        signer = key("ecdsa")
        public = signer.public_key
        public.keytype = "ecdsa-sha2-nistp256"
        repository.keys(role, [signer])
    return repository


def thresholds(files):
    """Two of three for every role, and another two each time; both schemes."""
    repository = plain(files)
    for number, role in enumerate(TOP):
        keys = [key(), key("ecdsa"), key()]
        present = [signer for index, signer in enumerate(keys) if index != number % 3]
        repository.keys(role, keys, 2, present)
    return repository


def ed25519_thresholds(files):
    """Two of three for every role."""
    repository = plain(files)
    for role in TOP:
        keys = [key(), key(), key()]
        repository.keys(role, keys, 2, keys[1:])
    return repository


def rotated(files):
    """Every key was replaced twice, and the root's threshold grew; the appliance knows the first root only."""
    repository = plain(files)
    for keys in [2, 3]:
        repository.next_root()
        for role in TOP:
            repository.keys(role, [key() for _ in range(keys)], keys)
    return repository


def rsa_among_the_keys(files):
    """A scheme that an appliance does not know, listed and signing for every role beside one that it does."""
    repository = plain(files)
    for role in TOP:
        repository.keys(role, [key("rsa"), key()])
    return repository


def unknown_schemes(files):
    """Keys and signatures of the future beside those of today."""
    repository = plain(files)
    public = SSlibKey("f" * 64, "ml-dsa", "ml-dsa-65", {"public": "AAAA", "context": {"é": [1, None, True]}})
    for role in TOP:
        repository["root"].add_key(public, role)
    return repository


def unknown_fields(files):
    """At every level at which the format has fields."""
    repository = plain(files)
    fields = {"x-ä": {"b": [1, -2, True, None, "\u0001\t\n\"\\/\u007f\u2028😀"], "a": {}, "Ａ": 2**63}}
    for role in TOP:
        repository[role].unrecognized_fields.update(fields)
        repository.roles[role].unrecognized_fields.update(fields)
    root = repository["root"]
    for item in [*root.roles.values(), *root.keys.values()]:
        item.unrecognized_fields.update(fields)
    for target in repository["targets"].targets.values():
        target.unrecognized_fields["custom"] = fields
        target.unrecognized_fields["x"] = fields
    return repository


def other_specification(version):
    def case(files):
        repository = plain(files)
        for role in TOP:
            repository[role].spec_version = version
        return repository

    return case


def key_ids_that_are_no_digests(files):
    repository = plain(files)
    for role in TOP:
        signer = key()
        public = signer.public_key
        public.keyid = f"the key of {role}, 2026 – “ü”"
        repository.keys(role, [signer])
    return repository


def other_digests_too(files):
    """Targets with a SHA-512 beside their SHA-256."""
    repository = plain(files)
    for name, data in files.items():
        repository["targets"].targets[name] = TargetFile.from_data(name, data, ["sha512", "sha256"])
    return repository


def other_targets(files):
    """Names that are none of ours, and cannot be placed below a directory."""
    repository = plain(files)
    others = ["../../etc/passwd", "/etc/passwd", "README", "ü/😀", "a//b", "x" * 2000, "a/./b"]
    repository.put("targets", {name: b"other" for name in others})
    return repository


def delegated(files):
    """The manifest is signed by one team, the artifacts by another with two of its three keys."""
    repository = Repository()
    manifest, artifacts = split(files)
    keys = [key(), key("ecdsa"), key()]
    repository.delegate("targets", "releases", [key()], paths=["*/stable/*/*/release.json"])
    repository.delegate("targets", "artifacts", keys, 2, keys[:2], paths=["*/artifacts/*"])
    repository.put("releases", manifest)
    repository.put("artifacts", artifacts)
    return repository


def delegated_within_delegated(files):
    """Three levels; the way there leads past roles that have nothing, one of which forbids nothing by terminating elsewhere."""
    repository = Repository()
    manifest, artifacts = split(files)
    repository.delegate("targets", "elsewhere", [key()], terminating=True, paths=["other-product/*/*"])
    repository.delegate("targets", "empty", [key()], paths=["*/artifacts/*", "*/*/*/*/*"])
    repository.delegate("targets", "product", [key()], paths=["quantix-os/*/*", "quantix-os/*/*/*/*"])
    repository.delegate("product", "stable", [key()], terminating=True, paths=["quantix-os/stable/*/*/release.json"])
    repository.delegate("product", "team ü/../x", [key("ecdsa")], paths=["quantix-os/artifacts/*.tar.gz"])
    repository.put("stable", manifest)
    repository.put("team ü/../x", artifacts)
    return repository


def hash_prefixes(files):
    """The artifacts are spread over sixteen roles by the digests of their names."""
    repository = Repository()
    manifest, artifacts = split(files)
    repository.put("targets", manifest)
    signer = key()
    for digit in "0123456789abcdef":
        repository.delegate("targets", f"bin-{digit}", [signer], path_hash_prefixes=[digit])
    for name, data in artifacts.items():
        digit = hashlib.sha256(name.encode()).hexdigest()[0]
        repository.put(f"bin-{digit}", {name: data})
    return repository


def succinct_bins(files):
    """The same, by the rule that needs no list of roles. The manifest is in the targets themselves."""
    repository = Repository()
    manifest, artifacts = split(files)
    repository.put("targets", manifest)
    succinct = repository.bins("targets", "bin", 5, key())
    for name, data in artifacts.items():
        repository.put(succinct.get_role_for_target(name), {name: data})
    return repository


CASES = {
    case.__name__: case
    for case in [
        plain,
        without_consistent_snapshot,
        without_hashes_of_metadata,
        high_versions,
        ecdsa,
        ecdsa_spelt_by_its_curve,
        thresholds,
        ed25519_thresholds,
        rotated,
        rsa_among_the_keys,
        unknown_schemes,
        unknown_fields,
        key_ids_that_are_no_digests,
        other_digests_too,
        other_targets,
        delegated,
        delegated_within_delegated,
        hash_prefixes,
        succinct_bins,
    ]
}
CASES["the_first_specification"] = other_specification("1.0.0")
CASES["a_later_specification"] = other_specification("1.7.3")

recipe, directory, case = sys.argv[1:]
release = pack(recipe)
CASES[case](release).write(directory, release)
