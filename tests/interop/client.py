"""A TUF client that is not ours: client.py STORE ROOT URL TARGET…

Refreshes STORE from the repository at URL with python-tuf's ngclient, and downloads the targets. Trust starts from the
file ROOT, or with `-` from the root that STORE has. Prints the versions that are trusted then, and each target's digest.
"""

import hashlib
import json
import os
import sys
import tempfile

from tuf.api.metadata import Metadata
from tuf.ngclient import Updater

store, root, url, *names = sys.argv[1:]
os.makedirs(store, exist_ok=True)
bootstrap = None
if root != "-":
    with open(root, "rb") as file:
        bootstrap = file.read()
with tempfile.TemporaryDirectory() as downloads:
    updater = Updater(store, f"{url}/metadata", downloads, f"{url}/targets", bootstrap=bootstrap)
    updater.refresh()
    targets = {}
    for name in names:
        info = updater.get_targetinfo(name)
        if info is None:
            sys.exit(f"there is no target {name}")
        with open(updater.download_target(info), "rb") as file:
            targets[name] = hashlib.sha256(file.read()).hexdigest()
roles = ["root", "timestamp", "snapshot", "targets"]
versions = {role: Metadata.from_file(f"{store}/{role}.json").signed.version for role in roles}
print(json.dumps({"versions": versions, "targets": targets}))
