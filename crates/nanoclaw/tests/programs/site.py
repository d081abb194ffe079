"""Writes what the site serves: a page, a Python wheel, an npm package, a crate, their indexes.

Arguments: the folder to write to, and the origin it will be served from.
"""

import base64
import hashlib
import io
import json
import os
import sys
import tarfile
import zipfile

ROOT, ORIGIN = sys.argv[1:]
HELLO = "hello from the server"


def put(path, data):
    full = os.path.join(ROOT, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "wb") as out:
        out.write(data if isinstance(data, bytes) else data.encode())


def tar(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as out:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            out.addfile(info, io.BytesIO(text.encode()))
    return packed.getvalue()


put("hello", HELLO + "\n")

wheel = io.BytesIO()
with zipfile.ZipFile(wheel, "w") as out:
    out.writestr("tinypkg/__init__.py", f"HELLO = '{HELLO}'\n")
    about = "tinypkg-1.0.dist-info/"
    out.writestr(about + "METADATA", "Metadata-Version: 2.1\nName: tinypkg\nVersion: 1.0\n")
    kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    out.writestr(about + "WHEEL", kind)
    names = ["tinypkg/__init__.py", about + "METADATA", about + "WHEEL", about + "RECORD"]
    out.writestr(about + "RECORD", "".join(f"{name},,\n" for name in names))
file = "tinypkg-1.0-py3-none-any.whl"
put("files/" + file, wheel.getvalue())
put("simple/tinypkg/index.html", f'<!DOCTYPE html><a href="../../files/{file}">{file}</a>')

npm = tar({
    "package/package.json": json.dumps({"name": "tinypkg", "version": "1.0.0"}),
    "package/index.js": f"module.exports = '{HELLO}';\n",
})
put("files/tinypkg-1.0.0.tgz", npm)
digest = "sha512-" + base64.b64encode(hashlib.sha512(npm).digest()).decode()
dist = {"tarball": ORIGIN + "/files/tinypkg-1.0.0.tgz", "integrity": digest}
version = {"name": "tinypkg", "version": "1.0.0", "dist": dist}
page = {"name": "tinypkg", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
put("npm/tinypkg/index.json", json.dumps(page))

crate = tar({
    "tinypkg-1.0.0/Cargo.toml": '[package]\nname = "tinypkg"\nversion = "1.0.0"\n',
    "tinypkg-1.0.0/src/lib.rs": f"//! {HELLO}\n",
})
put("crates/tinypkg/1.0.0/download", crate)
put("cargo/config.json", json.dumps({"dl": ORIGIN + "/crates"}))
entry = {"name": "tinypkg", "vers": "1.0.0", "deps": [], "features": {}, "yanked": False}
entry["cksum"] = hashlib.sha256(crate).hexdigest()
put("cargo/ti/ny/tinypkg", json.dumps(entry) + "\n")
